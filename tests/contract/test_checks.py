"""Data that the contract refuses, and the messages."""

import math
import re
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
from tests.contract.frames import fleet


def only_violation(frame):
    violations = validate(frame)
    assert len(violations) == 1, violations
    return violations[0]


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
    violation = only_violation(fleet(cpu_pct=values.map(lambda v: v if v is None else str(v))))
    assert (violation.column, violation.rows, violation.message) == ("cpu_pct", 2, "text in a metric column")
    assert violation.example == "n.a. (row 2, ppml0001, 2026-11-23T10:05:00Z)"


def test_numbers_written_as_text_are_refused():
    violation = only_violation(fleet(cpu_pct="12.5"))
    assert (violation.rows, violation.message) == (8, "numbers written as text")


@pytest.mark.parametrize("value", [True, [1.0], {"cpu": 1}])
def test_other_things_than_numbers_in_a_metric_column_are_refused(value):
    violation = only_violation(fleet(cpu_pct=pd.Series([value] * 8)))
    assert (violation.column, violation.rows) == ("cpu_pct", 8)


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_is_refused_outside_its_range_and_taken_on_its_edges(metric):
    spec = METRIC_SPECS[metric]
    assert validate(fleet(**{metric: [spec.lower, spec.upper] * 4})) == []
    below = only_violation(fleet(**{metric: [-0.5, *[1.0] * 6, -3]}))
    assert (below.column, below.rows) == (metric, 2)
    assert spec.unit in below.message
    above = only_violation(fleet(**{metric: [*[1.0] * 7, 1.01 * spec.upper]}))
    assert (above.column, above.rows) == (metric, 1)
    assert above.example.startswith(f"{1.01 * spec.upper:g} (row 8,")


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_what_is_no_finite_float32_is_refused(value):
    violation = only_violation(fleet(latency_ms=[value, *[1.0] * 7]))
    assert (violation.rows, violation.message) == (1, "not a finite number")


def test_nan_and_null_mean_not_measured():
    assert validate(fleet(cpu_pct=[math.nan, *[1.0] * 7], latency_ms=pd.array([None, *[1] * 7], dtype="Int64"))) == []


def test_duplicate_rows_are_counted_and_the_server_and_time_shown():
    frame = fleet()
    violation = only_violation(pd.concat([frame, frame.iloc[[2, 2, 5]]], ignore_index=True))
    assert (violation.column, violation.rows) == ("server_name, timestamp", 3)
    assert violation.example == "ppml0001 at 2026-11-23T10:10:00Z (row 9)"


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
def test_one_text_without_zone_among_zoned_ones_is_found(text):
    times = ["2026-11-23T10:05:00Z", "2026-11-23 10:10:00+00:00", text]
    assert only_violation(fleet(["a"], 3, timestamp=times)).rows == 1


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01T00:00:00Z", "23.11.2026 10:00Z", ""])
def test_text_that_is_no_time_is_refused(text):
    violation = only_violation(fleet(["a"], 2, timestamp=["2026-11-23T10:00:00Z", text]))
    assert (violation.rows, violation.message) == (1, "not a time in ISO 8601")


@pytest.mark.parametrize("year", ["1500", "1969", "2300", "9999"])
def test_a_time_beyond_those_of_the_contract_is_distinguished_from_text_that_is_no_time(year):
    times = fleet()["timestamp"].map(lambda time: time.isoformat().replace("2026", year))
    assert only_violation(fleet(timestamp=times)).message == "the time is not within 1970 to 2199"


def test_numbers_as_timestamps_are_refused():
    assert only_violation(fleet(timestamp=range(8))).message == "not a time but int64"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("year", [1969, 2200])
def test_times_far_from_today_are_refused(unit, year):
    times = pd.DatetimeIndex(np.array([f"{year}-06-01", "2026-06-01"], dtype=f"datetime64[{unit}]")).tz_localize("UTC")
    violation = only_violation(fleet(["a"], 2, timestamp=times))
    assert (violation.rows, violation.remedy) == (1, "check the unit of the times")


def test_missing_times_and_names_are_counted():
    times = fleet()["timestamp"].where(np.arange(8) != 3)
    names = fleet()["server_name"].where(np.arange(8) > 1)
    found = {v.column: v.rows for v in validate(fleet(timestamp=times, server_name=names))}
    assert found == {"timestamp": 1, "server_name": 2}
    assert [(v.column, v.rows) for v in validate(fleet(server_name=None))] == [("server_name", 8)]


@pytest.mark.parametrize("name", ["", ".", "..", "web 1", "wéb1", "web/1", "web1\n", "a" * 254])
def test_bad_server_names_are_refused(name):
    violation = only_violation(fleet([name], 2))
    assert (violation.column, violation.rows) == ("server_name", 2)
    assert "253" in violation.remedy


@pytest.mark.parametrize("name", ["a", "PPML-01.dc1.example.com", "host_1:9100", "a" * 253])
def test_good_server_names_are_taken(name):
    assert validate(fleet([name], 2)) == []


def test_names_that_are_no_text_are_refused():
    assert only_violation(fleet([17, 18])).message == "not text"


def test_a_bad_state_is_refused_with_the_list_of_states():
    violation = only_violation(fleet(state=[None, "Healthy", *STATES[:6]]))
    assert (violation.column, violation.rows, violation.example[:7]) == ("state", 1, "Healthy")
    assert all(state in violation.remedy for state in STATES)


def test_a_server_with_two_profiles_is_refused():
    violation = only_violation(fleet(profile=["database", None, "web_api", "database"] * 2))
    assert (violation.column, violation.rows) == ("profile", 2)


def test_all_violations_are_reported_at_once():
    frame = fleet(cpu_pct=101.0, latency_ms=-1, state="up", server_name="web 1")
    assert {v.column for v in validate(frame)} == {
        "cpu_pct",
        "latency_ms",
        "state",
        "server_name",
        "server_name, timestamp",
    }


bad_cells: dict[str, list] = {
    "cpu_pct": [-1.0, 100.5, math.inf],
    "latency_ms": [-0.25],
    "state": ["broken", "Offline"],
    "server_name": ["two words", "semi;colon"],
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_counts_agree_with_a_plain_loop_over_rows(data):
    frame = fleet(["a1", "b2", "c3"], 5, state="healthy").sample(frac=1, random_state=1).reset_index(drop=True)
    frame = frame.astype({"state": object, "server_name": object})
    for column, row in data.draw(st.lists(st.tuples(st.sampled_from(sorted(bad_cells)), st.integers(0, 14)))):
        frame.loc[row, column] = data.draw(st.sampled_from(bad_cells[column]))

    expected, seen = Counter(), set()
    for row in frame.to_dict("records"):
        for metric in ("cpu_pct", "latency_ms"):
            value, spec = row[metric], METRIC_SPECS[metric]
            if math.isinf(value):
                expected[metric, "not a finite number"] += 1
            elif value < spec.lower or value > spec.upper:
                expected[metric, "outside"] += 1
        expected["state", "not a state"] += row["state"] not in STATES
        expected["server_name", "not a server name"] += re.fullmatch(r"[\w.:-]+", row["server_name"]) is None
        key = (row["server_name"], row["timestamp"])
        expected["server_name, timestamp", "the server has another row of the same time"] += key in seen
        seen.add(key)

    found = Counter()
    for violation in validate(frame):
        found[violation.column, violation.message if "outside" not in violation.message else "outside"] += (
            violation.rows
        )
    assert found == +expected
