"""Detects servers that deviate from what was forecast for them an hour before, in all metrics together.

A failing server has unusual combinations of metrics before a single metric is extreme: latency rises as traffic falls.

1. `past_forecasts` scores the measurements against the past forecasts.
2. The average scores s are compared with their covariance C over healthy servers: T² = s' C⁻¹ s (Hotelling 1947).
   C is estimated in normal operation, without incidents.
3. Latency must be above its past forecast, where it is measured. A logistic curve turns T into a probability.

The alert is on one metric: the one with the largest contribution to T² when the anomaly begins, until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

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

# Covariance of the average scores of healthy servers; variances are 40 % larger than measured, because a forecast may
# have an error of its own for each server. COVARIANCE, INTERCEPT and SLOPE were estimated on simulated fleets of the
# seeds 101 and 201; `benchmarks/alerts.py --choose --seeds 101,201` prints them for any model.
COVARIANCE_METRICS = ("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms")
COVARIANCE = (
    (1.025, 0.319, 0.316, 0.351, 0.356, 0.276),
    (0.319, 1.131, 0.237, 0.261, 0.265, 0.212),
    (0.316, 0.237, 0.912, 0.276, 0.282, 0.221),
    (0.351, 0.261, 0.276, 0.936, 0.519, 0.248),
    (0.356, 0.265, 0.282, 0.519, 0.942, 0.245),
    (0.276, 0.212, 0.221, 0.248, 0.245, 0.896),
)
INTERCEPT, SLOPE = -15.35, 3.31


class Anomaly(NamedTuple):
    """One server's deviation from its past forecast.

    probability: that the server is in trouble. contributions: float [metric], parts of T², NaN where unknown; their sum
    is T². low, high: float [metric], quantiles 0.1 and 0.9 of the past forecast of the present values, NaN if none.
    """

    probability: float
    contributions: np.ndarray
    low: np.ndarray
    high: np.ndarray


def t2_contributions(averages: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Parts of T² by metric: s_i (C⁻¹ s)_i, [server, metric]; NaN where a metric is unknown.

    averages: s, [server, metric], NaN where unknown, which leaves the metric out of s and C; covariance: C, [metric,
    metric].
    """
    contributions = np.full(averages.shape, np.nan)
    known = ~np.isnan(averages)
    for pattern in np.unique(known, axis=0):
        if pattern.any():
            servers = np.flatnonzero((known == pattern).all(axis=1))
            part = averages[np.ix_(servers, pattern)]
            weighted = np.linalg.solve(covariance[np.ix_(pattern, pattern)], part.T).T
            contributions[np.ix_(servers, pattern)] = part * weighted
    return contributions


def t_statistic(contributions: np.ndarray) -> np.ndarray:
    """T from its parts, [server]. An unknown metric has the expected contribution of a healthy server, 1."""
    t: np.ndarray = np.sqrt(np.where(np.isnan(contributions), 1.0, contributions).sum(axis=-1))
    return t


class AnomalyModel:
    """Anomalies of all servers of one model. A metric without a covariance is left out."""

    def __init__(self, model: ModelView) -> None:
        self.past = PastForecasts(model)
        self._model = model
        self._columns = [column for column, metric in enumerate(model.metrics) if metric in COVARIANCE_METRICS]
        chosen = [COVARIANCE_METRICS.index(model.metrics[column]) for column in self._columns]
        self._covariance = np.array(COVARIANCE)[np.ix_(chosen, chosen)]

    def update(self, forecasts: Sequence[ServerForecast]) -> list[Anomaly | None]:
        """Anomalies at a cycle's origins, each server's origins in order; None without a past forecast."""
        if not self._columns:
            return [None] * len(forecasts)
        averages, past = self.past.update(forecasts)
        with_covariance = t2_contributions(averages[:, self._columns], self._covariance)
        probability = 1 / (1 + np.exp(-(INTERCEPT + SLOPE * t_statistic(with_covariance))))
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
