"""While the disk is full, samples are refused and means are computed; later both are stored again."""

import pytest

from fleet_forecast.serving.storage.errors import HistoryUnavailableError
from tests.serving.storage.stored import STEP, means_of, sample


def pages(store):
    return store._ask(lambda: store._database.connection.execute("PRAGMA page_count").fetchone()[0]).result(5)


def limit_pages(store, most):
    store._ask(lambda: store._database.connection.execute(f"PRAGMA max_page_count={most}").fetchall()).result(5)


def test_a_full_disk_refuses_then_recovers_in_the_same_process(store):
    store.append([sample()]).result(5)
    limit_pages(store, pages(store))
    with pytest.raises(HistoryUnavailableError, match="full"):
        store.append([sample(f"s{n}", second=STEP) for n in range(5000)]).result(5)
    assert "full" in store.failure
    assert means_of(store) == {("a", 0): {"cpu_pct": 50.0}}
    limit_pages(store, 1_000_000)
    store.append([sample(f"s{n}", second=STEP) for n in range(5000)]).result(5)
    assert store.failure is None
    assert len(means_of(store)) == 5001


def steps_taken(store):
    """Steps of one round: until the list is empty, which it must be after a few calls."""
    steps = []
    for _ in range(5):
        taken = store.changed_step_means(10**9, most=2).result(5)
        if not taken:
            return steps
        steps += [means.step for means in taken]
    raise AssertionError("the round does not end")


def test_means_that_cannot_be_stored_are_returned_once_a_round_and_stored_later(store):
    steps = [0, 1, 2]
    store.append([sample(f"s{n}", second=step * STEP) for n in range(300) for step in steps]).result(5)
    limit_pages(store, pages(store))
    assert steps_taken(store) == steps_taken(store) == steps
    assert store.stored_step_means(0, 9).result(5) == []
    limit_pages(store, 1_000_000)
    assert steps_taken(store) == steps
    assert steps_taken(store) == []
    assert [means.step for means in store.stored_step_means(0, 9).result(5)] == steps


def test_samples_that_were_not_stored_do_not_change_the_newest_step_of_a_server(store):
    store.append([sample("s0", second=STEP)]).result(5)
    limit_pages(store, pages(store))
    refused = [sample(f"s{n}", second=9 * STEP) for n in range(5000)]
    with pytest.raises(HistoryUnavailableError, match="full"):
        store.append(refused).result(5)
    assert store.last_step(store.servers["s0"].server_id) == 1
    assert set(store.servers) == {"s0"}
    limit_pages(store, 1_000_000)
    store.append(refused).result(5)
    assert {store.last_step(server.server_id) for server in store.servers.values()} == {9}
