"""The model in use, and its reload."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from fleet_forecast.inference.fleet_match import contradictions, served_metrics
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    BODY_REFUSALS,
    RunningDaemon,
    UtcTime,
    json_response,
    refusal,
)

router = APIRouter(tags=["model"])


class LastLoad(BaseModel):
    """The last attempt to load a model."""

    at: UtcTime
    problem: Annotated[str | None, Field(description="null if the model is in use")]


class RiskModelSummary(BaseModel):
    """The risk model, and its alarms by level, measured on fleets that it was not trained on."""

    trained_on: Annotated[str, Field(description="simulator: simulated fleets; labels: incidents of this fleet")]
    horizons: list[str]
    metrics: list[str]
    alert_horizon: Annotated[str, Field(description="the curve's levels are risks within it")]
    curve: list[dict[str, float | None]]


class ModelResponse(BaseModel):
    """The model in use; before the first one is loaded `model` is null and the fields after last_load are missing."""

    model: str | None
    last_load: LastLoad | None
    metrics: list[str] = []
    quantiles: list[float] = []
    step_seconds: int | None = None
    horizon_steps: int | None = None
    history_steps: int | None = None
    profiles: list[str] = []
    contradictions: Annotated[list[str], Field(description="what the fleet file says differently; not served")] = []
    risk_model: RiskModelSummary | None = None


class ReloadResponse(ModelResponse):
    """The result of a reload, and the model in use after it."""

    loaded: bool
    problem: str | None


@router.get(
    "/api/v1/model",
    summary="The model in use",
    response_model=ModelResponse,
    response_description="the model",
    responses=ACCESS_REFUSALS,
)
async def model(daemon: RunningDaemon) -> Response:
    return json_response(_model(daemon))


@router.put("/-/reload", include_in_schema=False)  # the path of Prometheus and Alertmanager
@router.post("/-/reload", include_in_schema=False)
@router.post(
    "/api/v1/reload",
    summary="Load the model again",
    response_model=ReloadResponse,
    response_description="the model was loaded and is in use",
    responses={
        **ACCESS_REFUSALS,
        403: refusal("no admin token is set, or sent by a page of another origin"),
        409: {"model": ReloadResponse, "description": "the model was refused; the previous one stays in use"},
        413: BODY_REFUSALS[413],
        415: BODY_REFUSALS[415],
    },
)
async def reload(daemon: RunningDaemon) -> Response:
    result = await daemon.model.load()
    document = {"loaded": result.problem is None, "problem": result.problem, **_model(daemon)}
    return json_response(document, 200 if result.problem is None else 409)


def _model(daemon: Daemon) -> dict[str, Any]:
    engine, last = daemon.forecasts.engine, daemon.model.last_load
    document: dict[str, Any] = {
        "model": None,
        "last_load": None if last is None else {"at": iso(last.at_seconds), "problem": last.problem},
    }
    if engine is None:
        return document
    config = engine.config
    return document | {
        "model": engine.model_id,
        "metrics": served_metrics(config),
        "quantiles": config.quantiles,
        "step_seconds": config.step_seconds,
        "horizon_steps": config.horizon_steps,
        "history_steps": config.history_steps,
        "profiles": config.profiles,
        "contradictions": contradictions(config),
        "risk_model": None if engine.risk_model is None else engine.risk_model.summary(),
    }
