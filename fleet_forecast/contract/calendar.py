"""Business time of UTC timestamps: a fleet's time zone, daylight saving, weekend, holidays and business hours."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import holidays
import numpy as np
import numpy.typing as npt

BUSINESS_DAY, WEEKEND_DAY, HOLIDAY = 0, 1, 2  # kinds of day; a holiday at the weekend is a weekend day
DAYS_OF_WEEK = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class BusinessCalendar:
    """The calendar that a fleet's demand follows; the default is that of the New York Stock Exchange.

    timezone: IANA name. holidays: codes of countries (DE), of their parts (DE-BY) or of exchanges (NYSE) in the
    package holidays, and own dates as text (2026-12-24). weekend: days of the week, Monday is 0. opens, closes:
    business hours, minutes of the day. early_closes: (date as text, closing minute). half_days_close: closing minute
    on the half days of the codes in `holidays`; None: they are whole days. Raises ValueError naming an unknown code or
    time zone.
    """

    timezone: str = "America/New_York"
    holidays: tuple[str, ...] = ("NYSE",)
    weekend: tuple[int, ...] = (5, 6)
    opens: int = 9 * 60 + 30
    closes: int = 16 * 60
    early_closes: tuple[tuple[str, int], ...] = ()
    half_days_close: int | None = None

    def __post_init__(self) -> None:
        _zone(self.timezone)
        for entry in self.holidays:
            holidays_of(entry, 2000, 2000)

    def as_document(self) -> dict[str, Any]:
        """The calendar as fleet.toml, metadata and model directories have it."""
        closes = {day: clock_text(minute) for day, minute in self.early_closes}
        return {
            "timezone": self.timezone,
            "holidays": list(self.holidays),
            "weekend": [DAYS_OF_WEEK[day] for day in self.weekend],
            "business_hours": f"{clock_text(self.opens)}-{clock_text(self.closes)}",
            "early_closes": closes,
            **({} if self.half_days_close is None else {"half_days_close": clock_text(self.half_days_close)}),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> BusinessCalendar:
        """The calendar that metadata or a model recorded; earlier versions recorded the time zone alone.

        Raises ValueError, KeyError or TypeError if it is not one.
        """
        return cls.from_document(record["calendar"]) if record.get("calendar") else cls(record["timezone"])

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> BusinessCalendar:
        """The calendar of `as_document`. Raises ValueError, KeyError or TypeError if it is not one."""
        opens, _, closes = document["business_hours"].partition("-")
        half = document.get("half_days_close")
        return cls(
            timezone=document["timezone"],
            holidays=tuple(document["holidays"]),
            weekend=tuple(DAYS_OF_WEEK.index(day) for day in document["weekend"]),
            opens=minute_of(opens),
            closes=minute_of(closes),
            early_closes=tuple(sorted((day, minute_of(clock)) for day, clock in document["early_closes"].items())),
            half_days_close=None if half is None else minute_of(half),
        )


def minute_of(clock: str) -> int:
    """Minute of the day of "HH:MM", up to 24:00. Raises ValueError with the remedy."""
    hour, colon, minute = clock.strip().partition(":")
    if not (colon and hour.isdecimal() and minute.isdecimal() and len(minute) == 2):
        raise ValueError(f"{clock!r} is not a time of the day; write it as 08:00")
    found = int(hour) * 60 + int(minute)
    if int(minute) > 59 or found > 24 * 60:
        raise ValueError(f"{clock!r} is not a time of the day; write it as 08:00, at most 24:00")
    return found


def clock_text(minute: int) -> str:
    """A minute of the day as "HH:MM"."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


class LocalTime(NamedTuple):
    """Timestamps in a time zone, arrays of their shape."""

    day: npt.NDArray[np.int64]  # since 1970
    minute_of_day: npt.NDArray[np.int16]
    day_of_week: npt.NDArray[np.int8]  # Monday is 0


class BusinessTime(NamedTuple):
    """Timestamps in a business calendar, arrays of their shape."""

    minute_of_day: npt.NDArray[np.int16]
    day_of_week: npt.NDArray[np.int8]  # Monday is 0
    is_weekend: npt.NDArray[np.bool_]
    is_holiday: npt.NDArray[np.bool_]
    market_open: npt.NDArray[np.bool_]  # business hours of a business day


def local_time(timestamps_utc: npt.NDArray[np.datetime64], timezone: str) -> LocalTime:
    """Local time of UTC timestamps (datetime64, any shape). Raises ValueError naming an unknown time zone."""
    utc = np.asarray(timestamps_utc).astype("datetime64[s]")
    starts, offsets = _utc_offsets(timezone, *_years(utc))
    local = utc + offsets[np.searchsorted(starts, utc, side="right") - 1]
    days = local.astype("datetime64[D]")
    minute_of_day = ((local - days) // np.timedelta64(60, "s")).astype(np.int16)
    day_number = days.astype(np.int64)
    return LocalTime(day_number, minute_of_day, ((day_number + 3) % 7).astype(np.int8))  # 1970-01-01 was a Thursday


def business_time(timestamps_utc: npt.NDArray[np.datetime64], calendar: BusinessCalendar) -> BusinessTime:
    """Business time of UTC timestamps (datetime64, any shape), daylight saving and holidays included."""
    day, minute_of_day, day_of_week = local_time(timestamps_utc, calendar.timezone)
    first_year, last_year = _years(np.asarray(timestamps_utc).astype("datetime64[s]"))
    is_holiday, closes = _days(calendar, first_year - 1, last_year + 1)
    at = day - _first_day(first_year - 1)
    is_weekend = np.isin(day_of_week, calendar.weekend)
    in_hours = (minute_of_day >= calendar.opens) & (minute_of_day < closes[at])
    return BusinessTime(
        minute_of_day, day_of_week, is_weekend, is_holiday[at], in_hours & ~is_weekend & ~is_holiday[at]
    )


def kind_of_day(when: BusinessTime) -> npt.NDArray[np.int64]:
    """BUSINESS_DAY, WEEKEND_DAY or HOLIDAY, of the timestamps' shape."""
    return np.where(when.is_weekend, WEEKEND_DAY, np.where(when.is_holiday, HOLIDAY, BUSINESS_DAY))


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


def holidays_of(entry: str, first_year: int, last_year: int, half_days: bool = False) -> list[date]:
    """Days of one entry of BusinessCalendar.holidays; half_days: those on which it closes early, instead.

    Raises ValueError naming an entry that is neither a date nor a code of the package holidays.
    """
    if entry[:1].isdecimal():
        try:
            return [] if half_days else [date.fromisoformat(entry)]
        except ValueError:
            raise ValueError(f"{entry!r} is not a date; write it as 2026-12-24") from None
    country, _, part = entry.partition("-")
    known = holidays.country_holidays if country in holidays.list_supported_countries() else holidays.financial_holidays
    try:
        years = range(first_year, last_year + 1)
        found = known(country, part or None, years=years)
    except NotImplementedError:
        remedy = "use the code of a country (DE), of a part of one (DE-BY) or of an exchange (NYSE), or dates"
        raise ValueError(f"{entry!r} is not known to the package holidays; {remedy}") from None
    if half_days:
        try:
            found = known(country, part or None, years=years, categories=("half_day",))
        except ValueError:  # it has no half days
            return []
    return list(found)


def _years(utc: npt.NDArray[np.datetime64]) -> tuple[int, int]:
    """First and last year of some times."""
    bounds = (utc.min(), utc.max()) if utc.size else (np.datetime64(0, "s"),) * 2
    first_year, last_year = (bound.astype(object).year for bound in bounds)
    return first_year, last_year


def _first_day(year: int) -> int:
    return (date(year, 1, 1) - _EPOCH).days


@functools.lru_cache(maxsize=64)
def _days(
    calendar: BusinessCalendar, first_year: int, last_year: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int16]]:
    """[day] whether it is a holiday, and its closing minute, from 1 January of the first to 31 December of the last."""
    first_day = _first_day(first_year)
    is_holiday = np.zeros(_first_day(last_year + 1) - first_day, dtype=np.bool_)
    closes = np.full(is_holiday.size, calendar.closes, dtype=np.int16)

    def positions(days: list[date]) -> list[int]:
        found = [(day - _EPOCH).days - first_day for day in days]
        return [place for place in found if 0 <= place < is_holiday.size]  # a New Year's Day may be observed earlier

    for entry in calendar.holidays:
        is_holiday[positions(holidays_of(entry, first_year, last_year))] = True
        if calendar.half_days_close is not None:
            closes[positions(holidays_of(entry, first_year, last_year, half_days=True))] = calendar.half_days_close
    for day, minute in calendar.early_closes:
        closes[positions([date.fromisoformat(day)])] = minute
    is_holiday.flags.writeable = closes.flags.writeable = False
    return is_holiday, closes


def _zone(timezone: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):  # no such zone, no zone name, a folder of zones
        msg = f"unknown time zone {timezone!r}; use an IANA name such as America/New_York or UTC"
        raise ValueError(msg) from None


@functools.lru_cache(maxsize=64)
def _utc_offsets(
    timezone: str, first_year: int, last_year: int
) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.timedelta64]]:
    """Offsets from UTC and their start times (UTC); the first offset starts before the first year."""
    zone = _zone(timezone)

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


DEFAULT_CALENDAR = BusinessCalendar()
