"""The JSON of a server's forecast, and the models that document it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.inference.risk_model import RISK_HORIZONS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.risk_document import risk_document
from fleet_forecast.serving.forecasts.selection import EVERYTHING, Selection, selected_steps
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.routes.responses import Starter, UtcTime

_EXAMPLE: dict[str, Any] = {
    "server_name": "ppml0015",
    "profile": "ml_compute",
    "profile_rule": r"pattern ppml\d+ (built-in)",
    "model": "tft_model_20261123T080000Z",
    "starter": False,
    "origin": "2026-11-23T10:00:00Z",
    "made_at": "2026-11-23T10:05:11Z",
    "age_seconds": 320.4,
    "stale": False,
    "cold_start": False,
    "provisional": False,
    "history_steps": 288,
    "peers": {"count": 11, "weight": 0.42},
    "incident_risk": {
        "trained_on": "simulator",
        "within": dict(zip(RISK_HORIZONS, (0.0012, 0.0051, 0.0098), strict=True)),
    },
    "step_seconds": 300,
    "steps": [12],
    "timestamps": ["2026-11-23T11:00:00Z"],
    "warnings": [],
    "not_measured": [],
    "metrics": {"cpu_pct": {"unit": "%", "current": 78.0, "q0.1": [70.1], "q0.5": [77.9], "q0.9": [85.3]}},
}


class MetricForecast(BaseModel):
    """Quantiles of one metric: one list for each level, named q and the level, with one value for each step."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, list[float]]

    unit: str
    current: Annotated[float | None, Field(description="mean over the step of the origin, null if not measured")]


class Peers(BaseModel):
    """The other servers of the profile that a forecast uses."""

    count: Annotated[int, Field(description="largest number of peers measured at a step of the last day")]
    weight: Annotated[float, Field(description="of their level against the server's own, 0 to 1, mean of the metrics")]


class IncidentRisk(BaseModel):
    """The probability that an incident begins soon or is under way."""

    trained_on: Annotated[str, Field(description="simulator: simulated fleets; labels: incidents of this fleet")]
    within: Annotated[dict[str, float], Field(description="probability by horizon")]


class ForecastOrigin(BaseModel):
    """What a forecast and its explanation have in common."""

    server_name: str
    profile: str
    profile_rule: Annotated[str | None, Field(description="rule that determined the profile; null if none matches")]
    model: str
    starter: Starter
    origin: Annotated[UtcTime, Field(description="last step of the history")]
    provisional: Annotated[
        bool, Field(description="the step of the origin is not complete; `current` is the mean so far")
    ]
    history_steps: Annotated[int, Field(description="measured steps in the history")]
    step_seconds: int
    steps: Annotated[list[int], Field(description="steps after the origin, the first is 1")]
    warnings: list[str]


class ForecastResponse(ForecastOrigin):
    """The forecast of one server."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    made_at: UtcTime
    age_seconds: Annotated[float, Field(description="time since the origin")]
    stale: Annotated[bool, Field(description="the server has sent nothing for some steps")]
    cold_start: Annotated[bool, Field(description="nothing was measured yet; the forecast uses profile and peers")]
    timestamps: Annotated[list[UtcTime], Field(description="times of the steps")]
    peers: Peers
    incident_risk: Annotated[
        IncidentRisk | None, Field(description="null without a risk model or before the first complete step")
    ]
    not_measured: Annotated[
        list[str], Field(description="metrics of the model that neither the server nor its profile measures; left out")
    ]
    metrics: dict[str, MetricForecast]


def forecast_document(
    forecast: ServerForecast, age_seconds: float, stale: bool, selection: Selection = EVERYTHING
) -> dict[str, Any]:
    """A ForecastResponse as a document for to_json; built directly, because a page has up to 1,000 of them."""
    model = forecast.model
    steps = selected_steps(forecast, selection)
    return {
        "server_name": forecast.server_name,
        "profile": forecast.profile,
        "profile_rule": forecast.rule,
        "model": model.model_id,
        "starter": model.starter,
        "origin": iso(forecast.origin_seconds),
        "made_at": iso(forecast.made_at_seconds),
        "age_seconds": round(age_seconds, 1),
        "stale": stale,
        "cold_start": forecast.history_steps == 0,
        "provisional": forecast.provisional,
        "history_steps": forecast.history_steps,
        "step_seconds": model.step_seconds,
        "steps": steps,
        "timestamps": [iso(forecast.origin_seconds + step * model.step_seconds) for step in steps],
        "warnings": forecast.warnings,
        "peers": forecast.peers.as_document(),
        "incident_risk": risk_document(forecast.risk),
        "not_measured": forecast.not_measured,
        "metrics": _metrics(forecast, steps, selection),
    }


def _metrics(forecast: ServerForecast, steps: Sequence[int], selection: Selection) -> dict[str, Any]:
    model = forecast.model
    levels = [q for q in model.quantiles if selection.quantiles is None or q in selection.quantiles]
    metrics = {}
    for index, metric in enumerate(model.metrics):
        if metric in forecast.metrics and (selection.metrics is None or metric in selection.metrics):
            rows = forecast.quantiles[index]  # (quantile, step)
            metrics[metric] = {
                "unit": METRIC_SPECS[metric].unit,
                "current": forecast.current[index],
                **{f"q{q:g}": _at_steps(rows[model.quantiles.index(q)], steps, forecast) for q in levels},
            }
    return metrics


def _at_steps(row: np.ndarray, steps: Sequence[int], forecast: ServerForecast) -> np.ndarray:
    if len(steps) == forecast.horizon_steps:
        return row
    return row[np.array(steps, dtype=np.int64) - 1]
