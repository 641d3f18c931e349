"""The profiles of servers: name patterns, baselines, daily rhythm, incidents.

    from server_profiles import PROFILES, infer_profile_from_name, match_profile

    infer_profile_from_name("ppml0015.dc1.example.com")     # ServerProfile.ML_COMPUTE
    match_profile("unknown_server")                         # generic, rule None: no pattern matches
    PROFILES["database"].baselines["cpu_pct"].mean          # 55 %
    PROFILES["database"].rhythm.description                 # '+20 % 09:00-11:00, ...'

`fleet.toml` adds patterns and profiles and pins single servers (docs/data.md). A pin precedes the patterns of the file,
and these precede the built-in patterns.

To build in a profile, add a member to ServerProfile and a ProfileSpec to _SPECS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol


class ServerProfile(StrEnum):
    """Purpose of a server; the value is the text in the `profile` column."""

    ML_COMPUTE = "ml_compute"
    DATABASE = "database"
    WEB_API = "web_api"
    CONDUCTOR_MGMT = "conductor_mgmt"
    DATA_INGEST = "data_ingest"
    RISK_ANALYTICS = "risk_analytics"
    GENERIC = "generic"


class Baseline(NamedTuple):
    """One metric of a healthy server, in the metric's unit.

    mean: over a regular week. spread: standard deviation around the rhythm, between servers and in time together.
    """

    mean: float
    spread: float


@dataclass(frozen=True)
class DemandWindow:
    """Hours of the business day in which demand is `multiplier` times the profile's usual demand.

    `start` and `end` are "HH:MM" in business time; a window whose end is before its start contains midnight.
    """

    start: str
    end: str
    multiplier: float
    every_day: bool = False  # otherwise on business days: Monday to Friday without market holidays


@dataclass(frozen=True)
class MaintenanceWindow:
    """A weekly maintenance window in business time (`day_of_week`: Monday is 0)."""

    day_of_week: int
    start: str
    minutes: int


@dataclass(frozen=True)
class Rhythm:
    """Demand over business time; 1 is the demand of a business day outside all windows.

    Where windows overlap, the later one in the list applies. `weekend` and `holiday` multiply the whole day.
    """

    description: str
    windows: tuple[DemandWindow, ...] = ()
    weekend: float = 1.0
    holiday: float = 1.0
    maintenance: MaintenanceWindow | None = None


@dataclass(frozen=True)
class ProfileSpec:
    """One profile.

    name_patterns: regular expressions for the start of a server's name, case ignored. added_patterns: those of the
    fleet file, which come first.
    first_name: name of the profile's first simulated server; the others count on from its number.
    default_servers: number of servers in the default simulated fleet.
    baselines: by metric of the data contract.
    incidents: types of incident, from fleet_forecast/simulation/incident_kinds.py.
    shared_demand: share of the variance in time that simulated servers of the profile have in common, 0 to 1. It is the
        correlation of two servers around their rhythm, in every metric but memory. Real fleets behind a load balancer
        have 0.5 to 1, independent hosts of one application 0 to 0.3.
    """

    profile: str
    name_patterns: tuple[str, ...]
    first_name: str
    default_servers: int
    baselines: Mapping[str, Baseline]
    rhythm: Rhythm
    incidents: tuple[str, ...]
    shared_demand: float = 0.0
    description: str = ""
    added_patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.shared_demand <= 1:
            raise ValueError(
                f"server_profiles.py: shared_demand of {self.profile} is {self.shared_demand}; give 0 to 1"
            )

    def server_name(self, number: int) -> str:
        """Name of a simulated server by its number, from 1: ppml0001, ppml0002, ..."""
        prefix = self.first_name.rstrip("0123456789")
        return f"{prefix}{number:0{len(self.first_name) - len(prefix)}d}"


# Incidents that any server can have, with the metric that shows them most: those of a profile of the fleet file which
# names none.
GENERAL_INCIDENTS: Mapping[str, str] = {
    "oom": "mem_pct",
    "resource_starvation": "cpu_pct",
    "disk_io_saturation": "disk_io_mb_s",
    "network_congestion": "net_in_mb_s",
    "connection_timeouts": "latency_ms",
}


def _baselines(**mean_and_spread: tuple[float, float]) -> Mapping[str, Baseline]:
    return {metric: Baseline(*values) for metric, values in mean_and_spread.items()}  # a proxy cannot be pickled


def _numbered(*prefixes: str) -> tuple[str, ...]:
    return tuple(prefix + r"\d+" for prefix in prefixes)


_SPECS = (
    ProfileSpec(
        profile=ServerProfile.ML_COMPUTE,
        description="training and inference of machine learning",
        name_patterns=_numbered("ppml", "ppgpu", "cptrain"),
        first_name="ppml0001",
        default_servers=20,
        baselines=_baselines(
            cpu_pct=(78, 12),
            mem_pct=(82, 10),
            disk_io_mb_s=(45, 15),
            net_in_mb_s=(8.5, 3),
            net_out_mb_s=(5.2, 2),
            latency_ms=(22, 5),
        ),
        rhythm=Rhythm(
            "+40 % from 19:00 to 07:00, lower 09:00-16:00 on business days, heavy batch at weekends",
            (DemandWindow("19:00", "07:00", 1.4, every_day=True), DemandWindow("09:00", "16:00", 0.9)),
            weekend=1.25,
        ),
        incidents=("oom", "cuda_oom", "thermal_throttling", "disk_cache_exhaustion"),
        shared_demand=0.2,  # jobs of one queue
    ),
    ProfileSpec(
        profile=ServerProfile.DATABASE,
        description="databases",
        name_patterns=_numbered("ppdb", "psdb", "oracle", "mongo", "postgres"),
        first_name="ppdb001",
        default_servers=15,
        baselines=_baselines(
            cpu_pct=(55, 15),
            mem_pct=(87, 8),
            disk_io_mb_s=(180, 45),
            net_in_mb_s=(35, 12),
            net_out_mb_s=(28, 10),
            latency_ms=(8.5, 3),
        ),
        rhythm=Rhythm(
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
        incidents=("lock_contention", "disk_io_saturation", "connection_pool_exhaustion", "slow_query_storm"),
        shared_demand=0.1,  # each holds other data
    ),
    ProfileSpec(
        profile=ServerProfile.WEB_API,
        description="web servers and APIs",
        name_patterns=_numbered("ppweb", "ppapi", "nginx", "tomcat"),
        first_name="ppweb001",
        default_servers=25,
        baselines=_baselines(
            cpu_pct=(28, 8),
            mem_pct=(55, 12),
            disk_io_mb_s=(12, 4),
            net_in_mb_s=(85, 25),
            net_out_mb_s=(120, 35),
            latency_ms=(45, 15),
        ),
        rhythm=Rhythm(
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
        incidents=("http_503", "connection_timeouts", "ssl_expiry", "ddos"),
        shared_demand=0.8,  # behind a load balancer
    ),
    ProfileSpec(
        profile=ServerProfile.CONDUCTOR_MGMT,
        description="schedulers and job management",
        name_patterns=_numbered("ppcon", "conductor", "egomgmt"),
        first_name="ppcon01",
        default_servers=5,
        baselines=_baselines(
            cpu_pct=(28, 8),
            mem_pct=(75, 10),
            disk_io_mb_s=(18, 6),
            net_in_mb_s=(22, 8),
            net_out_mb_s=(18, 6),
            latency_ms=(15, 4),
        ),
        rhythm=Rhythm(
            "surge (+60 %) 09:00-09:45, heavy (+40 %) 16:00-19:00, otherwise steady",
            (DemandWindow("09:00", "09:45", 1.6), DemandWindow("16:00", "19:00", 1.4)),
            weekend=0.9,
            holiday=0.9,
        ),
        incidents=("job_queue_overflow", "scheduler_deadlock", "resource_allocation_failure", "metadata_corruption"),
        shared_demand=0.4,  # one scheduler's load
    ),
    ProfileSpec(
        profile=ServerProfile.DATA_INGEST,
        description="streams and batch imports",
        name_patterns=_numbered("ppetl", "ppkafka", "stream", "spark"),
        first_name="ppetl001",
        default_servers=10,
        baselines=_baselines(
            cpu_pct=(60, 15),
            mem_pct=(78, 12),
            disk_io_mb_s=(220, 60),
            net_in_mb_s=(150, 45),
            net_out_mb_s=(95, 30),
            latency_ms=(12, 5),
        ),
        rhythm=Rhythm(
            "+50 % from 09:30, sustained to 16:00, close processing (+70 %) 16:00-17:00",
            (DemandWindow("09:30", "16:00", 1.5), DemandWindow("16:00", "17:00", 1.7)),
            weekend=0.85,
            holiday=0.85,
        ),
        incidents=("kafka_consumer_lag", "disk_queue_saturation", "network_congestion", "backpressure_cascade"),
        shared_demand=0.6,  # partitions of the same topics
    ),
    ProfileSpec(
        profile=ServerProfile.RISK_ANALYTICS,
        description="risk calculations",
        name_patterns=_numbered("pprisk", "varrisk", "credit"),
        first_name="pprisk001",
        default_servers=8,
        baselines=_baselines(
            cpu_pct=(82, 10),
            mem_pct=(88, 8),
            disk_io_mb_s=(38, 12),
            net_in_mb_s=(12, 4),
            net_out_mb_s=(8, 3),
            latency_ms=(18, 6),
        ),
        rhythm=Rhythm(
            "+100 % 16:00-19:00 on business days (the critical window), low otherwise",
            (DemandWindow("16:00", "19:00", 2.0),),
            weekend=0.9,
            holiday=0.9,
        ),
        incidents=("calculation_timeout", "matrix_operation_failure", "resource_starvation", "numerical_instability"),
        shared_demand=0.5,  # parts of the same calculations
    ),
    ProfileSpec(
        profile=ServerProfile.GENERIC,
        description="anything else, and names without a rule",
        name_patterns=_numbered("ppgen"),
        first_name="ppgen001",
        default_servers=7,
        baselines=_baselines(
            cpu_pct=(35, 10),
            mem_pct=(50, 12),
            disk_io_mb_s=(25, 10),
            net_in_mb_s=(15, 8),
            net_out_mb_s=(12, 6),
            latency_ms=(30, 10),
        ),
        rhythm=Rhythm("flat"),
        incidents=(),
        shared_demand=0.0,  # nothing in common
    ),
)

PROFILES: Mapping[str, ProfileSpec] = MappingProxyType({spec.profile: spec for spec in _SPECS})
DEFAULT_SERVERS: Mapping[str, int] = {profile: spec.default_servers for profile, spec in PROFILES.items()}
for _profile in ServerProfile:
    if _profile not in PROFILES:
        raise ValueError(f"server_profiles.py: profile {_profile} has no ProfileSpec; add one to _SPECS")


# --- profile of a server by its name --------------------------------------------------------------------------------


class ProfileMatch(NamedTuple):
    """Profile of a server and the rule that matched; `rule` is None if no rule matched (generic)."""

    profile: str
    rule: str | None


class NamePattern(Protocol):
    """A compiled regular expression: of `re`, or of RE2 where the pattern comes from a file."""

    @property
    def pattern(self) -> str: ...

    def match(self, name: str, /) -> object: ...


@dataclass(frozen=True)
class ProfileRules:
    """Rules from names to profiles: the pins, then the patterns in order.

    patterns: (regular expression, profile), matched at the start of the name, case ignored.
    pins: lower-case server name, or its part before the first dot -> profile.
    added: number of patterns, from the first one on, that come from the fleet file.
    """

    patterns: tuple[tuple[NamePattern, str], ...] = field(compare=False)
    pins: Mapping[str, str] = field(default_factory=dict)
    added: int = 0


BUILT_IN_RULES = ProfileRules(
    tuple((re.compile(p, re.IGNORECASE), spec.profile) for spec in _SPECS for p in spec.name_patterns)
)
SENT_WITH_SAMPLES = "sent with the samples"


def match_profile(server_name: str, rules: ProfileRules = BUILT_IN_RULES) -> ProfileMatch:
    """Profile of a server by its name (host name or full domain name), and a description of the rule that matched."""
    lowered = server_name.lower()
    for pin in (lowered, lowered.partition(".")[0]):
        if pin in rules.pins:
            return ProfileMatch(rules.pins[pin], f"pin {pin}")
    for position, (pattern, profile) in enumerate(rules.patterns):
        if pattern.match(server_name):
            source = "fleet file" if position < rules.added else "built-in"
            return ProfileMatch(profile, f"pattern {pattern.pattern} ({source})")
    return ProfileMatch(ServerProfile.GENERIC, None)


def has_own_rule(server_name: str, rules: ProfileRules) -> bool:
    """Whether a rule of the fleet file gives the profile, rather than a built-in pattern or none."""
    own = replace(rules, patterns=rules.patterns[: rules.added])
    return match_profile(server_name, own).rule is not None


def infer_profile_from_name(server_name: str, rules: ProfileRules = BUILT_IN_RULES) -> str:
    """Profile of a server by its name: ppml0015 -> ml_compute; a name without a matching rule -> generic."""
    return match_profile(server_name, rules).profile


def profile_of(name: str, sent: str | None, rules: ProfileRules) -> tuple[str, str | None]:
    """Profile of a server and the rule that gave it.

    A pinned name comes first, then the profile sent with the samples, then the name patterns.
    """
    match = match_profile(name, rules)
    pinned = match.rule is not None and match.rule.startswith("pin ")
    if sent is not None and not pinned:
        return sent, SENT_WITH_SAMPLES
    return str(match.profile), match.rule
