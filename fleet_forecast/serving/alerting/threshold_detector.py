"""Detects metrics that will exceed their threshold: the exceedance probability of the forecast, within the look-ahead.

The highest probability of all steps up to the look-ahead counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fleet_forecast.contract.forecast_spec import report_horizons
from fleet_forecast.serving.alerting.alert import BREACH, Alert, AlertKey
from fleet_forecast.serving.alerting.detection import Detection
from fleet_forecast.serving.alerting.exceedance import crossing_times, exceedance_probability
from fleet_forecast.serving.alerting.messages import breach_evidence
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.forecasts.snapshot import ServerForecast

SERVERS_AT_ONCE = 256  # bounds the memory of the probabilities by step


class ThresholdDetector:
    """Exceedance probabilities. Stores the last ones of each server by report horizon."""

    reason = BREACH
    resolved_text = "is no longer expected to exceed its threshold"

    def __init__(self, rules: AlertRules) -> None:
        self.probabilities: dict[str, np.ndarray] = {}  # server -> float32 [metric of the model, report horizon]
        self._rules = rules

    def detect(self, forecasts: Sequence[ServerForecast], _firing: Mapping[AlertKey, Alert], /) -> Iterator[Detection]:
        """One result for each server and metric; 0 for a metric without threshold or present value."""
        model = forecasts[0].model
        horizons = report_horizons(forecasts[0].horizon_steps * model.step_seconds).values()
        columns = [max(seconds // model.step_seconds, 1) - 1 for seconds in horizons]
        last = max(1, min(self._rules.lookahead_seconds // model.step_seconds, forecasts[0].horizon_steps)) - 1
        for start in range(0, len(forecasts), SERVERS_AT_ONCE):
            part = forecasts[start : start + SERVERS_AT_ONCE]
            quantiles = np.stack([forecast.quantiles for forecast in part])  # (server, metric, quantile, step)
            by_step = exceedance_probability(quantiles, model.quantiles, threshold_table(self._rules, part))
            highest = np.maximum.accumulate(by_step, axis=2)  # (server, metric, step): up to and with each step
            by_horizon = highest[..., columns].astype(np.float32)
            self.probabilities.update(zip((forecast.server_name for forecast in part), by_horizon, strict=True))
            for forecast, probabilities in zip(part, highest[..., last].tolist(), strict=True):
                for metric, probability in zip(model.metrics, probabilities, strict=True):
                    yield Detection(forecast.server_name, metric, probability, self._evidence)

    def keep_only(self, server_names: Iterable[str]) -> None:
        """Discard the probabilities of all other servers."""
        for name in self.probabilities.keys() - set(server_names):
            del self.probabilities[name]

    def _evidence(self, forecast: ServerForecast, detection: Detection) -> str:
        metric = detection.metric
        threshold = self._rules.thresholds_of(forecast.server_name, forecast.profile)[metric]
        if threshold is None:
            raise ValueError(f"{metric} of {forecast.server_name} has no threshold: no alert can fire on it")
        times = crossing_times(forecast, metric, threshold)
        return breach_evidence(forecast.origin_seconds, metric, threshold, detection.probability, times)


def threshold_table(rules: AlertRules, forecasts: Sequence[ServerForecast]) -> np.ndarray:
    """Thresholds of forecasts of one model: float [server, metric], NaN for none.

    A metric that is not measured is forecast from the profile and the other metrics; that raises no alert.
    """
    metrics = forecasts[0].model.metrics
    thresholds = np.full((len(forecasts), len(metrics)), np.nan)
    for row, forecast in enumerate(forecasts):
        own = rules.thresholds_of(forecast.server_name, forecast.profile)
        for column, metric in enumerate(metrics):
            threshold = own.get(metric)
            if threshold is not None and forecast.current[column] is not None:
                thresholds[row, column] = threshold
    return thresholds
