"""Forecasts as JSON: what the API says, from the forecast's one array."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.selection import EVERYTHING, Selection, selected_steps
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.ingest.validation import Rejection


def forecast_document(
    forecast: ServerForecast, age_seconds: float, stale: bool, selection: Selection = EVERYTHING
) -> dict[str, Any]:
    """One server's forecast, ready for orjson with OPT_SERIALIZE_NUMPY."""
    model = forecast.model
    steps = selected_steps(forecast, selection)
    quantiles = [q for q in model.quantiles if selection.quantiles is None or q in selection.quantiles]
    metrics = {}
    for index, metric in enumerate(model.metrics):
        if selection.metrics is None or metric in selection.metrics:
            rows = forecast.quantiles[index]  # (quantile, step)
            metrics[metric] = {
                "unit": METRIC_SPECS[metric].unit,
                "current": forecast.current[index],
                **{f"q{q:g}": _chosen(rows[model.quantiles.index(q)], steps, forecast) for q in quantiles},
            }
    return {
        "server_name": forecast.server_name,
        "profile": forecast.profile,
        "profile_rule": forecast.rule,
        "model": model.model_id,
        "origin": iso(forecast.origin_seconds),
        "made_at": iso(forecast.made_at_seconds),
        "age_seconds": round(age_seconds, 1),
        "stale": stale,
        "cold_start": forecast.history_steps == 0,
        "history_steps": forecast.history_steps,
        "step_seconds": model.step_seconds,
        "steps": steps,
        "timestamps": [iso(forecast.origin_seconds + step * model.step_seconds) for step in steps],
        "warnings": forecast.warnings,
        "metrics": metrics,
    }


def _chosen(row: np.ndarray, steps: Sequence[int], forecast: ServerForecast) -> np.ndarray:
    if len(steps) == forecast.horizon_steps:
        return row
    return row[np.array(steps, dtype=np.int64) - 1]


def rejection_documents(rejected: Iterable[Rejection]) -> list[dict[str, Any]]:
    """Rejections as the API says them."""
    return [rejection._asdict() for rejection in rejected]
