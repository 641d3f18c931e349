"""The model in use, and its reload."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from fleet_forecast.inference.fleet_match import contradictions, served_metrics
from fleet_forecast.inference.model_directory import STARTER_NOTICE, TRAINING_INFO_FILE, is_starter, read_document
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.query_parameters import wrong_body
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    BODY_REFUSALS,
    RunningDaemon,
    Starter,
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


class ComparedGroup(BaseModel):
    """Scores of both models on one group of servers, before their final fits."""

    group: str
    servers: int
    windows: int
    champion_wql: float
    challenger_wql: float
    ratio: float
    ratio_upper_95: Annotated[float | None, Field(description="upper end of the interval; null of few servers")]
    champion_coverage_80: float
    challenger_coverage_80: float


class ChampionComparison(BaseModel):
    """The comparison with the model that was in use when this one was trained."""

    model: str
    first_origin: str | None
    last_origin: str | None
    groups: list[ComparedGroup]
    worse: Annotated[list[str], Field(description="why this one is worse; nevertheless in use if it was forced")]
    remark: str


class AdviceDocument(BaseModel):
    """Whether to train again: a sequential test of the losses of the daemon's own forecasts, day by day."""

    retrain_recommended: bool
    since: str | None
    reasons: Annotated[list[str], Field(description="reasons to train again")]
    remarks: Annotated[list[str], Field(description="what else is unusual")]
    days: Annotated[int, Field(description="days of the daemon's own forecasts that count")]
    reference_days: Annotated[int, Field(description="days of the model's test period that they are compared with")]
    evidence: Annotated[float, Field(description="of larger losses; `threshold` or more is a reason")]
    threshold: float


class ModelResponse(BaseModel):
    """The model in use; before the first one is loaded `model` is null and the fields after last_load are missing."""

    model: str | None
    last_load: LastLoad | None
    starter: Starter = False
    notice: Annotated[str | None, Field(description="about the starter model, with the remedy")] = None
    metrics: list[str] = []
    quantiles: list[float] = []
    step_seconds: int | None = None
    horizon_steps: int | None = None
    history_steps: int | None = None
    profiles: list[str] = []
    contradictions: Annotated[
        list[str], Field(description="metrics that the fleet file defines differently; not served")
    ] = []
    risk_model: RiskModelSummary | None = None
    champion: ChampionComparison | None = None
    advice: AdviceDocument | None = None


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
    return json_response(await asyncio.to_thread(_model, daemon))


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
async def reload(request: Request, daemon: RunningDaemon) -> Response:
    if (await request.body()).strip() not in (b"", b"{}"):
        raise wrong_body("this path takes no body: the model is that of the settings; publish another one, or omit it")
    result = await daemon.model.load()
    found = await asyncio.to_thread(_model, daemon)
    document = {"loaded": result.problem is None, "problem": result.problem, **found}
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
        "starter": is_starter(engine.model_id),
        "notice": STARTER_NOTICE if is_starter(engine.model_id) else None,
        "metrics": served_metrics(config),
        "quantiles": config.quantiles,
        "step_seconds": config.step_seconds,
        "horizon_steps": config.horizon_steps,
        "history_steps": config.history_steps,
        "profiles": config.profiles,
        "contradictions": contradictions(config),
        "risk_model": None if engine.risk_model is None else engine.risk_model.summary(),
        "champion": (read_document(engine.model_dir, TRAINING_INFO_FILE) or {}).get("champion"),
        "advice": daemon.drift.advice.as_document(),
    }
