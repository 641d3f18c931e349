"""Business time against the zone database; market hours and holidays."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.contract.calendar import (
    DEFAULT_CALENDAR,
    HOLIDAY,
    WEEKEND_DAY,
    BusinessCalendar,
    business_time,
    kind_of_day,
)

ZONES = ("America/New_York", "Europe/London", "Asia/Kolkata", "Australia/Lord_Howe", "UTC")


@given(
    st.sampled_from(ZONES),
    st.lists(st.integers(820_540_800, 2_082_758_400), min_size=1, max_size=20),
)
def test_business_time_agrees_with_the_zone_database(zone: str, instants: list[int]) -> None:
    stamps = np.array(instants, dtype="datetime64[s]")
    when = business_time(stamps, BusinessCalendar(zone))
    for position, stamp in enumerate(stamps):
        local = stamp.astype(object).replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
        assert when.minute_of_day[position] == local.hour * 60 + local.minute
        assert when.day_of_week[position] == local.weekday()


def test_business_time_is_exact_to_the_second_where_daylight_saving_changes() -> None:
    stamps = np.array(["2026-03-08T06:59:59", "2026-03-08T07:00:00", "2026-11-01T05:59:59", "2026-11-01T06:00:00"])
    when = business_time(stamps.astype("datetime64[s]"), DEFAULT_CALENDAR)
    assert when.minute_of_day.tolist() == [119, 180, 119, 60]


def test_business_time_keeps_any_shape_and_that_of_no_times() -> None:
    for shape in ((), (0,), (2, 0), (2, 3)):
        when = business_time(np.full(shape, np.datetime64("2026-09-14T13:30")), DEFAULT_CALENDAR)
        assert {array.shape for array in when} == {shape}


def test_the_market_is_open_on_business_days_only() -> None:
    def is_open(stamp: str) -> bool:
        return bool(business_time(np.array(np.datetime64(stamp)), DEFAULT_CALENDAR).market_open)

    assert is_open("2026-11-25T14:30")
    assert not is_open("2026-11-25T14:29")
    assert is_open("2026-11-25T20:59")
    assert not is_open("2026-11-25T21:00")
    assert not is_open("2026-11-26T15:00"), "Thanksgiving"
    assert not is_open("2026-11-28T15:00"), "Saturday"
    assert not is_open("2021-12-24T15:00"), "Christmas observed"


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "America", "New York"])
def test_an_unknown_time_zone_is_named_with_the_remedy(zone: str) -> None:
    with pytest.raises(ValueError, match=r"unknown time zone .*; use an IANA name such as America/New_York"):
        BusinessCalendar(zone)


BERLIN = BusinessCalendar(
    "Europe/Berlin",
    ("DE-BY", "2026-12-24"),
    opens=8 * 60,
    closes=18 * 60,
    early_closes=(("2026-12-31", 14 * 60),),
)


@pytest.mark.parametrize(
    ("local", "is_open"),
    [
        ("2026-12-23T07:59+01:00", False),
        ("2026-12-23T08:00+01:00", True),
        ("2026-07-01T17:59+02:00", True),
        ("2026-07-01T18:00+02:00", False),
        ("2026-12-24T10:00+01:00", False),  # an own date
        ("2026-01-06T10:00+01:00", False),  # Epiphany, in Bavaria
        ("2026-12-31T13:59+01:00", True),
        ("2026-12-31T14:00+01:00", False),  # closes early
        ("2026-11-26T10:00+01:00", True),  # Thanksgiving is no holiday here
    ],
)
def test_a_calendar_has_its_own_hours_holidays_and_early_closes(local: str, is_open: bool) -> None:
    utc = np.array([np.datetime64(datetime.fromisoformat(local).astimezone(UTC).replace(tzinfo=None))])
    assert business_time(utc, BERLIN).market_open.tolist() == [is_open]


def test_a_weekend_may_be_any_days_and_half_days_close_where_the_exchange_has_them() -> None:
    gulf = BusinessCalendar("Asia/Riyadh", ("SA",), weekend=(4, 5), opens=0, closes=24 * 60)
    days = np.array(["2026-11-27", "2026-11-28", "2026-11-29", "2026-09-23"], dtype="datetime64[s]")
    when = business_time(days, gulf)
    assert kind_of_day(when).tolist() == [WEEKEND_DAY, WEEKEND_DAY, 0, HOLIDAY]
    assert when.market_open.tolist() == [False, False, True, False]
    half = BusinessCalendar(half_days_close=13 * 60)
    after_thanksgiving = np.array(["2026-11-27T17:59", "2026-11-27T18:00"], dtype="datetime64[s]")
    assert business_time(after_thanksgiving, half).market_open.tolist() == [True, False]
    assert business_time(after_thanksgiving, DEFAULT_CALENDAR).market_open.tolist() == [True, True]


@pytest.mark.parametrize("calendar", [DEFAULT_CALENDAR, BERLIN, BusinessCalendar(holidays=(), half_days_close=780)])
def test_a_recorded_calendar_is_read_back(calendar: BusinessCalendar) -> None:
    assert BusinessCalendar.of_record({"calendar": calendar.as_document()}) == calendar
    assert BusinessCalendar.of_record({"timezone": "UTC"}) == BusinessCalendar("UTC"), "as earlier versions recorded it"


@pytest.mark.parametrize("entry", ["ZZ", "DE-QQ", "NASDAQ?", "2026-13-01"])
def test_unknown_holidays_are_named(entry: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(entry))):
        BusinessCalendar(holidays=(entry,))
