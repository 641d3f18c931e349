r"""The seven kinds of server: host-name patterns, baselines, rhythms in business time, incidents.

    from server_profiles import infer_profile_from_name, match_profile
    infer_profile_from_name("ppml0015.dc1.example.com")     # ServerProfile.ML_COMPUTE
    match_profile("unknown_server").rule                    # None: nothing matched, so it is generic

Names other than the built-in ones are added by a TOML file (`--profiles FILE` of every script):

    [patterns]                       # regular expressions, matched at the start of the name, case ignored
    database = ['sql\d+', 'pg-\d+']

    [servers]                        # single servers, pinned
    "legacy-host-7" = "risk_analytics"

A pin goes before a pattern of the file, a pattern of the file before the built-in ones.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from zoneinfo import ZoneInfo

import holidays
import numpy as np
import numpy.typing as npt


class ServerProfile(StrEnum):
    """What a server is for; the value is what stands in the `profile` column."""

    ML_COMPUTE = "ml_compute"
    DATABASE = "database"
    WEB_API = "web_api"
    CONDUCTOR_MGMT = "conductor_mgmt"
    DATA_INGEST = "data_ingest"
    RISK_ANALYTICS = "risk_analytics"
    GENERIC = "generic"


@dataclass(frozen=True)
class Baseline:
    """One metric of a healthy server: its long-run mean over a week and its deviation around its own rhythm.

    The spread holds the differences between the servers of a profile and those in time together.
    """

    mean: float
    spread: float
    unit: str


@dataclass(frozen=True)
class DemandWindow:
    """Hours of the business day in which demand is `multiplier` times the profile's ordinary demand.

    `start` and `end` are "HH:MM" in business time; an end before the start runs over midnight.
    """

    start: str
    end: str
    multiplier: float
    every_day: bool = False  # otherwise on business days only: Monday to Friday, market holidays excepted


@dataclass(frozen=True)
class MaintenanceWindow:
    """A weekly maintenance window in business time (`day_of_week`: Monday is 0)."""

    day_of_week: int
    start: str
    minutes: int


@dataclass(frozen=True)
class Rhythm:
    """How demand follows business time; 1 is the ordinary demand outside all windows of a business day.

    Where windows overlap, the later one in the list counts. `weekend` and `holiday` multiply the whole day.
    """

    description: str
    windows: tuple[DemandWindow, ...] = ()
    weekend: float = 1.0
    holiday: float = 1.0
    maintenance: MaintenanceWindow | None = None


@dataclass(frozen=True)
class ProfileSpec:
    """All that is documented about one profile; `baselines` is keyed by the contract's metric columns."""

    profile: ServerProfile
    name_patterns: tuple[str, ...]
    baselines: Mapping[str, Baseline]
    rhythm: Rhythm
    incidents: tuple[str, ...]


def _baselines(
    cpu: tuple[float, float],
    mem: tuple[float, float],
    disk: tuple[float, float],
    net_in: tuple[float, float],
    net_out: tuple[float, float],
    latency: tuple[float, float],
) -> Mapping[str, Baseline]:
    return MappingProxyType(
        {
            "cpu_pct": Baseline(*cpu, "%"),
            "mem_pct": Baseline(*mem, "%"),
            "disk_io_mb_s": Baseline(*disk, "MB/s"),
            "net_in_mb_s": Baseline(*net_in, "MB/s"),
            "net_out_mb_s": Baseline(*net_out, "MB/s"),
            "latency_ms": Baseline(*latency, "ms"),
        }
    )


def _numbered(*prefixes: str) -> tuple[str, ...]:
    return tuple(prefix + r"\d+" for prefix in prefixes)


_SPECS = (
    ProfileSpec(
        ServerProfile.ML_COMPUTE,
        _numbered("ppml", "ppgpu", "cptrain"),
        _baselines(cpu=(78, 12), mem=(82, 10), disk=(45, 15), net_in=(8.5, 3), net_out=(5.2, 2), latency=(22, 5)),
        Rhythm(
            "+40 % from 19:00 to 07:00, lower 09:00-16:00 on business days, heavy batch at weekends",
            (DemandWindow("19:00", "07:00", 1.4, every_day=True), DemandWindow("09:00", "16:00", 0.9)),
            weekend=1.25,
        ),
        ("oom", "cuda_oom", "thermal_throttling", "disk_cache_exhaustion"),
    ),
    ProfileSpec(
        ServerProfile.DATABASE,
        _numbered("ppdb", "psdb", "oracle", "mongo", "postgres"),
        _baselines(cpu=(55, 15), mem=(87, 8), disk=(180, 45), net_in=(35, 12), net_out=(28, 10), latency=(8.5, 3)),
        Rhythm(
            "+20 % 09:00-11:00, steady high (+10 %) in market hours, +40 % 16:00-19:00; maintenance Saturday 02:00",
            (
                DemandWindow("09:30", "16:00", 1.1),
                DemandWindow("09:00", "11:00", 1.2),
                DemandWindow("16:00", "19:00", 1.4),
            ),
            weekend=0.85,
            holiday=0.85,
            maintenance=MaintenanceWindow(day_of_week=5, start="02:00", minutes=60),
        ),
        ("lock_contention", "disk_io_saturation", "connection_pool_exhaustion", "slow_query_storm"),
    ),
    ProfileSpec(
        ServerProfile.WEB_API,
        _numbered("ppweb", "ppapi", "nginx", "tomcat"),
        _baselines(cpu=(28, 8), mem=(55, 12), disk=(12, 4), net_in=(85, 25), net_out=(120, 35), latency=(45, 15)),
        Rhythm(
            "peak (+60 %) 09:00-09:30, +30 % 09:30-16:00 with a spike (+45 %) 12:00-13:00, "
            "-50 % before 07:00 and after 20:00",
            (
                DemandWindow("20:00", "07:00", 0.5, every_day=True),
                DemandWindow("09:30", "16:00", 1.3),
                DemandWindow("09:00", "09:30", 1.6),
                DemandWindow("12:00", "13:00", 1.45),
            ),
            weekend=0.8,
            holiday=0.8,
        ),
        ("http_503", "connection_timeouts", "ssl_expiry", "ddos"),
    ),
    ProfileSpec(
        ServerProfile.CONDUCTOR_MGMT,
        _numbered("ppcon", "conductor", "egomgmt"),
        _baselines(cpu=(28, 8), mem=(75, 10), disk=(18, 6), net_in=(22, 8), net_out=(18, 6), latency=(15, 4)),
        Rhythm(
            "surge (+60 %) 09:00-09:45, heavy (+40 %) 16:00-19:00, otherwise steady",
            (DemandWindow("09:00", "09:45", 1.6), DemandWindow("16:00", "19:00", 1.4)),
            weekend=0.9,
            holiday=0.9,
        ),
        ("job_queue_overflow", "scheduler_deadlock", "resource_allocation_failure", "metadata_corruption"),
    ),
    ProfileSpec(
        ServerProfile.DATA_INGEST,
        _numbered("ppetl", "ppkafka", "stream", "spark"),
        _baselines(cpu=(60, 15), mem=(78, 12), disk=(220, 60), net_in=(150, 45), net_out=(95, 30), latency=(12, 5)),
        Rhythm(
            "+50 % from 09:30, sustained to 16:00, close processing (+70 %) 16:00-17:00",
            (DemandWindow("09:30", "16:00", 1.5), DemandWindow("16:00", "17:00", 1.7)),
            weekend=0.85,
            holiday=0.85,
        ),
        ("kafka_consumer_lag", "disk_queue_saturation", "network_congestion", "backpressure_cascade"),
    ),
    ProfileSpec(
        ServerProfile.RISK_ANALYTICS,
        _numbered("pprisk", "varrisk", "credit"),
        _baselines(cpu=(82, 10), mem=(88, 8), disk=(38, 12), net_in=(12, 4), net_out=(8, 3), latency=(18, 6)),
        Rhythm(
            "+100 % 16:00-19:00 on business days (the critical window), low otherwise",
            (DemandWindow("16:00", "19:00", 2.0),),
            weekend=0.9,
            holiday=0.9,
        ),
        ("calculation_timeout", "matrix_operation_failure", "resource_starvation", "numerical_instability"),
    ),
    ProfileSpec(
        ServerProfile.GENERIC,
        _numbered("ppgen"),
        _baselines(cpu=(35, 10), mem=(50, 12), disk=(25, 10), net_in=(15, 8), net_out=(12, 6), latency=(30, 10)),
        Rhythm("flat"),
        (),
    ),
)

PROFILES: Mapping[ServerProfile, ProfileSpec] = MappingProxyType({spec.profile: spec for spec in _SPECS})


# --- which profile a server has -------------------------------------------------------------------------------------


class ProfileFileError(ValueError):
    """A profile rules file cannot be used; the message names file, line, value and remedy."""


class ProfileMatch(NamedTuple):
    """The profile of a server and the rule that gave it; `rule` is None where nothing matched (generic)."""

    profile: ServerProfile
    rule: str | None


@dataclass(frozen=True)
class ProfileRules:
    """Rules from names to profiles; pins are tried first, then the patterns in order.

    patterns: (regular expression, profile), matched at the start of the name, case ignored.
    pins: lower-case server name, or its part before the first dot -> profile.
    added: how many of the patterns, from the first one on, come from the user's file.
    """

    patterns: tuple[tuple[re.Pattern[str], ServerProfile], ...]
    pins: Mapping[str, ServerProfile] = field(default_factory=dict)
    added: int = 0


BUILT_IN_RULES = ProfileRules(
    tuple((re.compile(p, re.IGNORECASE), spec.profile) for spec in _SPECS for p in spec.name_patterns)
)


def match_profile(server_name: str, rules: ProfileRules = BUILT_IN_RULES) -> ProfileMatch:
    """Profile of a server by its name (bare or full domain name), and the rule that matched, in words."""
    lowered = server_name.lower()
    for pin in (lowered, lowered.partition(".")[0]):
        if pin in rules.pins:
            return ProfileMatch(rules.pins[pin], f"pin {pin}")
    for position, (pattern, profile) in enumerate(rules.patterns):
        if pattern.match(server_name):
            source = "profiles file" if position < rules.added else "built-in"
            return ProfileMatch(profile, f"pattern {pattern.pattern} ({source})")
    return ProfileMatch(ServerProfile.GENERIC, None)


def infer_profile_from_name(server_name: str, rules: ProfileRules = BUILT_IN_RULES) -> ServerProfile:
    """Profile of a server by its name: ppml0015 -> ml_compute; a name that no rule matches -> generic."""
    return match_profile(server_name, rules).profile


def load_profile_rules(path: Path) -> ProfileRules:
    """Built-in rules plus those of a TOML file ([patterns] profile = [regex, ...], [servers] name = profile).

    Raises ProfileFileError naming the file, the line, the value and the remedy.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"profiles file {path}: no such file; give the path of a TOML file"
        raise ProfileFileError(msg) from None
    except UnicodeDecodeError as problem:
        msg = f"profiles file {path}: not UTF-8 text ({problem.reason}); save it as UTF-8"
        raise ProfileFileError(msg) from None
    except OSError as problem:
        msg = f"profiles file {path}: cannot be read ({problem.strerror})"
        raise ProfileFileError(msg) from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:  # its message ends with the line
        hint = "write regular expressions in single quotes, which take backslashes as they are"
        msg = f"profiles file {path}: not TOML: {problem}; {hint}"
        raise ProfileFileError(msg) from None

    source = _RulesSource(path, text.splitlines())
    for key in document:
        if key not in ("patterns", "servers"):
            raise source.error(key, f"unknown table or key {key!r}", "use [patterns] and [servers] only")
    added = [
        (_compiled(pattern, source), source.profile(profile))
        for profile, patterns in source.table(document, "patterns").items()
        for pattern in source.strings(profile, patterns)
    ]
    pins = {
        server.lower(): source.profile(profile, server) for server, profile in source.table(document, "servers").items()
    }
    return ProfileRules((*added, *BUILT_IN_RULES.patterns), MappingProxyType(pins), len(added))


def _compiled(pattern: str, source: _RulesSource) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as problem:
        raise source.error(
            pattern,
            f"pattern {pattern!r} is not a regular expression ({problem})",
            r"correct it, or put a backslash before a character meant literally, as in 'db\.\d+'",
        ) from None
    if compiled.match(""):
        raise source.error(
            pattern, f"pattern {pattern!r} matches every name", r"name the beginning, as in 'sql\d+', or pin servers"
        )
    return compiled


@dataclass(frozen=True)
class _RulesSource:
    """The text of a rules file, to say in which line a refused value stands."""

    path: Path
    lines: list[str]

    def error(self, value: str, what: str, remedy: str) -> ProfileFileError:
        spellings = (value, value.replace("\\", "\\\\"))
        line = next((n for n, text in enumerate(self.lines, 1) if any(s and s in text for s in spellings)), 1)
        return ProfileFileError(f"profiles file {self.path}, line {line}: {what}; {remedy}")

    def table(self, document: dict[str, object], name: str) -> dict[str, object]:
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise self.error(name, f"{name} is not a table", f"write [{name}] on a line of its own")
        return table

    def strings(self, key: str, values: object) -> Iterable[str]:
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.error(key, f"{key} is not a list of strings", f"write {key} = ['name\\d+']")
        return values

    def profile(self, value: object, server: str | None = None) -> ServerProfile:
        try:
            return ServerProfile(str(value))
        except ValueError:
            raise self.error(
                server or str(value), f"unknown profile {value!r}", f"use one of {', '.join(ServerProfile)}"
            ) from None


# --- business time --------------------------------------------------------------------------------------------------

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


def clock_changes(
    first_utc: np.datetime64, last_utc: np.datetime64, timezone: str
) -> list[tuple[np.datetime64, np.timedelta64]]:
    """When clocks are changed after the first and up to the last time (UTC), and by how much they are put ahead.

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
    """One flag per day from 1 January of the first year to 31 December of the last."""
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
    """Offsets from UTC and the instants from which they hold; the first one holds from before the first year."""
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


# --- demand ---------------------------------------------------------------------------------------------------------

RAMP_MINUTES = 10  # demand moves between two levels over this long, centred on the edge of a window
_MINUTES = 24 * 60
BUSINESS_DAY, WEEKEND_DAY, HOLIDAY = 0, 1, 2


def demand_multiplier(profile: ServerProfile, when: BusinessTime) -> npt.NDArray[np.float32]:
    """Demand on a server of the profile, as a multiple of its ordinary demand outside all windows of its rhythm."""
    kind = np.where(when.day_of_week >= 5, WEEKEND_DAY, np.where(when.is_holiday, HOLIDAY, BUSINESS_DAY))
    return demand_table(profile)[kind, when.minute_of_day]


@functools.lru_cache(maxsize=len(ServerProfile))
def demand_table(profile: ServerProfile) -> npt.NDArray[np.float32]:
    """Demand by kind of day (business day, weekend, holiday) and minute of day: float32 [3, 1440]."""
    rhythm = PROFILES[profile].rhythm
    table = np.ones((3, _MINUTES))
    for window in rhythm.windows:
        coverage = _coverage(minutes(window.start), minutes(window.end))
        kinds = slice(None) if window.every_day else BUSINESS_DAY
        table[kinds] += coverage * (window.multiplier - table[kinds])
    table[WEEKEND_DAY] *= rhythm.weekend
    table[HOLIDAY] *= rhythm.holiday
    demand = table.astype(np.float32)
    demand.flags.writeable = False
    return demand


def minutes(clock: str) -> int:
    """Minutes since midnight of "HH:MM"."""
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)


def _coverage(start: int, end: int) -> npt.NDArray[np.float64]:
    """How far each minute of the day lies in the window: 0 outside, 1 inside, linear over the ramp: [1440]."""
    length = (end - start) % _MINUTES
    since_start = (np.arange(_MINUTES) + 0.5 - start) % _MINUTES
    inside = since_start < length
    depth = np.minimum(since_start, length - since_start)
    distance = np.minimum(_MINUTES - since_start, since_start - length)
    coverage: npt.NDArray[np.float64] = np.clip(0.5 + np.where(inside, depth, -distance) / RAMP_MINUTES, 0.0, 1.0)
    return coverage
