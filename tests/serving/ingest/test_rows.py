"""Rows of decoders: the same rule as for JSON records, value by value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_contract import METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.ingest.rows import check_rows
from fleet_forecast.serving.ingest.tally import MAX_NAMES, IngestTally, Protocol
from fleet_forecast.serving.ingest.validation import RefusedServer, TimeLimits, check_records
from fleet_forecast.sources.protocols.received import ReceivedSamples, RefusedSamples

NOW = 1_800_000_000
LIMITS = TimeLimits(0, NOW * 1000)


def received(**rows):
    """Rows at NOW by server; values by metric."""
    found = ReceivedSamples()
    for server, values in rows.items():
        row = found.row(server, NOW * 1000)
        for metric, value in values.items():
            row[METRICS.index(metric)] = value
    return found


def checked(found, refusal_of=lambda _name: None):
    return check_rows(found, LIMITS, refusal_of)


@given(
    name=st.one_of(st.text(max_size=6), st.sampled_from(["a", ".a", "..", "x y", " x", "é\n", "a" * 253, "a" * 254])),
    seconds=st.sampled_from([0, NOW, NOW + 1, -1]),
    metric=st.sampled_from(METRICS),
    value=st.one_of(
        st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([-0.0, 100.0, 100.1, 100.6, 1e9, 2e9])
    ),
)
def test_a_row_is_accepted_where_the_record_is(name, seconds, metric, value):
    found = ReceivedSamples()
    found.row(name, seconds * 1000)[METRICS.index(metric)] = value
    rows = checked(found)
    timestamp = iso(seconds) if seconds >= 0 else "1969-12-31T23:59:59Z"
    records = check_records([{"timestamp": timestamp, "server_name": name, metric: value}], LIMITS)
    assert rows.samples == records.samples
    assert [rejection.field for rejection in rows.rejected] == [rejection.field for rejection in records.rejected]
    assert [notice for notice in records.notices if "by rounding" in notice] == rows.notices


def test_a_bad_value_is_left_out_and_rows_of_a_refused_server_are_rejected():
    found = received(a={"cpu_pct": 180.0, "mem_pct": 5.0}, b={"cpu_pct": 1.0, "mem_pct": 2.0}, c={"cpu_pct": -1.0})
    found.refused.append(RefusedSamples("server_name", "up", "no label", 3))
    batch = checked(found, lambda name: RefusedServer("not yours") if name == "b" else None)
    assert [(sample.server_name, sample.values[:2]) for sample in batch.samples] == [("a", (None, 5.0))]
    assert [(each.index, each.field) for each in batch.left_out] == [(0, "cpu_pct")]
    assert [(each.index, each.field) for each in batch.rejected] == [
        (1, "server_name"), (2, "cpu_pct"), (3, "server_name")
    ]  # fmt: skip
    assert [each.index for each in batch.refusals] == [0, 1, 2, 3]
    assert (batch.stored_samples, batch.refused_servers) == (1, {"b": "not yours"})
    assert batch.rejected_samples == {"cpu_pct": 2, "server_name": 2 + 3}


def test_points_behind_a_value_are_counted():
    found = received(a={"cpu_pct": 50.0, "mem_pct": 500.0})
    found.samples["a", NOW * 1000] = [8, 3, 0, 0, 0, 0]
    batch = checked(found)
    assert (batch.stored_samples, batch.rejected_samples) == (8, {"mem_pct": 3})


@pytest.mark.parametrize("instant", [10**30, -(10**30), -(2**63)])
def test_a_time_of_any_size_is_rejected(instant):
    found = ReceivedSamples()
    found.row("a", instant)[0] = 1.0
    assert [rejection.field for rejection in checked(found).rejected] == ["timestamp"]


def test_names_that_were_left_out_are_bounded():
    tally = IngestTally()
    tally.note_unused(Protocol.OTLP, (f"{n}" + "x" * 300 for n in range(500)))
    tally.note_refused(Protocol.OTLP, "web1", "why")
    first, *others = tally.left_out()
    assert first == {"protocol": "otlp", "name": "web1", "reason": "why"}
    assert len(others) == MAX_NAMES
    assert all(len(each["name"]) == 200 for each in others)
