"""Reads the times of files and requests as UTC instants.

Accepts times with a zone, all forms of RFC 3339 (lower case, any fraction of a second, a space for the T), the
usual suffixes ` UTC` and ` GMT`, and numbers since 1970 in seconds, milliseconds, microseconds or nanoseconds, which
are distinguished by their size. Times without a zone need one that the user states.
"""

from __future__ import annotations

import argparse
import re
import zoneinfo
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fleet_forecast.contract.labels import Labels, labels_of
from fleet_forecast.contract.specs import END_OF_TIMESTAMPS, FIRST_TIMESTAMP
from fleet_forecast.flags import add_flag

ZONE_FLAG = "--input-timezone"
NO_ZONE = "the time has no zone"
GIVE_ZONE = f"write UTC times with their zone, such as 2026-11-23T10:00:00Z, or state the zone with {ZONE_FLAG}"
_OUTSIDE = "the time is not within 1970 to 2199", "check the unit of the times"
_ZONED_TEXT = re.compile(r"[T ]\d\d.*(Z|[+-]\d\d(:?\d\d)?)$")
_UTC_SUFFIX = re.compile(r"\s*(?:UTC|GMT|Z)$")
_OFFSET = re.compile(r"\s*([+-]\d\d(?::?\d\d)?)$")
_NUMBER = re.compile(r"\d{9,19}(\.\d*)?")  # fewer digits are a date in ISO 8601

# A number is a time of 1973 to 2286 in exactly one of these units; a number between two of them is not a time.
SMALLEST_SECONDS, LARGEST_SECONDS = 10**8, 10**10
UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
_NANOSECONDS = tuple(10 ** (9 - 3 * place) for place in range(len(UNITS)))

Fault = tuple[npt.NDArray[np.bool_], str, str]  # rows, message, remedy


@dataclass
class ParsedTimes:
    """A column of times.

    instants: [row] ns, UTC, NaT where the row has no usable time. faults: rows, message and remedy of each problem.
    units: of the numbers that were read as times.
    """

    instants: npt.NDArray[np.datetime64]
    faults: list[Fault] = field(default_factory=list)
    units: set[str] = field(default_factory=set)


def parse_times(column: pd.Series[Any], timezone: str | None = None) -> ParsedTimes:
    """UTC instants of a column of any type; timezone: of times without a zone, None if it is not known."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return _within_range(pd.DatetimeIndex(column).tz_convert("UTC").tz_localize(None).to_numpy())
    if isinstance(column.dtype, np.dtype) and column.dtype.kind == "M":
        return _naive(column, timezone)
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        return _of_numbers(column)
    labels = labels_of(column)
    if labels is None:
        return _unusable(column, f"not a time but {column.dtype}")
    return _of_text(labels, timezone)


def iso_text(text: str) -> str:
    """A time in a usual form as ISO 8601: upper case, Z for UTC and GMT, no space before the offset."""
    text = text.strip().upper()
    without = _UTC_SUFFIX.sub("", text)
    shortened = _OFFSET.sub(r"\1", without) if _ZONED_TEXT.search(without) else without
    return shortened if without == text or _ZONED_TEXT.search(shortened) else f"{shortened}Z"


def number_unit(number: float) -> int | None:
    """Position in UNITS of the unit in which a number is a time since 1970, None if it is not one."""
    for place in range(len(UNITS)):
        if SMALLEST_SECONDS * 1000**place <= number < LARGEST_SECONDS * 1000**place:
            return place
    return None


def check_zone(name: str) -> str:
    """The name of a time zone. Raises ValueError if it is unknown."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is not a time zone; write a name such as Europe/Berlin or UTC") from None
    return name


def add_timezone_flag(group: argparse._ActionsContainer) -> None:
    """The flag that states the zone of times without one, the same for every script that reads files."""
    add_flag(
        group,
        ZONE_FLAG,
        type=_zone_argument,
        metavar="ZONE",
        help="time zone of times without one, such as Europe/Berlin (none: they are refused)",
    )


def _zone_argument(text: str) -> str:
    try:
        return check_zone(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _within_range(instants: npt.NDArray[np.datetime64]) -> ParsedTimes:
    """Instants of any unit in ns, with the rows that have none, or one outside the contract's range, as faults."""
    null = np.isnat(instants)
    outside = ~null & ((instants < FIRST_TIMESTAMP) | (instants >= END_OF_TIMESTAMPS))
    faults = [(null, "the time is missing", "give each row its time")] if null.any() else []
    if outside.any():
        faults.append((outside, *_OUTSIDE))
        instants = np.where(outside, np.datetime64("NaT"), instants)
    return ParsedTimes(instants.astype("datetime64[ns]", copy=False), faults)


def _elsewhere(faults: list[Fault], explained: npt.NDArray[np.bool_]) -> list[Fault]:
    """The faults of rows without a more specific one."""
    return [(rows & ~explained, *words) for rows, *words in faults if (rows & ~explained).any()]  # type: ignore[misc]


def _unusable(column: pd.Series[Any], message: str) -> ParsedTimes:
    nothing = np.full(len(column), np.datetime64("NaT"), dtype="datetime64[ns]")
    return ParsedTimes(nothing, [(np.ones(len(column), dtype=bool), message, GIVE_ZONE)])


def _naive(column: pd.Series[Any], timezone: str | None) -> ParsedTimes:
    if timezone is None:
        return _unusable(column, NO_ZONE)
    index = pd.DatetimeIndex(column)
    found = _within_range(_localised(index, timezone))
    unclear = np.isnat(found.instants) & ~np.asarray(index.isna())
    return _with_unclear(found, unclear, timezone)


def _localised(index: pd.DatetimeIndex, timezone: str) -> npt.NDArray[np.datetime64]:
    """UTC instants of local times; NaT for those that do not exist or occur twice when the clock changes."""
    local = index.tz_localize(timezone, ambiguous="NaT", nonexistent="NaT")
    utc: npt.NDArray[np.datetime64] = local.tz_convert("UTC").tz_localize(None).to_numpy()
    return utc


def _with_unclear(found: ParsedTimes, unclear: npt.NDArray[np.bool_], timezone: str) -> ParsedTimes:
    """Local times that the clock change leaves unclear, as a fault of their own instead of a missing time."""
    if not unclear.any():
        return found
    found.faults = _elsewhere(found.faults, unclear)
    message = f"the clock change of {timezone} leaves the time unclear"
    found.faults.append((unclear, message, "write UTC times with their zone"))
    return found


def _of_numbers(column: pd.Series[Any]) -> ParsedTimes:
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    exact = column.to_numpy(dtype=np.int64) if column.dtype.kind in "iu" and not column.isna().any() else None
    instants = np.full(len(numbers), np.datetime64("NaT"), dtype="datetime64[ns]")
    units = set()
    for place, nanoseconds in enumerate(_NANOSECONDS):
        factor = 1000.0**place
        chosen = (numbers >= SMALLEST_SECONDS * factor) & (
            numbers < min(LARGEST_SECONDS * factor, 2.0**63 / nanoseconds)
        )
        if not chosen.any():
            continue
        units.add(UNITS[place])
        if exact is not None:
            instants[chosen] = (exact[chosen] * nanoseconds).view("datetime64[ns]")
        else:
            whole = np.floor(numbers[chosen])
            part = np.round((numbers[chosen] - whole) * nanoseconds)
            instants[chosen] = (whole.astype(np.int64) * nanoseconds + part.astype(np.int64)).view("datetime64[ns]")
    found = _within_range(instants)
    other = np.isnat(instants) & ~np.isnan(numbers)
    found.faults = _elsewhere(found.faults, other)
    if other.any():
        message = "a number that is not a time since 1970 in seconds, milliseconds, microseconds or nanoseconds"
        found.faults.append((other, message, GIVE_ZONE))
    found.units = units
    return found


def _of_text(labels: Labels, timezone: str | None) -> ParsedTimes:
    """Times of text, parsed once for each distinct text."""
    texts = [str(text) for text in labels.values]
    forms = pd.Series([iso_text(text) for text in texts], dtype=object)
    numeric = np.array([_NUMBER.fullmatch(text) is not None for text in forms], dtype=bool)
    parsed = pd.to_datetime(forms, utc=True, format="ISO8601", errors="coerce")
    instants = parsed.dt.tz_localize(None).to_numpy(dtype="datetime64[ns]").copy()
    unknown = parsed.isna().to_numpy() & ~numeric
    far = np.array([bad and _is_time(text) for text, bad in zip(forms, unknown, strict=True)], dtype=bool)
    no_zone = np.array([_ZONED_TEXT.search(text) is None for text in forms], dtype=bool) & ~unknown & ~numeric
    units: set[str] = set()
    if numeric.any():
        as_numbers = _of_numbers(pd.to_numeric(forms[numeric]))
        instants[numeric], units = as_numbers.instants, as_numbers.units
        unknown |= numeric & np.isnat(instants)
    faults = [(unknown & ~far, "not a time in ISO 8601", GIVE_ZONE), (far, *_OUTSIDE)]
    if timezone is None:
        instants[no_zone] = np.datetime64("NaT")
        faults.append((no_zone, NO_ZONE, GIVE_ZONE))
    elif no_zone.any():
        instants[no_zone] = _localised(pd.DatetimeIndex(instants[no_zone]), timezone)
    rows = np.append(instants, np.datetime64("NaT", "ns"))[labels.codes]
    found = _within_range(rows)
    found.units = units
    explained = np.zeros(len(rows), dtype=bool)
    for flags, *_ in faults:
        if flags.any():
            explained |= labels.rows_where(flags)
    found.faults = _elsewhere(found.faults, explained)
    found.faults += [(labels.rows_where(flags), words, remedy) for flags, words, remedy in faults if flags.any()]
    unclear = np.isnat(rows) & ~explained & (labels.codes != -1)
    return found if timezone is None else _with_unclear(found, unclear, timezone)


def _is_time(text: str) -> bool:
    """Whether the text is a time, also in a year that 64-bit nanoseconds cannot represent."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
