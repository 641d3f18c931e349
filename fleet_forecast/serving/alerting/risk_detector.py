"""Detects servers on which an incident is likely: the risk model's probability within the look-ahead.

The alert is on one metric: the one that raises the risk most when it begins, until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fleet_forecast.inference.risk_model import ALERT_HORIZON, RISK_HORIZONS, SIMULATOR, Driver
from fleet_forecast.risk.alarms import CurvePoint
from fleet_forecast.serving.alerting.alert import Alert, AlertKey
from fleet_forecast.serving.alerting.detection import Detection
from fleet_forecast.serving.alerting.messages import label_of
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.forecasts.risk_document import driver_text, largest_drivers
from fleet_forecast.serving.forecasts.snapshot import ServerForecast, ServerRisk

RISK = "risk"  # value of Alert.reason
ALERT_COLUMN = list(RISK_HORIZONS).index(ALERT_HORIZON)
NAMED_DRIVERS = 3
_Assessed = tuple[ServerForecast, ServerRisk]


class RiskDetector:
    """Reports each server's risk on one metric."""

    reason = RISK
    resolved_text = "no longer indicates an incident"

    def __init__(self, rules: AlertRules) -> None:
        self.rules = rules
        self._metric_of: dict[str, str] = {}  # server -> metric of its alert
        self.curve: Sequence[CurvePoint] = ()

    def detect(self, forecasts: Sequence[ServerForecast], firing: Mapping[AlertKey, Alert], /) -> Iterator[Detection]:
        """One result for each server at or above a level of the curve, or with an alert; none without a risk model."""
        for (name, of_alert), alert in firing.items():
            if alert.reason == self.reason:  # it fired before a restart
                self._metric_of.setdefault(name, of_alert)
        assessed = [(forecast, forecast.risk) for forecast in forecasts if forecast.risk is not None]
        if not assessed:
            return
        self.curve = assessed[0][1].model.curve
        self._follow(assessed, firing)
        for forecast, risk in assessed:
            metric = self._metric_of.get(forecast.server_name)
            if metric is not None:
                yield Detection(forecast.server_name, metric, float(risk.probabilities[ALERT_COLUMN]), _evidence)

    def keep_only(self, server_names: Iterable[str]) -> None:
        """Discard the state of all other servers."""
        for name in self._metric_of.keys() - set(server_names):
            del self._metric_of[name]

    def _follow(self, assessed: Sequence[_Assessed], firing: Mapping[AlertKey, Alert]) -> None:
        """Choose the metric of each server whose risk is high: the one that raises it most, the same until it ends."""
        least = min((point.level for point in self.curve), default=self.rules.fire_probability)
        begun: list[_Assessed] = []
        for forecast, risk in assessed:
            name = forecast.server_name
            metric = self._metric_of.get(name)
            if risk.probabilities[ALERT_COLUMN] >= least:
                if metric is None:
                    begun.append((forecast, risk))
            elif metric is not None and (name, metric) not in firing:
                del self._metric_of[name]
        if begun:
            model = begun[0][1].model
            contributions = model.contributions(np.stack([risk.features for _, risk in begun]))
            for (forecast, _), row in zip(begun, contributions.tolist(), strict=True):
                largest = self._largest(forecast, model.drivers, row)
                if largest is not None:
                    self._metric_of[forecast.server_name] = largest

    def _largest(self, forecast: ServerForecast, drivers: Sequence[Driver], contributions: list[float]) -> str | None:
        """The metric, not muted, whose features raise the risk most."""
        raised: dict[str, float] = {}
        muted = {m for m in forecast.metrics if self.rules.is_muted(forecast.server_name, forecast.profile, m)}
        for driver, contribution in zip(drivers, contributions, strict=True):
            if driver.metric in forecast.metrics and driver.metric not in muted:
                raised[driver.metric] = raised.get(driver.metric, 0.0) + contribution
        return max(raised, key=lambda metric: raised[metric], default=None)


def _evidence(forecast: ServerForecast, detection: Detection) -> str:
    """Text of the message: the risk, what it rests on, and what the model was trained on."""
    risk = forecast.risk
    if risk is None:
        raise ValueError(f"{forecast.server_name} has no risk: no alert can fire on it")
    found = [driver for driver in largest_drivers(risk, NAMED_DRIVERS) if driver.metric is not None]
    named = ", ".join(driver_text(driver, label_of) for driver in found)
    origin = "a risk model trained on simulated fleets" if risk.model.trained_on == SIMULATOR else "the risk model"
    text = f"; {origin} gives an incident within {ALERT_HORIZON} a probability of {100 * detection.probability:.0f} %"
    return text + (f", mainly because of {named}." if named else ".")
