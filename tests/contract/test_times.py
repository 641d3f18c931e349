"""Times in every form in which files have them."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.contract.times import UNITS, check_zone, iso_text, number_unit, parse_times

TEN = np.datetime64("2026-11-23T10:00:00", "ns")


def parsed(values, timezone=None):
    return parse_times(pd.Series(values), timezone)


FORMS = [
    "2026-11-23T10:00:00Z", "2026-11-23t10:00:00z", "2026-11-23 10:00:00 UTC", "2026-11-23 10:00:00 GMT",
    "2026-11-23T10:00:00.000000000Z", "2026-11-23T11:00:00+01:00", "2026-11-23 11:00:00 +0100",
    "2026-11-23 10:00:00+00", "2026-11-23 10:00:00 +0000 UTC", "20261123T100000Z", "2026-11-23T10Z",
    " 2026-11-23T10:00Z ", "1795428000", "1795428000.0", "1795428000000", "1795428000000000", "1795428000000000000",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_is_the_same_instant(form):
    found = parsed([form])
    assert found.instants.tolist() == np.array([TEN]).tolist()
    assert found.faults == []


def test_nine_digits_of_a_second_are_kept():
    (instant,) = parsed(["2026-11-23T10:00:00.123456789Z"]).instants
    assert instant - TEN == np.timedelta64(123456789, "ns")


@given(st.integers(200_000_000, 7_000_000_000), st.integers(0, 3), st.sampled_from(["int64", "float64", "str"]))
def test_the_unit_of_a_number_is_told_by_its_size(seconds, place, kind):
    found = parsed(pd.Series([seconds * 1000**place]).astype(kind))
    expected = np.datetime64(datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None), "ns")
    assert abs((found.instants[0] - expected).astype(int)) <= (0 if kind != "float64" else 1024)
    assert found.units == {UNITS[place]}


@pytest.mark.parametrize("number", [0, 12, 99_999_999, 2 * 10**10, 20261123, 20261123100000, -5])
def test_a_number_between_two_units_is_not_a_time(number):
    assert number_unit(number) is None
    found = parsed([number, 1_795_428_000])
    assert np.isnat(found.instants).tolist() == [True, False]
    assert [rows.tolist() for rows, _, _ in found.faults] == [[True, False]]


def test_null_is_a_missing_time_and_no_wrong_number():
    found = parsed([np.nan, 1_795_428_000.5])
    assert [message for _, message, _ in found.faults] == ["the time is missing"]
    assert found.instants[1] - TEN == np.timedelta64(500, "ms")


def test_a_stated_zone_holds_for_times_without_one_only():
    texts = ["2026-07-01 12:00", "2026-07-01T12:00:00Z", "2026-12-01 12:00"]
    hours = [10, 12, 11]
    for values in (texts, pd.Series(texts, dtype="category")):
        found = parse_times(pd.Series(values), "Europe/Berlin")
        assert [pd.Timestamp(instant).hour for instant in found.instants] == hours
        assert found.faults == []


@pytest.mark.parametrize("as_text", [True, False])
def test_local_times_that_the_clock_change_leaves_unclear_are_left_out(as_text):
    local = pd.Series(pd.to_datetime(["2026-10-25 02:30", "2026-03-29 02:30", "2026-10-25 04:00", None]))
    found = parse_times(local.dt.strftime("%Y-%m-%d %H:%M") if as_text else local, "Europe/Berlin")
    assert np.isnat(found.instants).tolist() == [True, True, False, True]
    assert {message for _, message, _ in found.faults} == {
        "the clock change of Europe/Berlin leaves the time unclear",
        "the time is missing",
    }


@given(st.text(max_size=30))
def test_no_text_breaks_the_parser(text):
    assert len(parsed([text, "2026-11-23T10:00:00Z"]).instants) == 2
    iso_text(text)


def test_an_unknown_zone_is_refused_with_its_name():
    with pytest.raises(ValueError, match="'Berlin' is not a time zone"):
        check_zone("Berlin")
