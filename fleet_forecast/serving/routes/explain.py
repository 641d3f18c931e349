"""GET /api/v1/servers/{name}/explain: the network's weights for a server's forecast."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.risk_model import RISK_HORIZONS
from fleet_forecast.serving.forecasts.explanations import ForecastReplacedError, explain_forecast
from fleet_forecast.serving.forecasts.selection import Selection, check_reach, horizon_seconds, selected_steps
from fleet_forecast.serving.forecasts.turns import WorkerBusyError
from fleet_forecast.serving.routes.forecast_responses import ForecastOrigin, IncidentRisk, Peers
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    BUSY,
    NO_FORECAST,
    RunningDaemon,
    json_response,
    no_forecast,
    refusal,
    retry_later,
)

MAX_WAITING_EXPLANATIONS = 4

router = APIRouter(tags=["forecasts"])


class VariableWeight(BaseModel):
    """The mean selection weight of one input variable."""

    variable: str
    label: str
    weight: float


class VariableWeights(BaseModel):
    """Weights by group of variables; each group sums to 1, the largest weight comes first."""

    static: list[VariableWeight]
    encoder: list[VariableWeight]
    decoder: list[VariableWeight]


class ExplainedPeers(Peers):
    """The peers, and their weight by metric."""

    weights: Annotated[dict[str, float], Field(description="by metric; empty before the model's first cycle")]


class RiskDriver(BaseModel):
    """A contribution to the risk."""

    metric: Annotated[str | None, Field(description="null for profile, time, number of peers and length of history")]
    scale_seconds: Annotated[int | None, Field(description="time scale of the features; 0: the last step alone")]
    log_odds: Annotated[float, Field(description="added to the score of the trees; below 0 it lowers the risk")]


class ExplainedRisk(IncidentRisk):
    """The risk, and its drivers, the largest first."""

    drivers: list[RiskDriver]


class Attention(BaseModel):
    """Mean attention weights by the time before the origin."""

    bin_hours: Annotated[float, Field(description="length of the part of the context that each weight covers")]
    lag_hours: Annotated[list[float], Field(description="hours before the origin at which each part begins")]
    weights: Annotated[list[float], Field(description="the sum with horizon_weight is 1")]
    horizon_weight: Annotated[float, Field(description="attention to earlier steps of the horizon")]


_EXAMPLE: dict[str, Any] = {
    "server_name": "ppml0015",
    "profile": "ml_compute",
    "profile_rule": r"pattern ppml\d+ (built-in)",
    "model": "tft_model_20261123T080000Z",
    "starter": False,
    "origin": "2026-11-23T10:00:00Z",
    "provisional": False,
    "history_steps": 288,
    "step_seconds": 300,
    "steps": [12],
    "warnings": [],
    "incident_risk": {
        "trained_on": "simulator",
        "within": dict(zip(RISK_HORIZONS, (0.41, 0.42, 0.43), strict=True)),
        "drivers": [{"metric": "latency_ms", "scale_seconds": 1800, "log_odds": 2.1}],
    },
    "variables": {
        "static": [{"variable": "profile", "label": "profile", "weight": 1.0}],
        "encoder": [
            {"variable": "cpu_pct_scaled", "label": "cpu_pct, value", "weight": 0.81},
            {"variable": "half_hour", "label": "time of day", "weight": 0.19},
        ],
        "decoder": [{"variable": "half_hour", "label": "time of day", "weight": 1.0}],
    },
    "peers": {"count": 11, "weight": 0.42, "weights": {"cpu_pct": 0.42}},
    "attention": {"bin_hours": 1.0, "lag_hours": [0.0, 1.0], "weights": [0.5, 0.2], "horizon_weight": 0.3},
}


class ExplanationResponse(ForecastOrigin):
    """Weights of variables and attention, means over the selected steps."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    peers: ExplainedPeers
    incident_risk: ExplainedRisk | None
    variables: VariableWeights
    attention: Attention


@router.get(
    "/api/v1/servers/{name:path}/explain",
    summary="Variable weights and attention by lag of the server's forecast",
    response_model=ExplanationResponse,
    response_description="mean weights over the selected steps of the horizon",
    responses={
        **ACCESS_REFUSALS,
        404: NO_FORECAST,
        409: refusal("the model in use has no explanations"),
        503: BUSY,
    },
)
async def explain(
    daemon: RunningDaemon,
    name: str,
    horizon: Annotated[list[str] | None, Query(description="only these horizons, such as 15m or 8h")] = None,
) -> Response:
    selection = Selection(horizon_seconds=None if horizon is None else tuple(map(horizon_seconds, horizon)))
    forecast = daemon.forecasts.snapshot.forecasts.get(name)
    if forecast is None:
        return no_forecast(daemon, name)
    check_reach(forecast, selection)
    if daemon.waiting_explanations >= MAX_WAITING_EXPLANATIONS:
        return retry_later("other explanations are already waiting")
    daemon.waiting_explanations += 1
    try:
        work = daemon.forecasts, forecast, selected_steps(forecast, selection)
        document = await daemon.forecasts.on_request(explain_forecast, *work)
    except ForecastReplacedError:
        return retry_later("a new forecast of this server is being made")
    except WorkerBusyError as problem:
        return retry_later(str(problem))
    except ModelError as problem:
        return json_response({"detail": str(problem)}, 409)
    finally:
        daemon.waiting_explanations -= 1
    return json_response(document)
