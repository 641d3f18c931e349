"""Business time against the zone database; market hours and holidays."""

from __future__ import annotations

from datetime import UTC
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.contract.calendar import business_time

ZONES = ("America/New_York", "Europe/London", "Asia/Kolkata", "Australia/Lord_Howe", "UTC")


@given(
    st.sampled_from(ZONES),
    st.lists(st.integers(820_540_800, 2_082_758_400), min_size=1, max_size=20),
)
def test_business_time_agrees_with_the_zone_database(zone: str, instants: list[int]) -> None:
    stamps = np.array(instants, dtype="datetime64[s]")
    when = business_time(stamps, zone)
    for position, stamp in enumerate(stamps):
        local = stamp.astype(object).replace(tzinfo=UTC).astimezone(ZoneInfo(zone))
        assert when.minute_of_day[position] == local.hour * 60 + local.minute
        assert when.day_of_week[position] == local.weekday()


def test_business_time_is_exact_to_the_second_where_daylight_saving_changes() -> None:
    stamps = np.array(["2026-03-08T06:59:59", "2026-03-08T07:00:00", "2026-11-01T05:59:59", "2026-11-01T06:00:00"])
    when = business_time(stamps.astype("datetime64[s]"), "America/New_York")
    assert when.minute_of_day.tolist() == [119, 180, 119, 60]


def test_business_time_keeps_any_shape_and_that_of_no_times() -> None:
    for shape in ((), (0,), (2, 0), (2, 3)):
        when = business_time(np.full(shape, np.datetime64("2026-09-14T13:30")), "America/New_York")
        assert {array.shape for array in when} == {shape}


def test_the_market_is_open_on_business_days_only() -> None:
    def is_open(stamp: str) -> bool:
        return bool(business_time(np.array(np.datetime64(stamp)), "America/New_York").market_open)

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
        business_time(np.array(["2026-01-01"], dtype="datetime64[s]"), zone)
