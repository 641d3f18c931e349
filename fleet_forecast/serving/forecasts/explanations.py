"""Explanation of a current forecast: the network runs again on the same history and also returns its weights.

The history comes from the window in memory. The new forecast must equal the served one: an explanation of another
forecast is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fleet_forecast.inference.canary import CANARY_TOLERANCE
from fleet_forecast.inference.explanation_document import weights_document
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.risk_document import explained_risk
from fleet_forecast.serving.forecasts.snapshot import ServerForecast


class ForecastReplacedError(Exception):
    """The history no longer gives this forecast: newer samples or another model will replace it."""


def explain_forecast(forecasts: ForecastLoop, forecast: ServerForecast, horizon_steps: Sequence[int]) -> dict[str, Any]:
    """The explanation of one served forecast at some steps of its horizon (from 1), ready for to_json.

    To be called on forecasts.worker. Raises ForecastReplacedError and the errors of Engine.explain.
    """
    source = forecasts.history_of(forecast)
    if source is None:
        raise ForecastReplacedError
    engine, history, peers = source
    origin = np.datetime64(forecast.origin_seconds, "s")
    found = engine.explain(history, [forecast.profile], origin, horizon_steps, peers)
    served = forecast.quantiles.transpose(2, 0, 1)  # (step, metric, quantile), NaN where not measured
    same = np.isclose(found.quantiles[0], served, rtol=CANARY_TOLERANCE, atol=CANARY_TOLERANCE)
    if not (same | np.isnan(served)).all():
        raise ForecastReplacedError
    weights = weights_document(found, engine.variables, forecast.model.step_seconds)
    return {
        "server_name": forecast.server_name,
        "profile": forecast.profile,
        "profile_rule": forecast.rule,
        "model": forecast.model.model_id,
        "starter": forecast.model.starter,
        "origin": iso(forecast.origin_seconds),
        "history_steps": forecast.history_steps,
        "provisional": forecast.provisional,
        "step_seconds": forecast.model.step_seconds,
        "steps": list(horizon_steps),
        "warnings": forecast.warnings,
        "incident_risk": explained_risk(forecast.risk),
        **weights,
        "peers": {**forecast.peers.as_document(), "weights": weights.get("peers", {}).get("weights", {})},
    }
