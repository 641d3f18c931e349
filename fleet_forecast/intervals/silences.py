"""Silences: times at which alerts of some servers are not delivered, once or every week, from TOML or JSON.

[[silences]]
server = "ppdb003"                  # or profile = "database", or pattern = 'web-.*' (RE2, of whole names)
from = 2026-12-01T22:00:00Z
until = 2026-12-02T02:00:00Z
comment = "storage migration"

[[silences]]
pattern = 'batch-.*'
weekly = {days = ["sat", "sun"], start = "22:30", end = "04:00", timezone = "Europe/Berlin"}
comment = "patch window"
kind = "exclude"                    # also masks the measurements from training and scores
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    model_validator,
)

from fleet_forecast.contract.calendar import local_time
from fleet_forecast.contract.toml_file import read_toml
from fleet_forecast.iso_time import iso_milliseconds, utc_seconds
from fleet_forecast.name_patterns import compile_whole_name

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
EXCLUDE = "exclude"  # the kind that masks measurements
SELECTORS = ("server", "profile", "pattern")
LONGEST_TEXT = 1_000  # characters of a name, a pattern or a comment


def _seconds(value: Any) -> Any:
    """Seconds since 1970 of a time: TOML has a type of its own, JSON has text."""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"the time {value} has no time zone; write UTC with a final Z")
        return value.astimezone(UTC).timestamp()
    if isinstance(value, str):
        try:
            return utc_seconds(value)
        except ValueError as problem:
            raise ValueError(f"the time {value[:50]!r} {problem}") from None
    raise ValueError(f"the time {str(value)[:50]} is not a time; write 2026-12-01T22:00:00Z")


def _pattern(value: str) -> str:
    compile_whole_name(value)
    return value


_CLOCK_TIME = r"^([01]\d|2[0-3]):[0-5]\d$"


def _clock_time(value: str) -> str:
    if not re.match(_CLOCK_TIME, value):
        raise ValueError(f"{value[:50]!r} is not a time of day; write hours and minutes, such as 22:30")
    return value


def _zone(value: str) -> str:
    local_time(np.zeros(1, dtype="datetime64[s]"), value)  # ValueError with the remedy
    return value


Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Moment = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=datetime),
    PlainSerializer(iso_milliseconds, return_type=str, when_used="json"),
]
ClockTime = Annotated[
    str, AfterValidator(_clock_time), Field(description="such as 22:30", json_schema_extra={"pattern": _CLOCK_TIME})
]


class Weekly(BaseModel):
    """Hours of some days of each week; an end that is not after the start is on the next day."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    days: Annotated[list[Day], Field(min_length=1, max_length=len(DAYS), description="days on which it begins")]
    start: ClockTime
    end: ClockTime
    timezone: Annotated[Name, AfterValidator(_zone)]

    def covers(self, seconds: np.ndarray) -> np.ndarray:
        """Whether each time (seconds since 1970) is within the hours of its day in the time zone: boolean."""
        local = local_time(np.floor(seconds).astype(np.int64).astype("datetime64[s]"), self.timezone)
        begins = np.array([day in self.days for day in DAYS])
        start, end = _minutes(self.start), _minutes(self.end)
        minute, day = local.minute_of_day, local.day_of_week
        if end > start:
            return np.asarray(begins[day] & (minute >= start) & (minute < end))
        return np.asarray((begins[day] & (minute >= start)) | (begins[(day + 6) % 7] & (minute < end)))


def _minutes(clock_time: str) -> int:
    hours, _, minutes = clock_time.partition(":")
    return 60 * int(hours) + int(minutes)


class Silence(BaseModel):
    """One silence: which servers (server, profile or pattern), and when."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    server: Annotated[Name | None, Field(description="name of a server")] = None
    profile: Annotated[Name | None, Field(description="all servers of a profile")] = None
    pattern: Annotated[Annotated[Name, AfterValidator(_pattern)] | None, Field(description="RE2, of whole names")] = (
        None
    )
    start: Annotated[Moment | None, Field(alias="from", description="beginning; needed without `weekly`")] = None
    until: Annotated[Moment | None, Field(description="end; needed without `weekly`")] = None
    weekly: Annotated[Weekly | None, Field(description="hours of each week")] = None
    comment: Text = ""
    kind: Annotated[
        Literal["silence", "exclude"], Field(description="exclude also masks measurements from training and scores")
    ] = "silence"

    @model_validator(mode="after")
    def _complete(self) -> Silence:
        given = [name for name in SELECTORS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a silence has {' and '.join(given) or 'no servers'}; give one of {', '.join(SELECTORS)}")
        of = f"silence of {given[0]} {getattr(self, given[0])!r}"
        if self.weekly is None and (self.start is None or self.until is None):
            raise ValueError(f"{of}: from or until is missing; give both, or weekly")
        if self.start is not None and self.until is not None and self.until <= self.start:
            raise ValueError(f"{of}: until is not after from; correct one of them")
        return self

    @cached_property
    def _compiled(self) -> Any:
        return None if self.pattern is None else compile_whole_name(self.pattern)

    def concerns(self, server_name: str, profile: str | None) -> bool:
        """Whether a server is one of those silenced."""
        if self._compiled is not None:
            return self._compiled.match(server_name) is not None
        return server_name == self.server or (self.profile is not None and profile == self.profile)

    def covers(self, seconds: np.ndarray) -> np.ndarray:
        """Whether each time (seconds since 1970) is within: boolean."""
        within = np.ones(np.shape(seconds), dtype=bool)
        if self.start is not None:
            within &= seconds >= self.start
        if self.until is not None:
            within &= seconds < self.until
        return within & self.weekly.covers(seconds) if self.weekly is not None and within.any() else within

    def is_active(self, seconds: float) -> bool:
        """Whether a time is within."""
        return bool(self.covers(np.array([seconds]))[0])


class _SilencesFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    silences: list[Silence]


_STORED = TypeAdapter(dict[str, Silence])


def load_silences(path: Path) -> list[Silence]:
    """The silences of a TOML file with nothing else. Raises TomlFileError."""
    return read_toml(path, _SilencesFile, "exclusions file").silences


def stored_silences(path: Path) -> dict[str, Silence]:
    """The silences that a daemon stored, by id; empty without the file.

    Raises OSError, and ValueError for another file.
    """
    try:
        return _STORED.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}


def excluded_cells(
    silences: Iterable[Silence], names: Sequence[str], profiles: Sequence[str | None], seconds: np.ndarray
) -> np.ndarray:
    """Which measurements of servers [server] at times [step] are excluded: boolean [server, step].

    seconds: start of each step since 1970. Silences of another kind exclude nothing.
    """
    excluded = np.zeros((len(names), len(seconds)), dtype=bool)
    for silence in silences:
        if silence.kind == EXCLUDE:
            rows = [silence.concerns(*server) for server in zip(names, profiles, strict=True)]
            excluded[rows] |= silence.covers(seconds)
    return excluded
