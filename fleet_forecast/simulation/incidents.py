"""What goes wrong: incidents with a precursor, a peak and a recovery, and outages.

An incident has five times. From `onset` on its precursor grows, as an attentive engineer could see it; at `start`
service begins to suffer; from `peak` to `fade` it is at its worst; at `end` it is over. From start to end the rows
carry the incident's label; the precursor is not labelled, it stands in the metadata. Where there is no warning, onset
and start are the same.

Effects are written on the scale of the metric's physics: for rates the logarithm of a factor (0.7 doubles), for
percentages a change of log odds (2.2 turns 50 % into 90 %).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fleet_forecast.simulation.fleet import TROUBLE_PRONE_SHARE, Fleet
from fleet_forecast.simulation.randomness import normal, uniform
from server_profiles import PROFILES, ServerProfile

Minutes = tuple[float, float]
Effects = Mapping[str, float]

MONTH_SECONDS = 30 * 86_400
TROUBLE_FACTOR = 4.0  # trouble-prone servers have this many times the fleet's average of incidents
OUTAGES_PER_MONTH = 0.5
OUTAGE_MEDIAN_MINUTES = 45.0
RESTART_MINUTES = 30.0  # recovery after an outage: caches are cold, answers slow
CALM_MINUTES = 120.0  # at least so long between two incidents of a server
CASCADE_REACH = {ServerProfile.DATA_INGEST: 3, ServerProfile.DATABASE: 2}  # servers a backpressure cascade spreads to
CASCADE_DELAY_MINUTES: Minutes = (3, 20)
CASCADE_WEAKENING = 0.6
RESTARTED_SECONDS = 90.0  # from the worst to the state after it, where an incident ends with a restart


@dataclass(frozen=True)
class IncidentKind:
    """How one type of incident goes.

    warning: minutes from onset to start; (0, 0) is sudden. climb, peak, recovery: minutes from start to the worst, at
    the worst, and back. signs: what the engineer could see. before: effects reached at the start; worst: at the peak;
    after: at the beginning of the recovery, where it is not a mere way back (a restart empties memory).
    """

    warning: Minutes
    climb: Minutes
    peak: Minutes
    recovery: Minutes
    signs: str
    before: Effects
    worst: Effects
    after: Effects = field(default_factory=dict)


def _effects(**by_metric: float) -> Effects:
    names = {"cpu": "cpu_pct", "mem": "mem_pct", "disk": "disk_io_mb_s", "latency": "latency_ms"}
    names |= {"net_in": "net_in_mb_s", "net_out": "net_out_mb_s"}
    return {names[metric]: effect for metric, effect in by_metric.items()}


E = _effects
KINDS: Mapping[str, IncidentKind] = {
    # ml_compute
    "oom": IncidentKind(
        (180, 480), (2, 6), (5, 20), (30, 60), "memory leaks upward for hours, swapping begins on the disk",
        E(mem=2.2, disk=0.3, latency=0.25), E(mem=3.6, cpu=-0.8, disk=1.0, latency=1.5),
        E(mem=-1.6, cpu=-1.6, disk=0.6, latency=0.3),
    ),
    "cuda_oom": IncidentKind(
        (20, 60), (1, 4), (5, 15), (20, 40), "host memory and disk rise as batches spill from the GPU",
        E(mem=0.8, disk=0.5, latency=0.2), E(mem=1.2, cpu=-1.8, disk=0.7, latency=0.9), E(cpu=-1.2, mem=-0.6),
    ),
    "thermal_throttling": IncidentKind(
        (30, 90), (10, 25), (30, 120), (20, 45), "CPU runs hot near its limit while latency creeps up",
        E(cpu=1.2, latency=0.3), E(cpu=2.0, latency=1.1, disk=-0.5, net_in=-0.4, net_out=-0.5),
    ),
    "disk_cache_exhaustion": IncidentKind(
        (60, 180), (5, 15), (20, 60), (20, 40), "disk reads climb as the cache misses more and more",
        E(disk=0.7, latency=0.3), E(disk=1.4, latency=1.2, cpu=-0.7),
    ),
    # database
    "lock_contention": IncidentKind(
        (10, 40), (3, 10), (10, 45), (10, 25), "latency rises while CPU and disk fall: work is waiting",
        E(latency=0.6, cpu=-0.2), E(latency=2.1, cpu=-0.9, disk=-0.9, net_out=-0.8),
    ),
    "disk_io_saturation": IncidentKind(
        (60, 150), (5, 15), (20, 60), (20, 40), "disk traffic climbs to the device's limit, latency follows",
        E(disk=0.6, latency=0.4), E(disk=1.1, latency=1.8, cpu=-0.4),
    ),
    "connection_pool_exhaustion": IncidentKind(
        (20, 60), (2, 6), (10, 30), (10, 20), "connections pile up: memory and latency rise, traffic does not",
        E(mem=0.5, latency=0.5), E(mem=0.9, latency=1.9, net_in=-0.7, net_out=-1.0, cpu=-0.6),
    ),
    "slow_query_storm": IncidentKind(
        (15, 45), (5, 15), (20, 60), (15, 30), "CPU and disk reads rise together with latency",
        E(cpu=0.6, disk=0.3, latency=0.4), E(cpu=2.4, disk=0.8, latency=1.6, mem=0.4),
    ),
    # web_api
    "http_503": IncidentKind(
        (5, 20), (1, 4), (5, 25), (8, 20), "latency and CPU rise as workers run out",
        E(cpu=0.8, latency=0.7), E(cpu=1.8, latency=1.9, net_out=-1.4),
    ),
    "connection_timeouts": IncidentKind(
        (10, 40), (2, 8), (10, 40), (10, 20), "latency grows while traffic slowly falls",
        E(latency=0.6, net_out=-0.2), E(latency=2.3, net_in=-0.6, net_out=-1.1, cpu=-0.5),
    ),
    "ssl_expiry": IncidentKind(
        (0, 0), (0, 1), (20, 90), (5, 10), "none: a certificate expires from one second to the next",
        E(), E(net_in=-1.2, net_out=-2.6, cpu=-1.2, disk=-0.8, latency=0.5),
    ),
    "ddos": IncidentKind(
        (2, 8), (3, 10), (15, 60), (10, 20), "inbound traffic climbs within minutes",
        E(net_in=0.5, cpu=0.3), E(net_in=2.1, cpu=2.8, latency=2.0, net_out=0.5, mem=0.6),
    ),
    # conductor_mgmt
    "job_queue_overflow": IncidentKind(
        (60, 180), (5, 15), (20, 60), (20, 45), "the queue grows: memory, disk and latency rise for hours",
        E(mem=0.7, disk=0.4, latency=0.5), E(mem=1.4, disk=0.9, latency=1.7, cpu=1.5),
    ),
    "scheduler_deadlock": IncidentKind(
        (3, 10), (1, 2), (10, 40), (10, 20), "a few slow dispatches, then nothing moves",
        E(latency=0.4), E(cpu=-2.2, net_in=-1.0, net_out=-1.6, disk=-1.5, latency=2.2),
    ),
    "resource_allocation_failure": IncidentKind(
        (20, 60), (3, 8), (15, 40), (15, 30), "repeated attempts raise CPU and network",
        E(cpu=0.6, net_out=0.3, latency=0.3), E(cpu=1.6, net_out=0.8, net_in=0.6, latency=1.3),
    ),
    "metadata_corruption": IncidentKind(
        (0, 0), (1, 3), (20, 60), (20, 40), "none: corruption shows when it is read",
        E(), E(disk=1.5, cpu=1.2, latency=1.4, net_out=-0.7),
    ),
    # data_ingest
    "kafka_consumer_lag": IncidentKind(
        (60, 240), (10, 20), (20, 90), (30, 60), "lag grows: memory and disk rise while output falls behind input",
        E(mem=0.7, disk=0.3, latency=0.5, net_out=-0.2), E(mem=1.3, disk=0.7, latency=1.7, net_out=-0.8),
        E(net_out=0.5, cpu=1.0),
    ),
    "disk_queue_saturation": IncidentKind(
        (45, 120), (5, 15), (20, 60), (20, 40), "disk traffic nears its limit, latency follows",
        E(disk=0.5, latency=0.4), E(disk=0.9, latency=1.7, cpu=-0.5, net_out=-0.4),
    ),
    "network_congestion": IncidentKind(
        (15, 45), (3, 10), (15, 60), (10, 25), "latency rises with traffic, then throughput collapses",
        E(net_in=0.35, latency=0.5), E(net_in=-0.8, net_out=-0.9, latency=1.8, disk=-0.5),
    ),
    "backpressure_cascade": IncidentKind(
        (30, 90), (5, 15), (20, 60), (20, 45), "buffers fill: memory rises, input falls; then it spreads",
        E(mem=0.8, latency=0.4, net_in=-0.15), E(mem=1.7, latency=1.6, net_in=-0.9, net_out=-0.7, cpu=-0.6),
        E(net_in=0.4, disk=0.3),
    ),
    # risk_analytics
    "calculation_timeout": IncidentKind(
        (30, 90), (5, 10), (15, 60), (15, 30), "CPU stays near its limit while latency climbs",
        E(cpu=0.8, latency=0.5), E(cpu=2.2, latency=1.6, net_out=-0.6),
    ),
    "matrix_operation_failure": IncidentKind(
        (5, 15), (1, 3), (5, 20), (15, 30), "memory jumps as the operation is allocated",
        E(mem=0.8, latency=0.2), E(mem=1.4, cpu=-2.0, latency=1.0, disk=0.5), E(mem=-0.9, cpu=-1.0),
    ),
    "resource_starvation": IncidentKind(
        (60, 180), (10, 20), (30, 90), (20, 45), "CPU and memory climb together for hours",
        E(cpu=0.9, mem=0.9, latency=0.4), E(cpu=2.4, mem=1.8, latency=1.5, disk=0.5),
    ),
    "numerical_instability": IncidentKind(
        (0, 5), (1, 4), (10, 40), (10, 25), "hardly any: iterations stop converging",
        E(cpu=0.3), E(cpu=1.8, mem=0.4, latency=1.0, net_out=-0.9),
    ),
}  # fmt: skip
del E

LABELS = tuple(KINDS)  # the code of an incident is its position here
METRIC_POSITIONS = {name: position for position, name in enumerate(PROFILES[ServerProfile.GENERIC].baselines)}


def incident_table() -> str:
    """Markdown table of all incidents; docs/incidents.md holds it."""

    def span(minutes: Minutes) -> str:
        low, high = minutes
        return "none" if high == 0 else f"{low:g}-{high:g} min" if high < 120 else f"{low / 60:g}-{high / 60:g} h"

    lines = [
        "| profile | incident | warning | at its worst | recovery | signs before it |",
        "|---|---|---|---|---|---|",
    ]
    for profile, spec in PROFILES.items():
        for label in spec.incidents:
            kind = KINDS[label]
            spans = " | ".join(span(phase) for phase in (kind.warning, kind.peak, kind.recovery))
            lines.append(f"| {profile} | `{label}` | {spans} | {kind.signs} |")
    return "\n".join(lines)


class Events(NamedTuple):
    """Incidents of a fleet, ordered by server and onset: arrays [event], times in seconds after the start of it all."""

    server: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]  # position in LABELS
    onset: npt.NDArray[np.float64]
    start: npt.NDArray[np.float64]
    peak: npt.NDArray[np.float64]
    fade: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    severity: npt.NDArray[np.float64]  # scales the effects

    def where(self, chosen: npt.NDArray[np.bool_]) -> Events:
        """The chosen events."""
        return Events._make(array[chosen] for array in self)


class Outages(NamedTuple):
    """Times without telemetry: arrays [outage], seconds after the start of it all."""

    server: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]

    def where(self, chosen: npt.NDArray[np.bool_]) -> Outages:
        """The chosen outages."""
        return Outages._make(array[chosen] for array in self)


def join_events(*parts: Events) -> Events:
    """All events, ordered by server and onset."""
    joined = Events._make(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.lexsort((joined.onset, joined.server))
    return Events._make(array[order] for array in joined)


def schedule_events(
    fleet: Fleet, seed: int, rate: float, begin: float, end: float, busy: npt.NDArray[np.float64] | None = None
) -> Events:
    """Incidents with onset from `begin` to `end`, `rate` a server and month on average; a later end only adds events.

    busy: [server] when the incident under way at `begin` ends.
    """
    counts = np.array([len(PROFILES[profile].incidents) for profile in ServerProfile])[fleet.profile_codes]
    first_kind = np.cumsum([0, *(len(PROFILES[profile].incidents) for profile in ServerProfile)])[fleet.profile_codes]
    per_second = np.where(counts > 0, rate * trouble_weights(fleet) / MONTH_SECONDS, 0.0)
    free = np.maximum(begin, busy if busy is not None else np.full(len(fleet), begin))
    rounds: list[Events] = []
    servers = np.flatnonzero(per_second > 0)
    turn = 0
    while servers.size:
        keys = fleet.keys[servers]

        def draw(field_: int, keys: npt.NDArray[np.int64] = keys, turn: int = turn) -> npt.NDArray[np.float64]:
            return uniform(seed, keys, 50_000 + turn, field_)

        onset = free[servers] - np.log(draw(0)) / per_second[servers]
        within = onset < end
        kind = first_kind[servers] + np.floor(draw(1) * counts[servers]).astype(np.int64)
        times = np.cumsum(
            [onset, *(60 * _between(kind, phase, draw(2 + i)) for i, phase in enumerate(_PHASES))], axis=0
        )
        severity = 0.7 + 0.5 * draw(6)
        rounds.append(Events._make((servers, kind, *times, severity)).where(within))
        free[servers] = times[-1] + 60 * CALM_MINUTES
        servers = servers[within]
        turn += 1
    return _with_cascades(fleet, seed, join_events(_NO_EVENTS, *rounds))


_PHASES = ("warning", "climb", "peak", "recovery")
_NO_EVENTS = Events._make((*(np.empty(0, dtype=np.int64) for _ in range(2)), *(np.empty(0) for _ in range(6))))


def _between(kind: npt.NDArray[np.int64], phase: str, fraction: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    bounds = np.array([getattr(KINDS[label], phase) for label in LABELS])[kind]
    minutes: npt.NDArray[np.float64] = bounds[:, 0] + fraction * (bounds[:, 1] - bounds[:, 0])
    return minutes


def trouble_weights(fleet: Fleet) -> npt.NDArray[np.float64]:
    """[server] rate of trouble relative to the average of a large fleet."""
    others = (1 - TROUBLE_PRONE_SHARE * TROUBLE_FACTOR) / (1 - TROUBLE_PRONE_SHARE)
    return np.where(fleet.habits.trouble_prone, TROUBLE_FACTOR, others)


def _with_cascades(fleet: Fleet, seed: int, events: Events) -> Events:
    """Events and, for each backpressure cascade, weaker and later ones on the servers it spreads to."""
    cascade = LABELS.index("backpressure_cascade")
    spread: list[Events] = []
    for position in np.flatnonzero(events.kind == cascade):
        source = int(events.server[position])
        key, moment = int(fleet.keys[source]), int(events.onset[position])
        for profile, reach in CASCADE_REACH.items():
            code = list(ServerProfile).index(profile)
            neighbours = np.flatnonzero((fleet.profile_codes == code) & (np.arange(len(fleet)) != source))
            order = np.argsort(uniform(seed, key, moment, fleet.keys[neighbours]))[:reach]
            hit = neighbours[order]
            low, high = CASCADE_DELAY_MINUTES
            delay = 60 * (low + (high - low) * uniform(seed, key, moment, fleet.keys[hit], 1))
            start = events.start[position] + delay
            times = [start + (array[position] - events.start[position]) for array in events[4:7]]
            kinds = np.full(hit.size, cascade)
            severity = np.full(hit.size, CASCADE_WEAKENING * events.severity[position])
            spread.append(Events._make((hit, kinds, start, start, *times, severity)))
    return join_events(events, *spread) if spread else events


def schedule_outages(fleet: Fleet, seed: int, rate: float, begin: float, end: float) -> Outages:
    """Outages beginning from `begin` to `end`, OUTAGES_PER_MONTH · rate a server and month on average."""
    per_second = OUTAGES_PER_MONTH * rate * trouble_weights(fleet) / MONTH_SECONDS
    servers = np.flatnonzero(per_second > 0)
    free = np.full(len(fleet), begin)
    rounds: list[Outages] = []
    turn = 0
    while servers.size:
        keys = fleet.keys[servers]
        start = free[servers] - np.log(uniform(seed, keys, 90_000 + turn, 0)) / per_second[servers]
        length = OUTAGE_MEDIAN_MINUTES * np.exp(0.6 * normal(seed, keys, 90_000 + turn, 1))
        finish = start + 60 * np.clip(length, 10, 8 * 60)
        within = start < end
        rounds.append(Outages(servers, start, finish).where(within))
        free[servers] = finish + 60 * RESTART_MINUTES
        servers = servers[within]
        turn += 1
    joined = Outages._make(np.concatenate(arrays) for arrays in zip(_NO_OUTAGES, *rounds, strict=True))
    order = np.lexsort((joined.start, joined.server))
    return Outages._make(array[order] for array in joined)


_NO_OUTAGES = Outages(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))


def injected_event(fleet: Fleet, server_name: str, label: str, onset: float) -> Events:
    """One incident of middling course, to be joined to a schedule.

    Raises ValueError if the server is not of the fleet or its profile has no such incident.
    """
    if server_name not in fleet.names:
        shown = ", ".join(fleet.names[:3])
        msg = f"no server {server_name!r} in the fleet; use one of its names, such as {shown}"
        raise ValueError(msg)
    server = fleet.names.index(server_name)
    profile = fleet.profile(server)
    if label not in PROFILES[profile].incidents:
        known = ", ".join(PROFILES[profile].incidents) or "none"
        msg = f"a {profile} server such as {server_name} has no incident {label!r}; it has: {known}"
        raise ValueError(msg)
    kind = np.array([LABELS.index(label)])
    phases = [60 * _between(kind, phase, np.array([0.3])) for phase in _PHASES]
    times = np.cumsum([np.array([onset]), *phases], axis=0)
    return Events._make((np.array([server]), kind, *times, np.ones(1)))


class Shape(NamedTuple):
    """How far an incident is at each time; arrays of the times' shape, 0 to 1."""

    before: npt.NDArray[np.float32]
    worst: npt.NDArray[np.float32]
    after: npt.NDArray[np.float32]


def shape(events: Events, position: int, seconds: npt.NDArray[np.float64]) -> Shape:
    """Weights of the three sets of effects over time: the precursor grows, hands over to the peak, and all fades."""
    onset, start, peak, fade, end = (float(array[position]) for array in events[2:7])
    before = _ramp(seconds, onset, start) ** 1.5 * (1 - _ramp(seconds, start, peak))
    fading = 1 - _ramp(seconds, fade, end)
    restarted = bool(KINDS[LABELS[events.kind[position]]].after)
    easing = 1 - _ramp(seconds, fade, fade + RESTARTED_SECONDS) if restarted else fading**2
    worst = _ramp(seconds, start, peak) * easing
    after = _ramp(seconds, fade, fade + RESTARTED_SECONDS) * fading
    inside = (seconds >= onset) & (seconds < end)
    return Shape(*((array * inside).astype(np.float32) for array in (before, worst, after)))


def _ramp(seconds: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """0 up to `low`, 1 from `high` on, linear between; a step at `high` where both are the same."""
    if high <= low:
        return (seconds >= high).astype(np.float64)
    return np.clip((seconds - low) / (high - low), 0.0, 1.0)
