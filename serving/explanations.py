"""What a served forecast rests on: the network asked again, on the same history, this time for its weights too.

Nothing is kept for it from the cycle. The history is taken from the window in memory, and the forecast that comes with
the weights is held against the one that was served: an explanation of anything else is not given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fleet_forecast.inference.explanations import Interpretation, Variables, in_lag_bins, label_of, lag_bin_steps
from fleet_forecast.inference.model_directory import CANARY_TOLERANCE
from serving.answers import iso
from serving.cycle import FleetForecasts, ServerForecast


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


def weights_document(found: Interpretation, variables: Variables, step_seconds: int) -> dict[str, Any]:
    """The weights of one server: its variables by group, heaviest first, and its attention by lag."""
    bin_steps = lag_bin_steps(found.attention.shape[1])
    bin_hours = bin_steps * step_seconds / 3600
    of_context = in_lag_bins(found.attention[0])[: -(-int(found.encoder_steps[0]) // bin_steps)]
    return {
        "variables": {
            group: _heaviest_first(names, getattr(found, group)[0]) for group, names in variables._asdict().items()
        },
        "attention": {
            "bin_hours": round(bin_hours, 4),
            "lag_hours": [round(index * bin_hours, 4) for index in range(len(of_context))],
            "weights": [_rounded(weight) for weight in of_context],
            "horizon_weight": _rounded(found.attention_ahead[0]),
        },
    }


def as_text(weights: Mapping[str, Any]) -> str:
    """A weights_document as tables in percent."""
    lines = []
    for group, entries in weights["variables"].items():
        lines += [f"{group} variables", *(f"{100 * e['weight']:8.1f} %  {e['label']}" for e in entries), ""]
    attention = weights["attention"]
    lines += ["attention", f"{100 * attention['horizon_weight']:8.1f} %  earlier steps of the horizon"]
    lines += [
        f"{100 * weight:8.1f} %  {lag:g} to {round(lag + attention['bin_hours'], 4):g} h before the origin"
        for lag, weight in zip(attention["lag_hours"], attention["weights"], strict=True)
    ]
    return "\n".join(lines)


def _heaviest_first(names: Sequence[str], weights: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"variable": names[index], "label": label_of(names[index]), "weight": _rounded(weights[index])}
        for index in np.argsort(-weights, kind="stable")
    ]


def _rounded(weight: float) -> float:
    return round(float(weight), 5)
