"""Business time of UTC timestamps: the fleet's time zone, daylight saving, holidays, market hours."""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import holidays
import numpy as np
import numpy.typing as npt

BUSINESS_DAY, WEEKEND_DAY, HOLIDAY = 0, 1, 2  # kinds of day; a holiday at the weekend is a weekend day
MARKET_OPEN_MINUTE, MARKET_CLOSE_MINUTE = 9 * 60 + 30, 16 * 60
_EPOCH = date(1970, 1, 1)


class BusinessTime(NamedTuple):
    """Calendar of the fleet's business time zone, arrays of the timestamps' shape."""

    minute_of_day: npt.NDArray[np.int16]
    day_of_week: npt.NDArray[np.int8]  # Monday is 0
    is_holiday: npt.NDArray[np.bool_]  # a holiday of the New York Stock Exchange
    market_open: npt.NDArray[np.bool_]  # 09:30-16:00 on business days


def business_time(timestamps_utc: npt.NDArray[np.datetime64], timezone: str) -> BusinessTime:
    """Business time of UTC timestamps (datetime64, any shape), daylight saving and market holidays included.

    Raises ValueError naming an unknown time zone.
    """
    utc = np.asarray(timestamps_utc).astype("datetime64[s]")
    bounds = (utc.min(), utc.max()) if utc.size else (np.datetime64(0, "s"),) * 2
    first_year, last_year = (bound.astype(object).year for bound in bounds)
    starts, offsets = _utc_offsets(timezone, first_year, last_year)
    local = utc + offsets[np.searchsorted(starts, utc, side="right") - 1]
    days = local.astype("datetime64[D]")
    minute_of_day = ((local - days) // np.timedelta64(60, "s")).astype(np.int16)
    day_number = days.astype(np.int64)
    day_of_week = ((day_number + 3) % 7).astype(np.int8)  # 1970-01-01 was a Thursday
    is_holiday = _market_holidays(first_year - 1, last_year + 1)[day_number - _first_day(first_year - 1)]
    in_hours = (minute_of_day >= MARKET_OPEN_MINUTE) & (minute_of_day < MARKET_CLOSE_MINUTE)
    return BusinessTime(minute_of_day, day_of_week, is_holiday, in_hours & (day_of_week < 5) & ~is_holiday)


def kind_of_day(when: BusinessTime) -> npt.NDArray[np.int64]:
    """BUSINESS_DAY, WEEKEND_DAY or HOLIDAY, of the timestamps' shape."""
    return np.where(when.day_of_week >= 5, WEEKEND_DAY, np.where(when.is_holiday, HOLIDAY, BUSINESS_DAY))


def clock_changes(
    first_utc: np.datetime64, last_utc: np.datetime64, timezone: str
) -> list[tuple[np.datetime64, np.timedelta64]]:
    """Changes of the UTC offset after the first and up to the last time (UTC): when, and the change of the offset.

    Raises ValueError naming an unknown time zone.
    """
    first, last = (time.astype("datetime64[s]") for time in (first_utc, last_utc))
    starts, offsets = _utc_offsets(timezone, first.astype(object).year, last.astype(object).year)
    ahead = np.diff(offsets)
    return [(start, by) for start, by in zip(starts[1:], ahead, strict=True) if first < start <= last and by]


def _first_day(year: int) -> int:
    return (date(year, 1, 1) - _EPOCH).days


@functools.lru_cache(maxsize=64)
def _market_holidays(first_year: int, last_year: int) -> npt.NDArray[np.bool_]:
    """[day] whether it is a holiday, from 1 January of the first year to 31 December of the last."""
    first_day = _first_day(first_year)
    flags = np.zeros(_first_day(last_year + 1) - first_day, dtype=np.bool_)
    for day in holidays.financial_holidays("NYSE", years=range(first_year, last_year + 1)):
        position = (day - _EPOCH).days - first_day
        if 0 <= position < flags.size:  # a New Year's Day may be observed in the year before
            flags[position] = True
    flags.flags.writeable = False
    return flags


@functools.lru_cache(maxsize=64)
def _utc_offsets(
    timezone: str, first_year: int, last_year: int
) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.timedelta64]]:
    """Offsets from UTC and their start times (UTC); the first offset starts before the first year."""
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):  # no such zone, no zone name, a folder of zones
        msg = f"unknown time zone {timezone!r}; use an IANA name such as America/New_York or UTC"
        raise ValueError(msg) from None

    def offset(instant: datetime) -> timedelta:
        return instant.astimezone(zone).utcoffset() or timedelta()

    day = datetime(first_year, 1, 1, tzinfo=UTC) - timedelta(days=1)
    end = datetime(last_year, 12, 31, tzinfo=UTC) + timedelta(days=1)
    starts, offsets = [day], [offset(day)]
    while day < end:
        next_day = day + timedelta(days=1)
        if offset(next_day) != offsets[-1]:
            before, after = day, next_day
            while after - before > timedelta(seconds=1):
                middle = (before + (after - before) / 2).replace(microsecond=0)
                before, after = (middle, after) if offset(middle) == offsets[-1] else (before, middle)
            starts.append(after)
            offsets.append(offset(next_day))
        day = next_day
    instants = np.array([start.replace(tzinfo=None) for start in starts], dtype="datetime64[s]")
    return instants, np.array(offsets, dtype="timedelta64[s]")
