"""The alert book: counts how often in a row each server and metric was above or below the levels, holds firing alerts.

An alert fires when the probability of a detector is at or above a level for several forecasts in a row. It ends when
the probability was below a lower level for several (hysteresis).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fleet_forecast.serving.alerting.alert import Alert, AlertKey
from fleet_forecast.serving.alerting.anomaly_detector import AnomalyDetector
from fleet_forecast.serving.alerting.detection import Detection, Detector
from fleet_forecast.serving.alerting.exceedance import crossing_times
from fleet_forecast.serving.alerting.messages import DETECTOR_OFF_TEXT, firing_text, resolved_text, silent_text
from fleet_forecast.serving.alerting.risk_detector import RiskDetector
from fleet_forecast.serving.alerting.rules import AlertRules
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
    """Forecasts in a row of one server and metric, at or above the firing level and below the resolving one."""

    above: int = 0
    below: int = 0


@dataclass
class _Server:
    """State of one server: the last origin, and streaks by metric."""

    origin_seconds: int = -1
    streaks: dict[str, _Streak] = field(default_factory=dict)


_Result = tuple[str, Detection]  # reason of the detector, and its detection
_Results = tuple[str, Mapping[AlertKey, Detection]]


class AlertBook:
    """Firing alerts. It is given forecasts from one thread at a time.

    detectors: the first of those with the highest probability describes the alert.
    """

    def __init__(self, rules: AlertRules, detectors: Sequence[Detector] | None = None) -> None:
        self.rules = rules
        self.firing: dict[AlertKey, Alert] = {}
        self._detectors = detectors_of(rules) if detectors is None else list(detectors)
        self.updates = 0  # number of changes of `probabilities`
        self._resolved_texts = {detector.reason: detector.resolved_text for detector in self._detectors}
        self._servers: dict[str, _Server] = {}

    @property
    def probabilities(self) -> Mapping[str, np.ndarray]:
        """Exceedance probabilities by server: float32 [metric of the model, report horizon]."""
        found = (each.probabilities for each in self._detectors if isinstance(each, ThresholdDetector))
        return next(found, {})

    def update(self, forecasts: Iterable[ServerForecast], now_seconds: float) -> list[Alert]:
        """Run the detectors on new forecasts, each origin once; returns the alerts that began or ended."""
        changed: list[Alert] = []
        fresh = [forecast for forecast in forecasts if self._is_fresh(forecast, now_seconds)]
        for model in dict.fromkeys(forecast.model for forecast in fresh):  # two while a new model takes over
            of_model = [forecast for forecast in fresh if forecast.model == model]
            found = [
                (detector.reason, {detection.key: detection for detection in detector.detect(of_model, self.firing)})
                for detector in self._detectors
            ]
            for forecast in of_model:
                changed += self._update_server(forecast, found, now_seconds)
        self.updates += 1
        return changed

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

    def _update_server(self, forecast: ServerForecast, found: Sequence[_Results], now_seconds: float) -> list[Alert]:
        server = self._servers.setdefault(forecast.server_name, _Server())
        server.origin_seconds = forecast.origin_seconds
        changed = []
        for metric in forecast.model.metrics:
            key = forecast.server_name, metric
            of_metric = [(reason, by_key[key]) for reason, by_key in found if key in by_key]
            streak = server.streaks.setdefault(metric, _Streak())
            alert = self._update_metric(forecast, metric, streak, of_metric, now_seconds)
            if alert is not None:
                changed.append(alert)
        return changed

    def _update_metric(
        self,
        forecast: ServerForecast,
        metric: str,
        streak: _Streak,
        found: Sequence[_Result],
        now_seconds: float,
    ) -> Alert | None:
        """The alert if it began or ended."""
        rules, key = self.rules, (forecast.server_name, metric)
        probability = max((detection.probability for _, detection in found), default=0.0)
        streak.above = streak.above + 1 if probability >= rules.fire_probability else 0
        firing = self.firing.get(key)
        if firing is not None and self._cannot_assess(firing, found):
            return None
        streak.below = streak.below + 1 if probability < rules.resolve_probability else 0
        if firing is None and streak.above < rules.fire_forecasts:
            return None
        threshold = rules.thresholds_of(forecast.server_name, forecast.profile).get(metric)
        if firing is not None and (threshold is None or streak.below >= rules.resolve_forecasts):
            del self.firing[key]
            text = resolved_text(firing, self._resolved_texts.get(firing.reason, DETECTOR_OFF_TEXT))
            return replace(firing, probability=probability, ended_seconds=now_seconds, sentence=text)
        if threshold is None or not found:
            return None
        started = now_seconds if firing is None else firing.started_seconds
        reason, strongest = max(found, key=lambda result: result[1].probability)
        self.firing[key] = describe(forecast, strongest, reason, threshold, started)
        return self.firing[key] if firing is None else None

    def _cannot_assess(self, firing: Alert, found: Sequence[_Result]) -> bool:
        """Whether the detector of a firing alert has no result, after a restart for example: the alert is kept."""
        return firing.reason in self._resolved_texts and all(reason != firing.reason for reason, _ in found)


def describe(
    forecast: ServerForecast, detection: Detection, reason: str, threshold: float, started_seconds: float
) -> Alert:
    """The alert of a detection."""
    times = crossing_times(forecast, detection.metric, threshold)

    def absolute(seconds: int | None) -> float | None:
        return None if seconds is None else float(forecast.origin_seconds + seconds)

    return Alert(
        server_name=forecast.server_name,
        profile=forecast.profile,
        metric=detection.metric,
        threshold=threshold,
        probability=detection.probability,
        current=forecast.current[forecast.model.metrics.index(detection.metric)],
        started_seconds=started_seconds,
        ended_seconds=None,
        expected_seconds=absolute(times.expected_seconds),
        earliest_seconds=absolute(times.earliest_seconds),
        latest_seconds=absolute(times.latest_seconds),
        sentence=firing_text(forecast, detection.metric, detection.evidence(forecast, detection)),
        reason=reason,
    )
