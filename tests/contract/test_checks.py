"""Cells and rows that cannot be used, columns that are refused, and the messages."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_contract import (
    METRIC_SPECS,
    METRICS,
    STATES,
    validate,
)
from fleet_forecast.contract.checks import CellCounts, examine, refusal_of_column
from fleet_forecast.contract.labels import is_server_name
from tests.contract.frames import fleet


def only_violation(frame):
    violations = validate(frame)
    assert len(violations) == 1, violations
    return violations[0]


def only_fault(frame):
    """The one thing that is wrong with some rows or cells; their column is not refused."""
    faults = examine(frame.reset_index(drop=True)).faults
    assert len(faults) == 1, faults
    assert validate(frame) == []
    return faults[0]


def test_a_frame_that_keeps_the_contract_has_no_violation():
    assert validate(fleet(state="healthy", profile="generic", incident=None)) == []


@pytest.mark.parametrize("column", ["timestamp", "server_name"])
def test_a_missing_required_column_is_named_with_the_columns_present(column):
    violation = only_violation(fleet().drop(columns=column))
    assert violation.column == column
    assert "missing" in violation.message
    assert "cpu_pct" in violation.remedy


def test_a_frame_without_any_metric_column_is_refused_with_their_names():
    violation = only_violation(fleet()[["timestamp", "server_name"]])
    assert violation.message.startswith("no metric column (present: ")
    assert all(metric in violation.remedy for metric in METRICS)


def test_metric_columns_without_any_value_do_not_count_as_metrics():
    violation = only_violation(fleet(cpu_pct=None, latency_ms=math.nan))
    assert violation.message == "no value in cpu_pct, latency_ms"


def test_no_rows_are_refused():
    assert only_violation(fleet().iloc[:0]).message == "there are no rows"


def test_text_in_a_metric_column_is_counted_and_shown_with_its_place():
    values = pd.Series([1.0, "n.a.", 3.0, "12", None, "broken", 7.0, 8.0], dtype=object)
    frame = fleet(cpu_pct=values.map(lambda v: v if v is None else str(v)))
    fault = only_fault(frame)
    assert (fault.column, fault.rows, fault.message) == ("cpu_pct", 2, "text in a metric column")
    assert fault.example == "n.a. (row 2, ppml0001, 2026-11-23T10:05:00Z)"
    np.testing.assert_array_equal(examine(frame).metrics["cpu_pct"], [1, math.nan, 3, 12, math.nan, math.nan, 7, 8])


def test_numbers_written_as_text_are_read():
    assert examine(fleet(cpu_pct="12.5")).metrics["cpu_pct"].tolist() == [12.5] * 8


@pytest.mark.parametrize("value", [True, [1.0], {"cpu": 1}])
def test_other_things_than_numbers_in_a_metric_column_are_refused(value):
    listed = validate(fleet(cpu_pct=pd.Series([value] * 8)))
    assert [(v.column, v.rows) for v in listed] == [("cpu_pct", 8), ("cpu_pct", 0)]


@pytest.mark.parametrize("metric", METRICS)
def test_a_cell_outside_the_range_is_not_measured_and_the_edges_are_taken(metric):
    spec = METRIC_SPECS[metric]
    assert examine(fleet(**{metric: [spec.lower, spec.upper] * 4})).faults == []
    below = only_fault(fleet(**{metric: [-2, *[2.0] * 6, -3]}))
    assert (below.column, below.rows) == (metric, 2)
    assert spec.unit in below.message
    frame = fleet(**{metric: [*[2.0] * 7, 1.01 * spec.upper]})
    above = only_fault(frame)
    assert above.example.startswith(f"{1.01 * spec.upper:g} (row 8,")
    np.testing.assert_array_equal(examine(frame).metrics[metric], [*[2.0] * 7, math.nan])


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_a_value_that_is_not_a_finite_float32_counts_as_not_measured(value):
    fault = only_fault(fleet(latency_ms=[value, *[1.0] * 7]))
    assert (fault.rows, fault.message) == (1, "not a finite number")


def test_a_value_that_rounding_took_beyond_a_limit_is_the_limit():
    examined = examine(fleet(cpu_pct=[100.4, -0.05, *[50.0] * 6]))
    assert examined.metrics["cpu_pct"][:2].tolist() == [100.0, 0.0]
    assert [(found.column, found.rows) for found in examined.rounded] == [("cpu_pct", 2)]
    assert examined.faults == []


def test_a_column_of_which_most_cells_cannot_be_used_is_refused_with_the_likely_factor():
    cell, column = validate(fleet(cpu_pct=[250, 398, 320, 180, 210, 50, 60, 70]))
    assert (cell.rows, cell.message) == (5, "outside the range 0 to 100 %")
    assert column.remedy == "where each core counts as 100 %, divide by the number of cores (at least 4 here)"


@pytest.mark.parametrize(
    ("cells", "word"),
    [
        (CellCounts(100, 0, 0, 0.9), "multiply by 100"),
        (CellCounts(99, 0, 0, 0.9), None),  # too few to refuse them: a notice
        (CellCounts(100, 0, 0, 0.1), None),  # an idle fleet
        (CellCounts(100, 0, 0, 1.5), None),
        (CellCounts(1000, 60, 60, 400.0), "cores"),
        (CellCounts(1000, 40, 40, 400.0), None),
        (CellCounts(1000, 501, 0, 50.0), "null where not measured"),
        (CellCounts(10, 6, 6, 3e9), "share in use"),
    ],
)
def test_a_unit_is_recognised_by_the_share_and_the_size_of_the_values(cells, word):
    reason = refusal_of_column(METRIC_SPECS["mem_pct"], cells)
    assert reason is None if word is None else word in reason


def test_nan_and_null_mean_not_measured():
    assert validate(fleet(cpu_pct=[math.nan, *[1.0] * 7], latency_ms=pd.array([None, *[1] * 7], dtype="Int64"))) == []


def test_rows_of_one_server_and_time_that_differ_are_counted_and_the_server_and_time_shown():
    frame = fleet()
    other = frame.iloc[[2, 2, 5]].assign(cpu_pct=3.0)
    violation = only_violation(pd.concat([frame, other], ignore_index=True))
    assert (violation.column, violation.rows) == ("server_name, timestamp", 3)
    assert violation.example == "ppml0001 at 2026-11-23T10:10:00Z (row 9)"


def test_exact_repeats_are_not_a_violation():
    frame = fleet(state="idle", mem_pct=math.nan)
    assert validate(pd.concat([frame, frame.iloc[[2, 2, 5]]], ignore_index=True)) == []


def test_the_same_instant_in_two_zones_is_a_duplicate():
    times = ["2026-11-23T10:00:00Z", "2026-11-23T05:00:00-05:00"]
    assert only_violation(fleet(["a"], 2, timestamp=times)).rows == 1


def test_timestamps_without_zone_are_refused_in_every_form():
    frame = fleet()
    for naive in (
        frame["timestamp"].dt.tz_localize(None),
        frame["timestamp"].dt.strftime("%Y-%m-%d %H:%M:%S"),
        frame["timestamp"].dt.strftime("%Y-%m-%d %H:%M:%S").astype("category"),
    ):
        violation = only_violation(frame.assign(timestamp=naive))
        assert (violation.column, violation.rows, violation.message) == ("timestamp", 8, "the time has no zone")
        assert "2026-11-23T10:00:00Z" in violation.remedy


@pytest.mark.parametrize("text", ["2026-11-23", "2026-11-23T10:00", "2026-11-23 10:00:00.5"])
def test_the_row_of_one_text_without_zone_among_zoned_ones_is_left_out(text):
    times = ["2026-11-23T10:05:00Z", "2026-11-23 10:10:00+00:00", text]
    assert only_fault(fleet(["a"], 3, timestamp=times)).rows == 1
    assert examine(fleet(["a"], 3, timestamp=times)).rows.tolist() == [0, 1]


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01T00:00:00Z", "23.11.2026 10:00Z", ""])
def test_the_row_of_text_that_is_not_a_time_is_left_out(text):
    fault = only_fault(fleet(["a"], 2, timestamp=["2026-11-23T10:00:00Z", text]))
    assert (fault.rows, fault.message) == (1, "not a time in ISO 8601")


@pytest.mark.parametrize("year", ["1500", "1969", "2300", "9999"])
def test_a_time_beyond_those_of_the_contract_is_distinguished_from_text_that_is_not_a_time(year):
    times = fleet()["timestamp"].map(lambda time: time.isoformat().replace("2026", year))
    assert only_violation(fleet(timestamp=times)).message == "the time is not within 1970 to 2199"


def test_small_numbers_as_timestamps_are_refused():
    assert only_violation(fleet(timestamp=range(8))).message.startswith("a number that is not a time since 1970")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("year", [1969, 2200])
def test_times_far_from_today_cost_their_row(unit, year):
    times = pd.DatetimeIndex(np.array([f"{year}-06-01", "2026-06-01"], dtype=f"datetime64[{unit}]")).tz_localize("UTC")
    fault = only_fault(fleet(["a"], 2, timestamp=times))
    assert (fault.rows, fault.remedy) == (1, "check the unit of the times")


def test_rows_without_time_or_name_are_counted_and_left_out():
    times = fleet()["timestamp"].where(np.arange(8) != 3)
    names = fleet()["server_name"].where(np.arange(8) > 1)
    examined = examine(fleet(timestamp=times, server_name=names))
    assert {fault.column: fault.rows for fault in examined.faults} == {"timestamp": 1, "server_name": 2}
    assert examined.rows.tolist() == [2, 4, 5, 6, 7]
    assert [(v.column, v.rows) for v in validate(fleet(server_name=None))] == [("server_name", 8)]


BAD_NAMES = ["", ".", "..", " web1", "web1\n", "web\x001", "we\u202eb", "web\u2028", "\ud800", "a" * 254]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_not_printable_or_too_long_are_refused(name):
    violation = only_violation(fleet([name], 2))
    assert (violation.column, violation.rows) == ("server_name", 2)
    assert "253" in violation.remedy


NAMES = [
    "a",
    "PPML-01.dc1.example.com",
    "host_1:9100",
    "a" * 253,
    "SQL Server 01 (prod)",
    "büro-01",
    "[2001:db8::1]:9100",
]


@pytest.mark.parametrize("name", [*NAMES, "[2001:db8::1]:9100", "fe80::1%eth0", "namespace/pod"])
def test_any_printable_name_is_taken(name):
    assert is_server_name(name)
    assert validate(fleet([name], 2)) == []


def test_whole_numbers_as_names_are_read_as_text():
    assert list(examine(fleet([17, 18])).labels["server_name"].values) == ["17", "18"]
    assert only_violation(fleet([1.5, 2.5])).message == "not text"


def test_a_bad_state_counts_as_null_with_the_list_of_states():
    frame = fleet(state=[None, "Healthy", *STATES[:6]])
    fault = only_fault(frame)
    assert (fault.column, fault.rows, fault.example[:7]) == ("state", 1, "Healthy")
    assert all(state in fault.remedy for state in STATES)
    assert "Healthy" not in examine(frame).labels["state"].values


def test_a_server_with_two_profiles_is_refused():
    violation = only_violation(fleet(profile=["database", None, "web_api", "database"] * 2))
    assert (violation.column, violation.rows) == ("profile", 2)


def test_all_violations_are_reported_at_once():
    frame = fleet(cpu_pct=101.0, latency_ms=-1, state="up", profile=["database", "web_api"] * 4)
    assert {v.column for v in validate(frame)} == {"cpu_pct", "latency_ms", "state", "profile"}


bad_cells: dict[str, list] = {
    "cpu_pct": [-1.0, 100.6, math.inf],
    "latency_ms": [-0.25],
    "state": ["broken", "Offline"],
    "server_name": [" two", "semi\ncolon"],
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_counts_agree_with_a_plain_loop_over_rows(data):
    frame = fleet(["a1", "b2", "c3"], 5, state="healthy").sample(frac=1, random_state=1).reset_index(drop=True)
    frame = frame.astype({"state": object, "server_name": object})
    for column, row in data.draw(st.lists(st.tuples(st.sampled_from(sorted(bad_cells)), st.integers(0, 14)))):
        frame.loc[row, column] = data.draw(st.sampled_from(bad_cells[column]))

    expected, kept = Counter(), []
    for number, row in enumerate(frame.to_dict("records")):
        for metric in ("cpu_pct", "latency_ms"):
            value, spec = row[metric], METRIC_SPECS[metric]
            if math.isinf(value):
                expected[metric, "not a finite number"] += 1
            elif value < spec.lower or value > spec.upper:
                expected[metric, "outside"] += 1
        expected["state", "not a state"] += row["state"] not in STATES
        usable = row["server_name"].isprintable() and row["server_name"] == row["server_name"].strip()
        expected["server_name", "not a server name"] += not usable
        kept += [number] if usable else []

    found, examined = Counter(), examine(frame)
    for fault in examined.faults:
        found[fault.column, fault.message if "outside" not in fault.message else "outside"] += fault.rows
    assert found == +expected
    assert examined.rows.tolist() == kept
