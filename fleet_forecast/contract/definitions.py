"""The definition of a fleet (metrics, profiles, calendar), the built-in fleet, and the fleet in use by this process.

A process uses one fleet. At their start the scripts set that of `fleet.toml` with `use_fleet`, before anything else
reads it, and pass it to their child processes. METRIC_SPECS, METRICS, COLUMNS and PROFILES are read-only views of the
fleet in use; without a file it is BUILT_IN_FLEET. A constant that depends on the fleet is a function decorated with
`per_fleet`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from fleet_forecast.contract.calendar import DEFAULT_CALENDAR, BusinessCalendar
from server_profiles import BUILT_IN_RULES, ProfileRules, ProfileSpec
from server_profiles import PROFILES as BUILT_IN_PROFILES

Kind = Literal["percent", "rate", "value"]
Dialect = Literal["promql", "metricsql"]  # of queries; metricsql: that of VictoriaMetrics
LARGEST_RATE = 1e9  # MB/s or ms: far beyond any server; its square is still a float32
_LIMITS: Mapping[Kind, tuple[float, float]] = {
    "percent": (0, 100),
    "rate": (0, LARGEST_RATE),
    "value": (-LARGEST_RATE, LARGEST_RATE),
}
Result = TypeVar("Result")


@dataclass(frozen=True)
class MetricSpec:
    """One metric column: float32, null where not measured.

    kind: percent (0 to 100), rate (from 0 up) or value (any number). label: name in messages; empty: the name.
    query: PromQL of the fleet file, empty: none; None: the built-in one, if there is one. otlp: name of the
    OpenTelemetry metric that is this one, or whose increase per second it is. above, below: thresholds of alerts, for
    all profiles; None: those of the profiles.
    """

    name: str
    unit: str
    kind: Kind
    description: str
    label: str = ""
    query: str | None = field(default=None, compare=False)
    otlp: str | None = None
    above: float | None = None
    below: float | None = None

    @property
    def lower(self) -> float:
        """The smallest possible value."""
        return _LIMITS[self.kind][0]

    @property
    def upper(self) -> float:
        """The largest possible value."""
        return _LIMITS[self.kind][1]

    @property
    def range_text(self) -> str:
        """The range for messages, such as "0 to 100"."""
        return f"{self.lower:,.0f} to {self.upper:,.0f}"

    @property
    def rounding(self) -> float:
        """How far beyond a limit rounding may take a value; it then counts as the limit."""
        return 0.5 if self.is_percent else 1e-6

    @property
    def is_percent(self) -> bool:
        """Whether values can reach the upper limit, unlike that of a rate."""
        return self.kind == "percent"


BUILT_IN_METRICS = (
    MetricSpec("cpu_pct", "%", "percent", "CPU in use, all cores together", "CPU"),
    MetricSpec("mem_pct", "%", "percent", "memory in use", "memory"),
    MetricSpec("disk_io_mb_s", "MB/s", "rate", "disk reads and writes together", "disk traffic"),
    MetricSpec("net_in_mb_s", "MB/s", "rate", "network traffic received", "incoming traffic"),
    MetricSpec("net_out_mb_s", "MB/s", "rate", "network traffic sent", "outgoing traffic"),
    MetricSpec("latency_ms", "ms", "rate", "response time of a request or of an I/O", "latency"),
)


@dataclass(frozen=True)
class FleetDefinition:
    """Everything that a fleet file can say; the default is the built-in fleet.

    metrics: the built-in ones, then those of the file. server_label, strip_port: of series of Prometheus. dialect: of
    the queries. alerts: the rules of alerts as the file has them. source: the file; None: there is none.
    names_calendar: whether the file has a key of the calendar, rather than its default.
    """

    metrics: tuple[MetricSpec, ...] = BUILT_IN_METRICS
    profiles: Mapping[str, ProfileSpec] = field(default_factory=lambda: dict(BUILT_IN_PROFILES))
    rules: ProfileRules = BUILT_IN_RULES
    calendar: BusinessCalendar = DEFAULT_CALENDAR
    server_label: str = "instance"
    strip_port: bool = True
    dialect: Dialect = "promql"
    alerts: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = field(default=None, compare=False)
    names_calendar: bool = field(default=False, compare=False)

    @cached_property
    def specs(self) -> Mapping[str, MetricSpec]:
        """The metrics by name, in order."""
        return {spec.name: spec for spec in self.metrics}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics, in order."""
        return tuple(self.specs)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of a metrics file, in order."""
        return ("timestamp", "server_name", "profile", "state", *self.names, "incident")

    @property
    def queries(self) -> Mapping[str, str]:
        """PromQL of the fleet file, by metric."""
        return {spec.name: spec.query for spec in self.metrics if spec.query is not None}


BUILT_IN_FLEET = FleetDefinition()
_in_use = [BUILT_IN_FLEET]  # of this process; one element, replaced by use_fleet
_caches: list[Callable[[], None]] = []


def fleet_in_use() -> FleetDefinition:
    """The fleet in use by this process."""
    return _in_use[0]


def start_with(fleet: FleetDefinition) -> None:
    """Use a fleet for the rest of a child process."""
    _in_use[0] = fleet
    for clear in _caches:
        clear()


@contextmanager
def use_fleet(fleet: FleetDefinition) -> Iterator[FleetDefinition]:
    """Use a fleet within the block; the previous one is restored after it."""
    before = fleet_in_use()
    start_with(fleet)
    try:
        yield fleet
    finally:
        start_with(before)


def per_fleet(function: Callable[..., Result]) -> Callable[..., Result]:
    """functools.cache for what depends on the fleet in use; cleared when another fleet is set."""
    cached = functools.cache(function)
    _caches.append(cached.cache_clear)
    return cached


class _Names(Sequence[str]):
    """A tuple of names of the fleet in use."""

    def __init__(self, names: Callable[[FleetDefinition], tuple[str, ...]]) -> None:
        self._names = names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names(fleet_in_use()))

    def __contains__(self, name: object) -> bool:
        return name in self._names(fleet_in_use())

    def __len__(self) -> int:
        return len(self._names(fleet_in_use()))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == other if isinstance(other, tuple) else self is other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._names(fleet_in_use())[index]


class _ByName(Mapping[str, Result]):
    """A mapping of the fleet in use, by name."""

    def __init__(self, entries: Callable[[FleetDefinition], Mapping[str, Result]]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Result:
        return self._entries(fleet_in_use())[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries(fleet_in_use()))

    def __len__(self) -> int:
        return len(self._entries(fleet_in_use()))


METRIC_SPECS: Mapping[str, MetricSpec] = _ByName(lambda fleet: fleet.specs)
METRICS: Sequence[str] = _Names(lambda fleet: fleet.names)
COLUMNS: Sequence[str] = _Names(lambda fleet: fleet.columns)
PROFILES: Mapping[str, ProfileSpec] = _ByName(lambda fleet: fleet.profiles)
