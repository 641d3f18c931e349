"""Samples that differ from stored ones, against a plain dictionary."""

import random

from data_contract import METRICS
from fleet_forecast.serving.storage.samples import Sample
from tests.serving.storage.stored import STEP


def test_batches_of_all_rights_store_and_return_what_a_dictionary_does(store):
    """Few servers and times, so that samples repeat, complete and contradict each other within and between batches."""
    dice, stored = random.Random(5), {}
    futures, expected = [], []
    for _ in range(150):
        may_correct = dice.random() < 0.3
        batch = [drawn(dice) for _ in range(dice.randint(1, 12))]
        futures.append(store.append(batch, may_correct))
        expected.append([place for place, each in enumerate(batch) if corrects(stored, each, may_correct)])
    assert [[each.place for each in future.result(10)] for future in futures] == expected
    assert sum(map(len, expected)) > 100
    for server in store.servers.values():
        rows = store.raw_samples(server.server_id, 0, 10).result(10)
        assert {row.timestamp_ms: (row.state, *row.values) for row in rows} == {
            time: tuple(cells) for (name, time), cells in stored.items() if name == server.name
        }


def drawn(dice):
    values = tuple(dice.choice((None, 1, 2.5)) for _ in METRICS)
    return Sample(
        dice.choice("abc"), dice.randrange(4) * STEP * 500, None, dice.choice((None, None, "offline")), values
    )


def corrects(stored, sample, may_correct):
    """Whether the sample is a correction; the dictionary changes as the store has to."""
    sent = [sample.state, *sample.values]
    cells = stored.setdefault((sample.server_name, sample.timestamp_ms), [None] * len(sent))
    differs = any(None not in pair and pair[0] != pair[1] for pair in zip(sent, cells, strict=True))
    if may_correct or not differs:
        cells[:] = [before if value is None else value for value, before in zip(sent, cells, strict=True)]
    return differs


def test_a_refused_sample_changes_no_profile(store):
    values = (50.0, *[None] * (len(METRICS) - 1))
    store.append([Sample("a", 0, "database", None, values)]).result(5)
    forged = Sample("a", 0, "web_api", None, (5.0, *values[1:]))
    ((place, field, before, sent),) = store.append([forged], may_correct=False).result(5)
    assert (place, field, before, sent) == (0, "cpu_pct", 50.0, 5.0)
    assert store.servers["a"].profile == "database"
