"""Detects metrics that will cross their threshold: the probability by the forecast, within the look-ahead.

The highest probability of all steps up to the look-ahead counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fleet_forecast.contract.forecast_spec import report_horizons
from fleet_forecast.serving.alerting.alert import BREACH, Alert, AlertKey
from fleet_forecast.serving.alerting.bounds import NO_BOUNDS
from fleet_forecast.serving.alerting.detection import Detection
from fleet_forecast.serving.alerting.exceedance import breach_probability, crossing_times, likelier_limit
from fleet_forecast.serving.alerting.messages import breach_evidence, forecast_basis
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.forecasts.snapshot import ServerForecast

SERVERS_AT_ONCE = 256  # bounds the memory of the probabilities by step


class ThresholdDetector:
    """Probabilities of a breach. Stores the last ones of each server by report horizon."""

    reason = BREACH
    resolved_text = "is no longer expected to cross its threshold"
    curve = ()

    def __init__(self, rules: AlertRules) -> None:
        self.probabilities: dict[str, np.ndarray] = {}  # server -> float32 [metric of the model, report horizon]
        self.rules = rules

    def detect(self, forecasts: Sequence[ServerForecast], _firing: Mapping[AlertKey, Alert], /) -> Iterator[Detection]:
        """One result for each server and metric of it; 0 for one without threshold or present value."""
        model = forecasts[0].model
        horizons = report_horizons(forecasts[0].horizon_steps * model.step_seconds).values()
        columns = [max(seconds // model.step_seconds, 1) - 1 for seconds in horizons]
        last = max(1, min(self.rules.lookahead_seconds // model.step_seconds, forecasts[0].horizon_steps)) - 1
        for start in range(0, len(forecasts), SERVERS_AT_ONCE):
            part = forecasts[start : start + SERVERS_AT_ONCE]
            quantiles = np.stack([forecast.quantiles for forecast in part])  # (server, metric, quantile, step)
            by_step = breach_probability(quantiles, model.quantiles, limit_table(self.rules, part))
            highest = np.maximum.accumulate(by_step, axis=2)  # (server, metric, step): up to and with each step
            by_horizon = highest[..., columns].astype(np.float32)
            self.probabilities.update(zip((forecast.server_name for forecast in part), by_horizon, strict=True))
            for forecast, probabilities in zip(part, highest[..., last].tolist(), strict=True):
                for metric, probability in zip(model.metrics, probabilities, strict=True):
                    if metric not in forecast.not_measured:
                        yield Detection(forecast.server_name, metric, probability, self._evidence)

    def keep_only(self, server_names: Iterable[str]) -> None:
        """Discard the probabilities of all other servers."""
        for name in self.probabilities.keys() - set(server_names):
            del self.probabilities[name]

    def _evidence(self, forecast: ServerForecast, detection: Detection) -> str:
        metric = detection.metric
        limit = likelier_limit(forecast, metric, self.rules.bounds_of(forecast.server_name, forecast.profile, metric))
        if limit is None:
            raise ValueError(f"{metric} of {forecast.server_name} has no threshold: no breach can be expected")
        times = crossing_times(forecast, metric, limit)
        text = breach_evidence(forecast.origin_seconds, metric, limit, detection.probability, times)
        return f"{text} {forecast_basis(forecast, metric, limit)}"


def limit_table(rules: AlertRules, forecasts: Sequence[ServerForecast]) -> np.ndarray:
    """Upper and lower bounds of forecasts of one model: float [server, metric, bound], NaN for none.

    A metric that is not measured is forecast from the profile and the other metrics; that raises no alert.
    """
    metrics = forecasts[0].model.metrics
    limits = np.full((len(forecasts), len(metrics), 2), np.nan)
    for row, forecast in enumerate(forecasts):
        own = rules.thresholds_of(forecast.server_name, forecast.profile)
        for column, metric in enumerate(metrics):
            if forecast.current[column] is not None:
                limits[row, column] = [np.nan if bound is None else bound for bound in own.get(metric, NO_BOUNDS)]
    return limits
