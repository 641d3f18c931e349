"""One replay: alerts of a past period, evaluated with incidents, pictures of the worst cases, recommended rules."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fleet_forecast.features.grid import FleetGrid, GridError
from fleet_forecast.inference.batch import Origin
from fleet_forecast.inference.engine import Engine
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.alert import Alert
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.alerting.severity import PAGE, SEVERITIES, WATCH
from fleet_forecast.serving.replay.alarm_evaluation import AlarmEvaluation, Incident, evaluate_alarms, scores
from fleet_forecast.serving.replay.curve import SHARED, measured_curves, recommended_rules, server_months
from fleet_forecast.serving.replay.cycles import forecasts_of
from fleet_forecast.serving.replay.past_alerts import PastAlerts, past_alerts
from fleet_forecast.serving.replay.pictures import Scene, picture
from fleet_forecast.serving.replay.report import ALL_ALERTS, PAGES, ReplayReport

LATE_SECONDS = 1_800  # an alarm counts for an incident until so long after its end
WORST = 5  # false alarms and misses with a picture


@dataclass(frozen=True)
class ReplayRequest:
    """The input of a replay. steps: of the grid. incidents: None if none are known."""

    grid: FleetGrid
    steps: range
    rules: AlertRules
    incidents: Sequence[IncidentRecord] | None


def steps_between(grid: FleetGrid, first: np.datetime64 | None, last: np.datetime64 | None, context: int) -> range:
    """The steps from the first to before the last time; without a first one, after `context` steps of history.

    Raises GridError if there are none.
    """
    start = context if first is None else max(grid.step_at(first), 0)
    stop = grid.steps if last is None else min(grid.step_at(last), grid.steps)
    if start >= stop:
        begin, end = grid.timestamps()[[0, -1]]
        reach = f"the data reach from {iso(begin)} to {iso(end)}"
        raise GridError(f"--from, --to: no step to replay; {reach}, and without --from the first {context} are history")
    return range(start, stop)


def labelled_incidents(frame: pd.DataFrame, step_seconds: int) -> list[IncidentRecord]:
    """Incidents in the column `incident` of contract rows: runs of rows with the same label."""
    if "incident" not in frame.columns:
        return []
    rows = frame.loc[frame["incident"].notna(), ["server_name", "timestamp", "incident"]]
    seconds = rows["timestamp"].to_numpy(dtype="datetime64[s]").astype(np.int64)
    labels = rows[["server_name", "incident"]].astype(str).to_numpy()
    gaps = np.diff(seconds) > 2 * step_seconds
    if not len(rows):
        return []
    starts = np.flatnonzero(np.r_[True, gaps | (labels[1:] != labels[:-1]).any(axis=1)])
    ends = np.r_[starts[1:], len(rows)]
    return [
        IncidentRecord(labels[a, 0], float(seconds[a]), float(seconds[b - 1]) + step_seconds, labels[a, 1])
        for a, b in zip(starts, ends, strict=True)
    ]


def replay(engine: Engine, request: ReplayRequest) -> tuple[ReplayReport, dict[str, Any]]:
    """Replay, evaluate and draw. Returns the report and the speed of the replay."""
    began = time.perf_counter()
    grid, steps, rules = request.grid, request.steps, request.rules
    past = past_alerts(engine, grid, steps, rules)
    seconds = time.perf_counter() - began
    server_steps = int((~np.isnan(grid.values[:, steps.start : steps.stop]).all(axis=2)).sum())
    incidents = None if request.incidents is None else _within(request.incidents, grid, past, rules)
    evaluated = {
        severity: evaluate_alarms(past.firing[severity], past.seconds, incidents or ()) for severity in SEVERITIES
    }
    curves = measured_curves(past, incidents, rules)
    pictures = {} if incidents is None else dict(_pictures(engine, request, past, evaluated[WATCH], incidents))
    facts = {
        "model": engine.model_id,
        "from": iso(past.seconds[0] - grid.step_seconds),
        "to": iso(past.seconds[-1]),
        "servers": len(grid.servers),
        "server_months": round(server_months(past), 3),
        "incidents": len(incidents or ()),
        "pages": sum(alert.highest_severity == PAGE for alert in past.alerts),
        "watches": sum(alert.highest_severity == WATCH for alert in past.alerts),
    }
    grouped = {
        group: _grouped(evaluated[severity], incidents or (), grid, past)
        for group, severity in ((PAGES, PAGE), (ALL_ALERTS, WATCH))  # a page is above the level of watch, too
    }
    recommended = recommended_rules(curves.get(SHARED, ()), rules)
    report = ReplayReport(facts, grouped, curves, past.alerts, pictures, recommended, float(past.seconds[-1]))
    speed = {"server_steps": server_steps, "replay_seconds": round(seconds, 1)}
    return report, {**speed, "server_steps_per_minute": round(server_steps / seconds * 60)}


def _within(records: Sequence[IncidentRecord], grid: FleetGrid, past: PastAlerts, rules: AlertRules) -> list[Incident]:
    """The incidents that begin in the replayed time, with the window in which an alarm counts."""
    rows = {name: row for row, name in enumerate(grid.servers)}
    first, last = past.seconds[0], past.seconds[-1]
    return [
        Incident(
            rows[record.server_name],
            record.start_seconds - rules.lookahead_seconds,
            record.start_seconds,
            record.end_seconds + LATE_SECONDS,
            record.type,
        )
        for record in records
        if record.server_name in rows and first <= record.start_seconds <= last
    ]


def _grouped(
    evaluated: AlarmEvaluation, incidents: Sequence[Incident], grid: FleetGrid, past: PastAlerts
) -> dict[str, dict[str, Any]]:
    """Scores of all servers, of each profile and of each type of incident."""
    months = server_months(past)
    found = {"all": scores(evaluated, incidents, months)}
    profiles = np.array([str(profile) for profile in grid.profiles])
    for profile in sorted(set(profiles)):
        rows = profiles == profile
        own = [place for place, incident in enumerate(incidents) if rows[incident.server]]
        found[f"profile {profile}"] = _part(evaluated, incidents, own, rows, months)
    for kind in sorted({incident.type for incident in incidents}):
        own = [place for place, incident in enumerate(incidents) if incident.type == kind]
        part = _part(evaluated, incidents, own, np.ones(len(profiles), dtype=bool), months)
        of_all = ("false_alarms", "false_alarms_per_server_month", "alarms_per_server_month", "precision")
        found[f"type {kind}"] = {**part, **dict.fromkeys(of_all)}
    return found


def _part(
    evaluated: AlarmEvaluation, incidents: Sequence[Incident], places: Sequence[int], rows: np.ndarray, months: float
) -> dict[str, Any]:
    part = AlarmEvaluation(evaluated.begins[rows], evaluated.false[rows], [evaluated.alarms[place] for place in places])
    return scores(part, [incidents[place] for place in places], months * rows.sum() / len(rows))


def _pictures(
    engine: Engine, request: ReplayRequest, past: PastAlerts, evaluated: AlarmEvaluation, incidents: Sequence[Incident]
) -> Iterator[tuple[str, list[str]]]:
    """The worst false alarms (pages first, then the longest) and misses (the longest)."""
    grid, end = request.grid, float(past.seconds[-1])
    rows = {name: row for row, name in enumerate(grid.servers)}
    at = {(row, past.seconds[step]) for row, step in np.argwhere(evaluated.false)}
    false = [alert for alert in past.alerts if (rows[alert.server_name], alert.started_seconds) in at]
    false.sort(key=lambda alert: (SEVERITIES.index(alert.highest_severity), alert.started_seconds - _end(alert, end)))
    draw = _Drawing(engine, request, past, incidents)
    yield (
        "Worst false alarms",
        [
            draw.figure(rows[alert.server_name], alert.metric, (alert.started_seconds, _end(alert, end)))
            for alert in false[:WORST]
        ],
    )
    missed = [incident for incident, alarm in zip(incidents, evaluated.alarms, strict=True) if alarm is None]
    missed.sort(key=lambda incident: incident.start - incident.end)
    yield (
        "Worst misses",
        [
            draw.figure(incident.server, metric, (incident.start, incident.end - LATE_SECONDS))
            for incident in missed[:WORST]
            for metric in grid.metrics
        ],
    )


def _end(alert: Alert, replay_end: float) -> float:
    return replay_end if alert.ended_seconds is None else alert.ended_seconds


class _Drawing:
    """Figures of one replay, each with the forecast at the beginning of what it shows."""

    def __init__(self, engine: Engine, request: ReplayRequest, past: PastAlerts, incidents: Sequence[Incident]) -> None:
        self._engine, self._request, self._past, self._incidents = engine, request, past, incidents
        self._peers = request.grid.peers()

    def figure(self, server: int, metric: str, around: tuple[float, float]) -> str:
        """A metric of a server around a period."""
        grid, end = self._request.grid, float(self._past.seconds[-1])
        name, profile = grid.servers[server], str(grid.profiles[server])
        alerts = [
            (alert.started_seconds, _end(alert, end))
            for alert in self._past.alerts
            if (alert.server_name, alert.metric) == (name, metric)
        ]
        incidents = [(each.start, each.end - LATE_SECONDS) for each in self._incidents if each.server == server]
        step = grid.step_at(np.datetime64(int(around[0]), "s")) - 1
        made = forecasts_of(self._engine, grid, self._peers, [Origin(server, max(step, 0))])
        bounds = self._request.rules.bounds_of(name, profile, metric).limits
        return picture(grid, Scene(server, metric, around, tuple(alerts), tuple(incidents), tuple(bounds), made[0]))
