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

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


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
