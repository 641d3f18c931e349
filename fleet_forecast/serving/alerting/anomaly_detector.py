"""Detects servers that deviate from what was forecast for them an hour before, in all metrics together.

`past_forecasts` scores the measurements; risk/departures.py describes the statistics. Latency must be above its past
forecast, where it is measured. The alert is on one metric: the one with the largest contribution to T² when the anomaly
begins, until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from fleet_forecast.risk.departures import t2_contributions, t_statistic
from fleet_forecast.serving.alerting.alert import DEPARTURE, Alert, AlertKey
from fleet_forecast.serving.alerting.detection import Detection
from fleet_forecast.serving.alerting.exceedance import LOWER, UPPER, nearest_level
from fleet_forecast.serving.alerting.messages import anomaly_evidence
from fleet_forecast.serving.alerting.past_forecasts import PastForecasts
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.alerting.severity import WATCH, levels_of
from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast

SERVICE_METRIC = "latency_ms"
NAMED_CONTRIBUTION = 0.15  # of T²: a metric with less is not named in the message


class Anomaly(NamedTuple):
    """One server's deviation from its past forecast.

    probability: that the server has a problem. contributions: float [metric], parts of T², NaN where unknown; their sum
    is T². low, high: float [metric], quantiles 0.1 and 0.9 of the past forecast of the present values, NaN if none.
    """

    probability: float
    contributions: np.ndarray
    low: np.ndarray
    high: np.ndarray


class AnomalyModel:
    """Anomalies of all servers of one model. A metric without a covariance is left out."""

    def __init__(self, model: ModelView) -> None:
        self.past = PastForecasts(model)
        self._model = model
        self._columns, self._covariance = model.departures.of_metrics(model.metrics)

    def update(self, forecasts: Sequence[ServerForecast]) -> list[Anomaly | None]:
        """Anomalies at a cycle's origins, each server's origins in order; None without a past forecast."""
        if not self._columns:
            return [None] * len(forecasts)
        averages, past = self.past.update(forecasts)
        with_covariance = t2_contributions(averages[:, self._columns], self._covariance)
        probability = self._model.departures.probability(t_statistic(with_covariance))
        if SERVICE_METRIC in self._model.metrics:
            service = averages[:, self._model.metrics.index(SERVICE_METRIC)]
            probability[service <= 0] = 0.0  # NaN, where it is not measured, is not changed
        contributions = np.full(averages.shape, np.nan)
        contributions[:, self._columns] = with_covariance
        known = ~np.isnan(contributions).all(axis=1)
        low, high = (past[..., nearest_level(self._model.quantiles, level)] for level in (LOWER, UPPER))
        return [
            Anomaly(float(probability[row]), contributions[row], low[row], high[row]) if known[row] else None
            for row in range(len(forecasts))
        ]


class AnomalyDetector:
    """Reports each anomaly on one metric of its server."""

    reason = DEPARTURE
    resolved_text = "is within its forecast again"
    curve = ()

    def __init__(self, rules: AlertRules) -> None:
        self.rules = rules
        self._model: AnomalyModel | None = None
        self._metric_of: dict[str, str] = {}  # server -> metric of its anomaly

    def detect(self, forecasts: Sequence[ServerForecast], firing: Mapping[AlertKey, Alert], /) -> Iterator[Detection]:
        """One result for each server with an anomaly; none in the first hour of a server or after a restart."""
        if self._model is None or not self._model.past.is_compatible(forecasts[0].model):
            self._model = AnomalyModel(forecasts[0].model)
        for (name, alert_metric), alert in firing.items():
            if alert.reason == self.reason:  # it fired before a restart
                self._metric_of.setdefault(name, alert_metric)
        for forecast, anomaly in zip(forecasts, self._model.update(forecasts), strict=True):
            if anomaly is None:
                continue
            metric = self._metric(forecast, anomaly, firing)
            if metric is not None:
                evidence = partial(_evidence, anomaly)
                yield Detection(forecast.server_name, metric, anomaly.probability, evidence)

    def keep_only(self, server_names: Iterable[str]) -> None:
        """Discard the state of all other servers."""
        kept = set(server_names)
        if self._model is not None:
            self._model.past.keep_only(kept)
        for name in self._metric_of.keys() - kept:
            del self._metric_of[name]

    def _metric(self, forecast: ServerForecast, anomaly: Anomaly, firing: Mapping[AlertKey, Alert]) -> str | None:
        """The metric of the anomaly: the largest contribution when it begins, the same until it ends."""
        name = forecast.server_name
        metric = self._metric_of.get(name)
        if anomaly.probability >= levels_of(self.curve, self.rules)[WATCH].resolve:
            candidates = [
                (contribution, candidate)
                for contribution, candidate in zip(anomaly.contributions.tolist(), forecast.model.metrics, strict=True)
                if not np.isnan(contribution) and not self.rules.is_muted(name, forecast.profile, candidate)
            ]
            if metric is None and candidates:
                metric = self._metric_of[name] = max(candidates)[1]
        elif metric is not None and (name, metric) not in firing:
            del self._metric_of[name]
        return metric


def _evidence(anomaly: Anomaly, forecast: ServerForecast, detection: Detection) -> str:
    metrics, metric = forecast.model.metrics, detection.metric
    index = metrics.index(metric)
    band = None if np.isnan(anomaly.low[index]) else (float(anomaly.low[index]), float(anomaly.high[index]))
    total = float(np.nansum(anomaly.contributions))
    others = [
        other
        for other, contribution in zip(metrics, anomaly.contributions.tolist(), strict=True)
        if other != metric and contribution >= NAMED_CONTRIBUTION * total
    ]
    return anomaly_evidence(metric, band, others, anomaly.probability)
