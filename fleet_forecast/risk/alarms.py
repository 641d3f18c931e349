"""Alarms of a risk against labelled incidents: persistence, hits and false alarms, and the curve over levels.

An alarm is a period in which a risk fires on a server: it begins when the risk was at or above a level in several
forecasts in a row, and ends when it was below half of it in several. An alarm that begins between the onset of an
incident's precursor and half an hour after the incident's end is a hit; several of one incident count once. All others
are false. Precision depends on the rate of incidents: it is given at the usual one of the simulator, one incident per
server and month.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

FIRE_FORECASTS, RESOLVE_FORECASTS, RESOLVE_SHARE = 2, 3, 0.5  # the defaults of the daemon's rules
AFTER_SECONDS = 1_800  # an alarm so long after the end of an incident is still a hit
LONG_PRECURSOR_SECONDS = 3_600
MONTH_SECONDS = 30 * 86_400
MOST_FALSE_ALARMS = 10.0  # per server and month; more are of no use
USUAL_RATE = 1.0  # incidents per server and month
CURVE_LEVELS = tuple(float(f"{1 / (1 + np.exp(-x)):.3g}") for x in np.linspace(-5, 4.6, 50))  # even in log odds


class Incidents(NamedTuple):
    """Labelled incidents: arrays [incident].

    server: row. onset: of the precursor, where it is not known the start; start, end: of the harm; seconds since 1970.
    kind: its type.
    """

    server: np.ndarray
    onset: np.ndarray
    start: np.ndarray
    end: np.ndarray
    kind: np.ndarray

    def where(self, chosen: np.ndarray) -> Incidents:
        """Some of them, by a mask."""
        return Incidents(*(field[chosen] for field in self))


class Scene(NamedTuple):
    """A fleet on which alarms are evaluated.

    seconds: [step] when a step is complete, since 1970. rate: incidents per server and month in this fleet.
    """

    servers: int
    seconds: np.ndarray
    incidents: Incidents
    rate: float

    @property
    def server_months(self) -> float:
        """Evaluated time of all servers."""
        return self.servers * len(self.seconds) * float(self.seconds[1] - self.seconds[0]) / MONTH_SECONDS


class AlarmResults(NamedTuple):
    """Alarms of a fleet: false ones, and by incident its kind, whether its precursor is long, and the lead.

    lead_seconds: from the first hit to the start of the harm, negative after it, NaN if the incident was not found.
    """

    false_alarms: int
    kinds: np.ndarray
    has_long_precursor: np.ndarray
    lead_seconds: np.ndarray


class CurvePoint(NamedTuple):
    """Alarms at one level. Shares are None where there is no such incident.

    ahead: share of the incidents with a long precursor that are found before the harm. median_lead_minutes: from the
    first alarm to the start of the harm, over the found ones with a long precursor; negative after it.
    """

    level: float
    false_alarms_per_server_month: float
    precision: float | None
    recall_long_precursor: float | None
    recall_other: float | None
    ahead: float | None
    median_lead_minutes: float | None


def hysteresis(above: np.ndarray, below: np.ndarray, fire_forecasts: int, resolve_forecasts: int) -> np.ndarray:
    """When alarms are on: from so many steps above in a row until so many below; boolean like the arguments.

    above, below: boolean [server, step, ...], at or above the firing level, and below the resolving one.
    """
    on = np.zeros(above.shape, dtype=bool)
    state = np.zeros(above[:, 0].shape, dtype=bool)
    ups, downs = np.zeros(state.shape, dtype=int), np.zeros(state.shape, dtype=int)
    for step in range(above.shape[1]):
        ups = np.where(above[:, step], ups + 1, 0)
        downs = np.where(below[:, step], downs + 1, 0)
        state = (state & (downs < resolve_forecasts)) | (ups >= fire_forecasts)
        on[:, step] = state
    return on


def persistent(risk: np.ndarray, level: float, fire_forecasts: int = FIRE_FORECASTS) -> np.ndarray:
    """When an alarm at this level is on: bool [server, step], of risk [server, step]; NaN is neither high nor low."""
    return hysteresis(risk >= level, risk < RESOLVE_SHARE * level, fire_forecasts, RESOLVE_FORECASTS)


class Matched(NamedTuple):
    """Alarms and incidents.

    begins, false: bool [server, step], beginnings of all and of false alarms. hits: float64 [incident], seconds of the
    first alarm of each, NaN without one.
    """

    begins: np.ndarray
    false: np.ndarray
    hits: np.ndarray


def match(firing: np.ndarray, seconds: np.ndarray, windows: Iterable[tuple[int, float, float]]) -> Matched:
    """Match alarms with incidents. firing: bool [server, step]; seconds: [step].

    windows: server, beginning and end of the time in which an alarm counts for an incident.
    """
    begins = firing & ~np.concatenate([np.zeros((len(firing), 1), dtype=bool), firing[:, :-1]], axis=1)
    explained = np.zeros(firing.shape, dtype=bool)
    hits = []
    for server, first, last in windows:
        during = (seconds >= first) & (seconds <= last)
        explained[server] |= during
        own = seconds[during & begins[server]]
        hits.append(float(own[0]) if own.size else np.nan)
    return Matched(begins, begins & ~explained, np.array(hits, dtype=np.float64))


def evaluate_alarms(firing: np.ndarray, scene: Scene) -> AlarmResults:
    """Hits and false alarms of bool [server, step]; incidents that are not whole in the scene are left out."""
    incidents = scene.incidents
    windows = zip(incidents.server, incidents.onset, incidents.end + AFTER_SECONDS, strict=True)
    matched = match(firing, scene.seconds, windows)
    step_seconds = scene.seconds[1] - scene.seconds[0]
    whole = (incidents.onset >= scene.seconds[0] - step_seconds) & (incidents.end <= scene.seconds[-1])
    long = incidents.start - incidents.onset >= LONG_PRECURSOR_SECONDS
    leads = incidents.start - matched.hits
    return AlarmResults(int(matched.false.sum()), incidents.kind[whole], long[whole], leads[whole])


def summary(results: Sequence[AlarmResults], scenes: Sequence[Scene]) -> dict[str, Any]:
    """The fields of a CurvePoint besides its level, over all fleets."""
    false = sum(each.false_alarms for each in results)
    long = np.concatenate([each.has_long_precursor for each in results])
    leads = np.concatenate([each.lead_seconds for each in results])
    found = ~np.isnan(leads)
    usual = sum(
        float((~np.isnan(each.lead_seconds)).sum()) * USUAL_RATE / scene.rate
        for each, scene in zip(results, scenes, strict=True)
    )
    return {
        "false_alarms_per_server_month": false / sum(scene.server_months for scene in scenes),
        "precision": _share(usual, usual + false),
        "recall_long_precursor": _share(found[long].sum(), long.sum()),
        "recall_other": _share(found[~long].sum(), (~long).sum()),
        "ahead": _share((leads[long] > 0).sum(), long.sum()),
        "median_lead_minutes": float(np.median(leads[long & found]) / 60) if (long & found).any() else None,
    }


def curve(risks: Sequence[np.ndarray], scenes: Sequence[Scene], levels: Sequence[float]) -> list[CurvePoint]:
    """Alarms by level, from risks [server, step] of each fleet; without levels of more than MOST_FALSE_ALARMS."""
    points = [
        CurvePoint(
            level,
            **summary([evaluate_alarms(persistent(r, level), s) for r, s in zip(risks, scenes, strict=True)], scenes),
        )
        for level in sorted(levels)
    ]
    rates = [point.false_alarms_per_server_month for point in points]
    most = int(np.argmax(rates))  # below that level alarms seldom end, so that fewer begin
    too_many = [index for index, rate in enumerate(rates) if rate > MOST_FALSE_ALARMS]
    return points[max([most, *(index + 1 for index in too_many)]) :]


def begins_within(scene: Scene, seconds: float) -> np.ndarray:
    """Whether an incident begins within so many seconds or is under way: bool [server, step]."""
    return _between(scene, scene.incidents.start - seconds, scene.incidents.end)


def signs_begun(scene: Scene) -> np.ndarray:
    """Whether the precursor of an incident has begun or it is under way: bool [server, step]."""
    return _between(scene, scene.incidents.onset, scene.incidents.end)


def near_incident(scene: Scene, before_seconds: float, after_seconds: float) -> np.ndarray:
    """Whether a step is so near to an incident, from before its onset to after its end: bool [server, step]."""
    return _between(scene, scene.incidents.onset - before_seconds, scene.incidents.end + after_seconds)


def _between(scene: Scene, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    found = np.zeros((scene.servers, len(scene.seconds)), dtype=bool)
    for server, begin, end in zip(scene.incidents.server, first, last, strict=True):
        found[server] |= (scene.seconds >= begin) & (scene.seconds <= end)
    return found


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
