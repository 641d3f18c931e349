"""The incidents of a simulated fleet: when each begins, peaks and ends.

An incident has five times. Its precursor grows from `onset` to `start`. Service degrades from `start` on. The incident
is at its worst from `peak` to `fade`, and over at `end`. Rows from start to end have the incident's label. The
precursor has no label; its onset is in the metadata. An incident without warning has onset and start at the same time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.simulation.fleet import INCIDENT_PRONE_SHARE, Fleet
from fleet_forecast.simulation.incident_kinds import KINDS, LABELS, Minutes
from fleet_forecast.simulation.metric_model import profile_order
from fleet_forecast.simulation.randomness import uniform
from server_profiles import ServerProfile

MONTH_SECONDS = 30 * 86_400
INCIDENT_PRONE_FACTOR = 4.0  # incident-prone servers have this many times the incidents of the fleet's average
CALM_MINUTES = 120.0  # least time between two incidents of a server
CASCADE_REACH = {ServerProfile.DATA_INGEST: 3, ServerProfile.DATABASE: 2}  # servers a backpressure cascade spreads to
CASCADE_DELAY_MINUTES: Minutes = (3, 20)
CASCADE_WEAKENING = 0.6


class Period(NamedTuple):
    """From `begin` to before `end`, in seconds since the scenario's start."""

    begin: float
    end: float


class Events(NamedTuple):
    """Incidents of a fleet, ordered by server and onset: arrays [event], times in seconds since the start."""

    server: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]  # position in LABELS
    onset: npt.NDArray[np.float64]
    start: npt.NDArray[np.float64]
    peak: npt.NDArray[np.float64]
    fade: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    severity: npt.NDArray[np.float64]  # scales the effects

    def where(self, chosen: npt.NDArray[np.bool_]) -> Events:
        return Events._make(array[chosen] for array in self)


def join_events(*parts: Events) -> Events:
    joined = Events._make(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.lexsort((joined.onset, joined.server))
    return Events._make(array[order] for array in joined)


def schedule_events(
    fleet: Fleet, seed: int, rate: float, period: Period, busy: npt.NDArray[np.float64] | None = None
) -> Events:
    """Incidents with onset in a period, `rate` per server and month on average; a longer period only adds events.

    busy: [server] end of the incident that is active when the period begins.
    """
    kinds = _kinds_by_profile()[fleet.profile_codes]  # [server, choice]
    counts = np.array([len(PROFILES[profile].incidents) for profile in profile_order()])[fleet.profile_codes]
    per_second = np.where(counts > 0, rate * incident_rate_factors(fleet) / MONTH_SECONDS, 0.0)
    free = np.full(len(fleet), period.begin) if busy is None else np.maximum(period.begin, busy)
    rounds: list[Events] = []
    servers = np.flatnonzero(per_second > 0)
    turn = 0
    while servers.size:
        keys = fleet.keys[servers]

        def draw(field_: int, keys: npt.NDArray[np.int64] = keys, turn: int = turn) -> npt.NDArray[np.float64]:
            return uniform(seed, keys, 50_000 + turn, field_)

        onset = free[servers] - np.log(draw(0)) / per_second[servers]
        within = onset < period.end
        kind = kinds[servers, np.floor(draw(1) * counts[servers]).astype(np.int64)]
        times = np.cumsum(
            [onset, *(60 * _between(kind, phase, draw(2 + i)) for i, phase in enumerate(_PHASES))], axis=0
        )
        severity = 0.7 + 0.5 * draw(6)
        rounds.append(Events._make((servers, kind, *times, severity)).where(within))
        free[servers] = times[-1] + 60 * CALM_MINUTES
        servers = servers[within]
        turn += 1
    return _with_cascades(fleet, seed, join_events(_NO_EVENTS, *rounds))


def _kinds_by_profile() -> npt.NDArray[np.int64]:
    """[profile, choice] position in LABELS of each incident of a profile."""
    most = max(len(spec.incidents) for spec in PROFILES.values())
    kinds = np.zeros((len(profile_order()), max(1, most)), dtype=np.int64)
    for code, profile in enumerate(profile_order()):
        labels = PROFILES[profile].incidents
        kinds[code, : len(labels)] = [LABELS.index(label) for label in labels]
    return kinds


_PHASES = ("warning", "climb", "peak", "recovery")
_NO_EVENTS = Events._make((*(np.empty(0, dtype=np.int64) for _ in range(2)), *(np.empty(0) for _ in range(6))))


def _between(kind: npt.NDArray[np.int64], phase: str, fraction: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    bounds = np.array([getattr(KINDS[label], phase) for label in LABELS])[kind]
    minutes: npt.NDArray[np.float64] = bounds[:, 0] + fraction * (bounds[:, 1] - bounds[:, 0])
    return minutes


def incident_rate_factors(fleet: Fleet) -> npt.NDArray[np.float64]:
    """[server] rate of incidents and outages, relative to the average of a large fleet."""
    others = (1 - INCIDENT_PRONE_SHARE * INCIDENT_PRONE_FACTOR) / (1 - INCIDENT_PRONE_SHARE)
    return np.where(fleet.traits.incident_prone, INCIDENT_PRONE_FACTOR, others)


def _with_cascades(fleet: Fleet, seed: int, events: Events) -> Events:
    """The events, and for each backpressure cascade weaker and later events on the servers that it spreads to."""
    cascade = LABELS.index("backpressure_cascade")
    spread: list[Events] = []
    for position in np.flatnonzero(events.kind == cascade):
        source = int(events.server[position])
        key, moment = int(fleet.keys[source]), int(events.onset[position])
        for profile, reach in CASCADE_REACH.items():
            code = profile_order().index(profile)
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


def injected_event(fleet: Fleet, server_name: str, label: str, onset: float) -> Events:
    """One incident with phases of typical length, to be joined to a schedule.

    Raises ValueError if the server is not in the fleet or its profile has no such incident.
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
