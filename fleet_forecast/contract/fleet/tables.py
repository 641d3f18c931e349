"""The tables of a fleet file, as pydantic models."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from fleet_forecast.contract.calendar import DAYS_OF_WEEK, DEFAULT_CALENDAR, BusinessCalendar, clock_text, minute_of
from fleet_forecast.contract.definitions import BUILT_IN_FLEET, Dialect, Kind
from fleet_forecast.contract.fleet.names import check_metric_name, check_profile_name
from fleet_forecast.name_patterns import compile_pattern
from server_profiles import DemandWindow, MaintenanceWindow, Rhythm


def _clock(value: Any) -> Any:
    """A time of the day as text; TOML also has times without quotes."""
    if isinstance(value, dt.time):
        value = f"{value.hour:02d}:{value.minute:02d}"
    return clock_text(minute_of(value)) if isinstance(value, str) else value


def _hours(value: str) -> str:
    try:
        opens, closes = map(minute_of, value.split("-"))
    except ValueError:
        opens = closes = 0
    if opens >= closes:
        raise ValueError(f"business_hours is {value!r}; write the opening and the closing time, as in 08:00-18:00")
    return f"{clock_text(opens)}-{clock_text(closes)}"


def _date(value: Any) -> Any:
    """A date as text; TOML also has dates without quotes."""
    return str(value) if isinstance(value, dt.date) else value


def _none_for_false(value: Any) -> Any:
    return [] if value is False else [value] if isinstance(value, str | dt.date) else value


def _pattern(text: str) -> str:
    if compile_pattern(text).match(""):
        remedy = r"name the beginning, as in 'sql\d+', or pin servers"
        raise ValueError(f"pattern {text!r} matches every name; {remedy}")
    return text


def _first_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]*[A-Za-z][0-9]+", text):
        form = "letters, digits, '.' and '-', at the end a letter and a number, as in redis001"
        raise PydanticCustomError("first_name", f"should be {form}")
    return text


def _baseline(value: Any) -> Any:
    """Mean and spread, also as a list of two numbers."""
    if isinstance(value, list) and len(value) == 2:
        return {"mean": value[0], "spread": value[1]}
    if not isinstance(value, dict):
        raise PydanticCustomError("baseline", "should be mean and spread, as in [55, 15]")
    return value


def _threshold(value: Any) -> Any:
    """Bounds; a number is the upper one."""
    return value if isinstance(value, dict) else {"above": value}


def _incident(name: str) -> str:
    known = [each for spec in BUILT_IN_FLEET.profiles.values() for each in spec.incidents]
    if name not in known:
        raise ValueError(f"incidents: unknown incident {name!r}; use {', '.join(known)}")
    return name


Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Finite, Field(gt=0)]
Clock = Annotated[str, BeforeValidator(_clock)]
Hours = Annotated[str, AfterValidator(_hours)]
Day = Annotated[str, BeforeValidator(_date)]
Pattern = Annotated[str, AfterValidator(_pattern)]
ProfileName = Annotated[str, AfterValidator(check_profile_name)]
MetricName = Annotated[str, AfterValidator(check_metric_name)]
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f]*$", max_length=200)]
_TABLE = ConfigDict(extra="forbid", frozen=True)


class WindowTable(BaseModel):
    """Hours of the business day in which demand is a multiple of the usual one."""

    model_config = _TABLE

    start: Clock
    end: Clock
    multiplier: Positive
    every_day: bool = Field(default=False, strict=True)


class MaintenanceTable(BaseModel):
    """A weekly maintenance window in business time."""

    model_config = _TABLE

    day: Literal[DAYS_OF_WEEK]  # type: ignore[valid-type]
    start: Clock
    minutes: Annotated[int, Field(ge=1, le=24 * 60, strict=True)]


class RhythmTable(BaseModel):
    """Demand over business time, of simulated servers; see server_profiles.Rhythm."""

    model_config = _TABLE

    description: OneLine = ""
    windows: tuple[WindowTable, ...] = ()
    weekend: Positive = 1.0
    holiday: Positive = 1.0
    maintenance: MaintenanceTable | None = None

    def rhythm(self) -> Rhythm:
        """The rhythm of the table."""
        window = self.maintenance
        return Rhythm(
            self.description,
            tuple(DemandWindow(**each.model_dump()) for each in self.windows),
            self.weekend,
            self.holiday,
            None if window is None else MaintenanceWindow(DAYS_OF_WEEK.index(window.day), window.start, window.minutes),
        )


class BaselineTable(BaseModel):
    """One metric of a healthy server, in its unit: mean over a regular week, standard deviation around the rhythm."""

    model_config = _TABLE

    mean: Finite
    spread: Positive


class ProfileTable(BaseModel):
    """[profiles.NAME]: a profile of your own, or additions to a built-in one.

    patterns: regular expressions for the beginning of a server's name, case ignored; those of the file precede the
    built-in ones, which are fallback_patterns. The other keys are for simulated servers. incidents: names of those that
    they have; by default the ones of GENERAL_INCIDENTS whose metric has a baseline.
    """

    model_config = _TABLE

    description: OneLine | None = None
    patterns: tuple[Pattern, ...] = ()
    fallback_patterns: tuple[Pattern, ...] | None = None
    baselines: dict[str, Annotated[BaselineTable, BeforeValidator(_baseline)]] = {}
    rhythm: RhythmTable | None = None
    first_name: Annotated[str, AfterValidator(_first_name)] | None = None
    servers: Annotated[int, Field(ge=0, strict=True)] | None = None
    shared_demand: Annotated[Finite, Field(ge=0, le=1)] | None = None
    incidents: tuple[Annotated[str, AfterValidator(_incident)], ...] | None = None


class ThresholdTable(BaseModel):
    """Alerts fire where a metric is above or below."""

    model_config = _TABLE

    above: Finite | None = None
    below: Finite | None = None

    @model_validator(mode="after")
    def _in_order(self) -> ThresholdTable:
        if self.above is not None and self.below is not None and self.below >= self.above:
            raise PydanticCustomError("threshold", "should be in order: below must be less than above")
        return self


class MetricTable(BaseModel):
    """[metrics.NAME]: a metric of your own, or query, threshold and words of a built-in one.

    kind: percent (0 to 100), rate (from 0 up) or value (any number). query: PromQL with one series per server;
    `$window` is replaced by the step; empty: the metric is not pulled. otlp: name of an OpenTelemetry gauge, or of a
    sum that can fall, with one data point per server, in this unit; or, of a rate, of a counter, whose increase per
    second is summed over its data points.
    """

    model_config = _TABLE

    unit: Annotated[OneLine, Field(min_length=1)] | None = None
    kind: Kind | None = None
    description: OneLine | None = None
    label: OneLine | None = None
    query: str | None = None
    otlp: Annotated[OneLine, Field(min_length=1)] | None = None
    threshold: Annotated[ThresholdTable, BeforeValidator(_threshold)] = ThresholdTable()


class PrometheusTable(BaseModel):
    """[prometheus]: the queries and their series. strip_port: whether host:9100 is the server host."""

    model_config = _TABLE

    server_label: Annotated[str, Field(min_length=1)] = BUILT_IN_FLEET.server_label
    strip_port: bool = Field(default=BUILT_IN_FLEET.strip_port, strict=True)
    dialect: Dialect = BUILT_IN_FLEET.dialect


_CALENDAR = DEFAULT_CALENDAR.as_document()
CALENDAR_KEYS = (*_CALENDAR, "half_days_close")


class FleetTables(BaseModel):
    """A fleet file."""

    model_config = _TABLE

    timezone: str = _CALENDAR["timezone"]
    holidays: Annotated[tuple[Day, ...], BeforeValidator(_none_for_false)] = tuple(_CALENDAR["holidays"])
    weekend: tuple[Literal[DAYS_OF_WEEK], ...] = tuple(_CALENDAR["weekend"])  # type: ignore[valid-type]
    business_hours: Hours = _CALENDAR["business_hours"]
    early_closes: dict[Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")], Clock] = {}
    half_days_close: Clock | None = None
    profiles: dict[ProfileName, ProfileTable] = {}
    servers: dict[str, str] = {}
    metrics: dict[MetricName, MetricTable] = {}
    prometheus: PrometheusTable = PrometheusTable()
    alerts: dict[str, Any] = {}

    @model_validator(mode="after")
    def _usable_calendar(self) -> FleetTables:
        self.calendar()
        for day in self.early_closes:
            try:
                dt.date.fromisoformat(day)
            except ValueError:
                raise ValueError(f"early_closes: {day!r} is not a date; write it as 2026-12-24") from None
        return self

    def calendar(self) -> BusinessCalendar:
        """The calendar of the keys before the tables. Raises ValueError naming a key that is not known."""
        document = {key: getattr(self, key) for key in CALENDAR_KEYS if getattr(self, key) is not None}
        try:
            return BusinessCalendar.from_document(document)
        except ValueError as problem:
            key = "timezone" if str(problem).startswith("unknown time zone") else "holidays"
            raise ValueError(f"{key}: {problem}") from None
