"""The alert book: counts how often in a row each server and metric was above or below the levels, holds firing alerts.

An alert fires with a severity when the probability of a detector is at or above its level for several forecasts in a
row. The severity ends when the probability was below a lower level for several (hysteresis). An alert whose severity
rises from watch to page, or falls back, is the same alert; it ends with its last severity.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from fleet_forecast.serving.alerting.alert import Alert, AlertKey
from fleet_forecast.serving.alerting.anomaly_detector import AnomalyDetector
from fleet_forecast.serving.alerting.bounds import Limit
from fleet_forecast.serving.alerting.detection import Detection, Detector
from fleet_forecast.serving.alerting.exceedance import NEVER_CROSSED, crossing_times, likelier_limit
from fleet_forecast.serving.alerting.messages import (
    DETECTOR_OFF_TEXT,
    context_text,
    firing_text,
    peers_text,
    resolved_text,
    silent_text,
)
from fleet_forecast.serving.alerting.peers import PeerGroups
from fleet_forecast.serving.alerting.risk_detector import RiskDetector
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.alerting.severity import SEVERITIES, WATCH, Levels, levels_of
from fleet_forecast.serving.alerting.threshold_detector import ThresholdDetector
from fleet_forecast.serving.forecasts.snapshot import ServerForecast


def _anomaly_detector(rules: AlertRules) -> Detector | None:
    return AnomalyDetector(rules) if rules.departures else None


# The daemon's detectors: each entry returns one, or None if the rules switch it off.
DETECTORS: list[Callable[[AlertRules], Detector | None]] = [ThresholdDetector, _anomaly_detector, RiskDetector]


def detectors_of(rules: AlertRules) -> list[Detector]:
    """The detectors that the rules switch on."""
    return [detector for create in DETECTORS if (detector := create(rules)) is not None]


@dataclass
class _Streak:
    """One severity of a server and metric: whether it is on; forecasts in a row above and below its two levels."""

    on: bool = False
    above: int = 0
    below: int = 0


@dataclass
class _Server:
    """State of one server: the last origin, and streaks by metric and severity."""

    origin_seconds: int = -1
    streaks: dict[str, dict[str, _Streak]] = field(default_factory=dict)


_Result = tuple[str, Detection]  # reason of the detector, and its detection
_Results = tuple[str, Mapping[AlertKey, Detection]]


class _Cycle(NamedTuple):
    """What all servers of one update have in common.

    levels: by reason and severity. lowest: by reason, the lowest level at which an alert of any severity fires.
    """

    now_seconds: float
    found: Sequence[_Results]
    levels: Mapping[str, Mapping[str, Levels]]
    lowest: Mapping[str, float]
    peers: PeerGroups


class AlertBook:
    """Firing alerts. It is given forecasts from one thread at a time.

    detectors: the one whose probability is highest, measured by its own level, describes an alert when its severity
    begins; it goes on while its probability is not below its resolving level.
    """

    def __init__(self, rules: AlertRules, detectors: Sequence[Detector] | None = None) -> None:
        self.rules = rules
        self.firing: dict[AlertKey, Alert] = {}
        self._detectors = detectors_of(rules) if detectors is None else list(detectors)
        self.updates = 0  # number of changes of `probabilities`
        self._servers: dict[str, _Server] = {}
        self._updating = threading.Lock()

    def use_rules(self, rules: AlertRules) -> None:
        """Use other rules from the next update on; the detectors keep their state of the servers."""
        with self._updating:
            known = {type(detector): detector for detector in self._detectors}
            self._detectors = [known.get(type(detector), detector) for detector in detectors_of(rules)]
            for detector in self._detectors:
                detector.rules = rules
            self.rules = rules

    @property
    def probabilities(self) -> Mapping[str, np.ndarray]:
        """Exceedance probabilities by server: float32 [metric of the model, report horizon]."""
        found = (each.probabilities for each in self._detectors if isinstance(each, ThresholdDetector))
        return next(found, {})

    def update(self, forecasts: Iterable[ServerForecast], now_seconds: float) -> list[Alert]:
        """Run the detectors on new forecasts, each origin once.

        Returns the alerts that began or ended, and those whose severity changed.
        """
        with self._updating:
            return self._update(list(forecasts), now_seconds)

    def _update(self, forecasts: Sequence[ServerForecast], now_seconds: float) -> list[Alert]:
        changed: list[Alert] = []
        fresh = [forecast for forecast in forecasts if self._is_fresh(forecast, now_seconds)]
        for model in dict.fromkeys(forecast.model for forecast in fresh):  # two while a new model takes over
            of_model = [forecast for forecast in fresh if forecast.model == model]
            cycle = self._cycle(of_model, forecasts, now_seconds)
            for forecast in of_model:
                changed += self._update_server(forecast, cycle)
        self.updates += 1
        return changed

    def _cycle(
        self, fresh: Sequence[ServerForecast], forecasts: Sequence[ServerForecast], now_seconds: float
    ) -> _Cycle:
        """Run the detectors on new forecasts of one model; `forecasts` are those of all servers."""
        found = [
            (detector.reason, {detection.key: detection for detection in detector.detect(fresh, self.firing)})
            for detector in self._detectors
        ]
        levels = {detector.reason: levels_of(detector.curve, self.rules) for detector in self._detectors}
        by_reason = dict(found)

        def shows(name: str, metric: str, reason: str) -> bool:
            detection = by_reason.get(reason, {}).get((name, metric))
            if detection is not None:
                return detection.probability >= levels[reason][WATCH].resolve
            firing = self.firing.get((name, metric))
            return firing is not None and firing.reason == reason

        lowest = {reason: min(level.fire for level in of_reason.values()) for reason, of_reason in levels.items()}
        return _Cycle(now_seconds, found, levels, lowest, PeerGroups(forecasts, shows))

    def keep_only(self, server_names: Iterable[str], now_seconds: float) -> list[Alert]:
        """Discard servers that left the snapshot; their alerts end."""
        kept = set(server_names)
        for detector in self._detectors:
            detector.keep_only(kept)
        gone = self._servers.keys() - kept
        for name in gone:
            del self._servers[name]
        ended = [self.firing.pop(key) for key in [key for key in self.firing if key[0] in gone]]
        return [replace(alert, ended_seconds=now_seconds, sentence=silent_text(alert)) for alert in ended]

    def restore(self, alerts: Iterable[Mapping[str, Any]]) -> None:
        """Add the alerts that fired before a restart."""
        for fields in alerts:
            alert = Alert(**fields)
            self.firing[alert.key] = alert
            self._servers.setdefault(alert.server_name, _Server())

    def as_documents(self) -> list[dict[str, Any]]:
        """Firing alerts as plain fields, for `restore`."""
        return [asdict(alert) for alert in self.firing.values()]

    def _is_fresh(self, forecast: ServerForecast, now_seconds: float) -> bool:
        """Whether the origin is complete, and later than the last one, or the last one is in the future.

        The latter happens after the clock was ahead for a while; otherwise alerts would stop until that time.
        """
        if forecast.provisional:
            return False
        server = self._servers.get(forecast.server_name)
        last = server.origin_seconds if server else -1
        return forecast.origin_seconds > last or forecast.origin_seconds != last > now_seconds

    def _update_server(self, forecast: ServerForecast, cycle: _Cycle) -> list[Alert]:
        server = self._servers.setdefault(forecast.server_name, _Server())
        server.origin_seconds = forecast.origin_seconds
        changed = []
        for metric in forecast.metrics:
            key = forecast.server_name, metric
            of_metric = [(reason, by_key[key]) for reason, by_key in cycle.found if key in by_key]
            if key not in self.firing and all(p.probability < cycle.lowest[reason] for reason, p in of_metric):
                server.streaks.pop(metric, None)
                continue
            streaks = server.streaks.get(metric)
            if streaks is None:
                streaks = server.streaks[metric] = self._new_streaks(key)
            alert = self._update_metric(forecast, metric, streaks, of_metric, cycle)
            if alert is not None:
                changed.append(alert)
        return changed

    def _new_streaks(self, key: AlertKey) -> dict[str, _Streak]:
        """Streaks of a server and metric; those of an alert that fired before a restart are on."""
        firing = self.firing.get(key)
        on = () if firing is None else SEVERITIES[SEVERITIES.index(firing.severity) :]
        return {severity: _Streak(severity in on) for severity in SEVERITIES}

    def _update_metric(
        self,
        forecast: ServerForecast,
        metric: str,
        streaks: Mapping[str, _Streak],
        found: Sequence[_Result],
        cycle: _Cycle,
    ) -> Alert | None:
        """The alert if it began or ended, or if its severity changed."""
        key = forecast.server_name, metric
        firing = self.firing.get(key)
        self._count(streaks, found, cycle, firing)
        if firing is not None and self._cannot_assess(firing, found):
            return None
        severity = next((each for each in SEVERITIES if streaks[each].on), None)
        if severity is None or self.rules.is_muted(forecast.server_name, forecast.profile, metric):
            return None if firing is None else self._end(firing, found, cycle.now_seconds)
        if not found:
            return None
        reason, detection = self._describing(found, firing, severity, cycle)
        bounds = self.rules.bounds_of(forecast.server_name, forecast.profile, metric)
        alert = describe(forecast, detection, likelier_limit(forecast, metric, bounds))
        alert = _continued(replace(alert, reason=reason, severity=severity, highest_severity=severity), firing, cycle)
        peers = peers_text(forecast, metric, cycle.peers.of(forecast.profile, metric, reason))
        self.firing[key] = replace(alert, sentence=alert.sentence + context_text(alert.started_seconds, peers))
        return self.firing[key] if firing is None or firing.severity != severity else None

    def _count(
        self, streaks: Mapping[str, _Streak], found: Sequence[_Result], cycle: _Cycle, firing: Alert | None
    ) -> None:
        """Count the forecast in the streaks of each severity, and switch it on or off."""
        kept = firing is not None and self._cannot_assess(firing, found)
        for severity, streak in streaks.items():
            fires = [p.probability >= cycle.levels[reason][severity].fire for reason, p in found]
            resolves = [p.probability < cycle.levels[reason][severity].resolve for reason, p in found]
            streak.above = streak.above + 1 if any(fires) else 0
            if not kept:
                streak.below = streak.below + 1 if all(resolves) else 0
                stays = streak.on and streak.below < self.rules.resolve_forecasts
                streak.on = stays or streak.above >= self.rules.fire_forecasts

    def _describing(self, found: Sequence[_Result], firing: Alert | None, severity: str, cycle: _Cycle) -> _Result:
        """The detection that describes an alert: unless it rises, that of the same reason as before.

        Another one only if it goes on while that of the reason does not: an alert that ends keeps its reason.
        """
        if firing is not None and SEVERITIES.index(severity) >= SEVERITIES.index(firing.severity):
            on = {reason for reason, p in found if p.probability >= cycle.levels[reason][severity].resolve}
            kept = {firing.reason} if firing.reason in on or not on else on
            found = [result for result in found if result[0] in kept] or found
        return max(found, key=lambda result: result[1].probability / cycle.levels[result[0]][severity].fire)

    @property
    def _resolved_texts(self) -> Mapping[str, str]:
        return {detector.reason: detector.resolved_text for detector in self._detectors}

    def _end(self, firing: Alert, found: Sequence[_Result], now_seconds: float) -> Alert:
        del self.firing[firing.key]
        text = resolved_text(firing, self._resolved_texts.get(firing.reason, DETECTOR_OFF_TEXT))
        probability = max((detection.probability for _, detection in found), default=0.0)
        return replace(firing, probability=probability, ended_seconds=now_seconds, sentence=text)

    def _cannot_assess(self, firing: Alert, found: Sequence[_Result]) -> bool:
        """Whether the detector of a firing alert has no result, after a restart for example: the alert is kept."""
        return firing.reason in self._resolved_texts and all(reason != firing.reason for reason, _ in found)


def _continued(alert: Alert, firing: Alert | None, cycle: _Cycle) -> Alert:
    """The alert with the values recorded by an earlier forecast: its start, its first crossing, its severity."""
    limit = None if alert.threshold is None else Limit(alert.threshold, alert.below)
    crosses = limit is not None and alert.current is not None and limit.is_crossed_by(alert.current)
    crossed = cycle.now_seconds if crosses else None
    if firing is None:
        return replace(alert, started_seconds=cycle.now_seconds, crossed_seconds=crossed)
    highest = min(alert.severity, firing.highest_severity, key=SEVERITIES.index)
    earlier = firing.crossed_seconds
    return replace(
        alert,
        started_seconds=firing.started_seconds,
        crossed_seconds=crossed if earlier is None else earlier,
        highest_severity=highest,
    )


def describe(forecast: ServerForecast, detection: Detection, limit: Limit | None) -> Alert:
    """The alert of a detection, at the origin of the forecast. limit: None for a metric without a known bound."""
    times = NEVER_CROSSED if limit is None else crossing_times(forecast, detection.metric, limit)

    def absolute(seconds: int | None) -> float | None:
        return None if seconds is None else float(forecast.origin_seconds + seconds)

    return Alert(
        server_name=forecast.server_name,
        profile=forecast.profile,
        metric=detection.metric,
        threshold=None if limit is None else limit.value,
        below=limit is not None and limit.is_lower,
        probability=detection.probability,
        current=forecast.current[forecast.model.metrics.index(detection.metric)],
        started_seconds=float(forecast.origin_seconds),
        ended_seconds=None,
        expected_seconds=absolute(times.expected_seconds),
        earliest_seconds=absolute(times.earliest_seconds),
        latest_seconds=absolute(times.latest_seconds),
        sentence=firing_text(forecast, detection.metric, detection.evidence(forecast, detection)),
    )
