"""Records of requests are checked like rows of files: only a bad cell is left out."""

import numpy as np
import pandas as pd
import pytest

from data_contract import METRICS
from fleet_forecast.contract.checks import examine
from fleet_forecast.contract.times import parse_times
from fleet_forecast.serving.ingest.validation import TimeLimits, check_records

TIME = "2026-11-23T10:00:00Z"


def records(values, **fields):
    return [
        {"timestamp": TIME, "server_name": f"s{n}", "cpu_pct": v, "mem_pct": 50, **fields} for n, v in enumerate(values)
    ]


def cpu_of(batch):
    return [sample.values[METRICS.index("cpu_pct")] for sample in batch.samples]


@pytest.mark.parametrize("value", [180, -1, 1e300, "n.a.", True, [1], {}])
def test_a_value_that_cannot_be_used_is_left_out_and_listed(value):
    batch = check_records(records([10, value, 30, 40]), TimeLimits())
    assert cpu_of(batch) == [10, None, 30, 40]
    assert batch.rejected == []
    assert [(cell.index, cell.field) for cell in batch.left_out] == [(1, "cpu_pct")]
    assert "0 to 100" in batch.left_out[0].reason


@pytest.mark.parametrize(("state", "listed"), [("broken", True), (7, True), (" ", False), ("", False), (None, False)])
def test_another_state_counts_as_null_and_is_listed_unless_it_is_blank(state, listed):
    batch = check_records(records([10], state=state), TimeLimits())
    assert [sample.state for sample in batch.samples] == [None]
    assert [(cell.field, cell.value) for cell in batch.left_out] == ([("state", state)] if listed else [])


def test_a_record_with_a_bad_state_and_no_value_is_rejected_for_its_values():
    batch = check_records([{"timestamp": TIME, "server_name": "a", "state": "broken"}], TimeLimits())
    assert [rejection.field for rejection in batch.rejected] == ["metrics"]


def test_a_whole_number_is_a_server_name_as_in_files():
    batch = check_records([{"timestamp": TIME, "server_name": 17, "cpu_pct": 1}], TimeLimits())
    assert [sample.server_name for sample in batch.samples] == ["17"]


def test_profiles_that_the_fleet_does_not_have_are_noted_as_in_files():
    known = check_records(records([10], profile="database"), TimeLimits())
    other = check_records(records([10], profile="Web_API") + records([10], profile="mainframe"), TimeLimits())
    assert known.notices == []
    assert other.notices == [
        "profile Web_API, mainframe: not a profile of the fleet; only a model that was trained on it uses it"
    ]


def test_a_record_without_another_value_is_rejected():
    batch = check_records([{"timestamp": TIME, "server_name": "a", "cpu_pct": 180}], TimeLimits())
    assert (batch.samples, batch.left_out, batch.rejected[0].field) == ([], [], "cpu_pct")


def test_a_record_without_a_known_metric_is_rejected_with_the_unknown_fields():
    (rejected,) = check_records(
        [{"timestamp": TIME, "server_name": "s1", "cpu": 5, "x" * 300: 1}], TimeLimits()
    ).rejected
    assert rejected.field == "metrics"
    assert rejected.reason.startswith("a record has at least one metric of cpu_pct, mem_pct")
    assert rejected.reason.endswith("; unknown: cpu, " + "x" * 100)
    (nothing,) = check_records([{"timestamp": TIME, "server_name": "s1"}], TimeLimits()).rejected
    assert "unknown" not in nothing.reason


def test_a_value_that_rounding_took_beyond_a_limit_is_the_limit_with_a_notice():
    batch = check_records(records([100.4, -0.05, 50]), TimeLimits())
    assert cpu_of(batch) == [100, 0, 50]
    assert batch.notices == [
        "cpu_pct: 2 values just beyond the range, by rounding, such as 100.4; counted as the limit"
    ]


def test_a_metric_of_which_most_values_cannot_be_used_is_left_out_with_the_likely_factor():
    batch = check_records(records([250, 398, 50]), TimeLimits())
    assert cpu_of(batch) == [None, None, None]
    assert [(cell.index, cell.value) for cell in batch.left_out] == [(0, 250), (1, 398), (2, 50)]
    assert "divide by the number of cores (at least 4 here)" in batch.left_out[2].reason
    assert [sample.values[METRICS.index("mem_pct")] for sample in batch.samples] == [50, 50, 50]


def test_fractions_are_accepted_with_a_notice():
    batch = check_records(records([0.3, 0.9, 0.5]), TimeLimits())
    assert cpu_of(batch) == [0.3, 0.9, 0.5]
    assert batch.notices == ["cpu_pct: no value is outside 0 to 1 %; if these are fractions, multiply by 100"]


@pytest.mark.parametrize("values", [[10, 100.4, 180, 30, -0.2, -5, 99], [250, 398, 50], [0, 100, 50]])
def test_files_and_requests_use_the_same_values(values):
    batch = check_records(records(values), TimeLimits())
    frame = pd.DataFrame({"timestamp": TIME, "server_name": "a", "cpu_pct": np.array(values, dtype=float)})
    if not any("another unit" in notice for notice in batch.notices):
        used = [np.nan if value is None else value for value in cpu_of(batch)]
        np.testing.assert_array_equal(examine(frame).metrics["cpu_pct"], np.float32(used))


FORMS = [
    "2026-11-23t10:00:00z",
    "2026-11-23 10:00:00 UTC",
    "2026-11-23T10:00:00.123456789Z",
    "2026-11-23 11:00:00 +0100",
]


@pytest.mark.parametrize(
    "time",
    [*FORMS, "2026-11-23 11:00:00 +0100", 1_795_428_000, 1_795_428_000_000, 1_795_428_000_000_000, 1_795_428_000.25],
)
def test_files_and_requests_read_the_same_times(time):
    batch = check_records(records([1], timestamp=time), TimeLimits())
    (expected,) = parse_times(pd.Series([time])).instants
    assert batch.samples[0].timestamp_ms == expected.astype("datetime64[ms]").astype(int)
    assert bool(batch.notices[:1]) == (not isinstance(time, str))


@pytest.mark.parametrize("time", [12, -1, 2 * 10**10, True, None, [], "yesterday", "20261123"])
def test_text_that_is_not_a_time_is_rejected(time):
    batch = check_records(records([1], timestamp=time), TimeLimits())
    assert [rejection.field for rejection in batch.rejected] == ["timestamp"]


def test_times_without_a_zone_are_read_in_the_zone_of_the_settings():
    texts = ["2026-07-01 12:00:00", "2026-10-25 02:30:00", "2026-03-29 02:30:00"]
    batches = [check_records(records([1], timestamp=text), TimeLimits(timezone="Europe/Berlin")) for text in texts]
    assert batches[0].samples[0].timestamp_ms == 1_782_900_000_000
    assert ["clock change" in batch.rejected[0].reason for batch in batches[1:]] == [True, True]
    assert "--input-timezone" in check_records(records([1], timestamp=texts[0]), TimeLimits()).rejected[0].reason
