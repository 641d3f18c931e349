"""What a served forecast rests on: the network asked again, on the same history, this time for its weights too.

Nothing is kept for it from the cycle. The history is taken from the window in memory, and the forecast that comes with
the weights is held against the one that was served: an explanation of anything else is not given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fleet_forecast.inference.canary import CANARY_TOLERANCE
from fleet_forecast.inference.explanation_document import weights_document
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.cycle import FleetForecasts
from fleet_forecast.serving.forecasts.snapshot import ServerForecast


class ForecastReplacedError(Exception):
    """The forecast is no longer what the history gives: newer samples or another model are about to replace it."""


def explain_forecast(
    forecasts: FleetForecasts, forecast: ServerForecast, horizon_steps: Sequence[int]
) -> dict[str, Any]:
    """The explanation of one served forecast at some steps of its horizon (from 1), ready for to_json.

    To be called on forecasts.worker. Raises ForecastReplacedError, and what Engine.explain raises.
    """
    behind = forecasts.history_behind(forecast)
    if behind is None:
        raise ForecastReplacedError
    engine, history = behind
    origin = np.datetime64(forecast.origin_seconds, "s")
    found = engine.explain(history, [forecast.profile], origin, horizon_steps)
    served = forecast.quantiles.transpose(2, 0, 1)  # (step, metric, quantile)
    if not np.allclose(found.quantiles[0], served, rtol=CANARY_TOLERANCE, atol=CANARY_TOLERANCE):
        raise ForecastReplacedError
    return {
        "server_name": forecast.server_name,
        "profile": forecast.profile,
        "profile_rule": forecast.rule,
        "model": forecast.model.model_id,
        "origin": iso(forecast.origin_seconds),
        "history_steps": forecast.history_steps,
        "step_seconds": forecast.model.step_seconds,
        "steps": list(horizon_steps),
        "warnings": forecast.warnings,
        **weights_document(found, engine.variables, forecast.model.step_seconds),
    }
