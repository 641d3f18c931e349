"""GET /api/v1/model/evaluation: scores of the model in use, when it was trained and since then."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from fleet_forecast.inference.model_directory import EVALUATION_FILE, TRAINING_INFO_FILE, is_starter, read_document
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.monitoring.drift_monitor import DriftMonitor
from fleet_forecast.serving.monitoring.scores import ForecastScores
from fleet_forecast.serving.routes.responses import ACCESS_REFUSALS, RunningDaemon, json_response

# Of training_info.json; its paths and flags belong to the machine that trained.
TRAINING_FIELDS = (
    "servers",
    "unseen_servers",
    "validation_servers",
    "first_timestamp",
    "train_end",
    "test_start",
    "last_timestamp",
    "parameters",
    "minutes",
    "epochs",
    "windows_per_second",
    "stopped_by",
    "loss_history",
    "scored_model",
    "scores",
)

router = APIRouter(tags=["model"])


class LiveScore(BaseModel):
    """Past forecasts of one metric and horizon against what was measured, since the start of the daemon."""

    metric: str
    horizon: str
    scored: Annotated[int, Field(description="number of compared values")]
    coverage_80: Annotated[float | None, Field(description="percentage of values within the 80 % band")]
    wql: Annotated[float | None, Field(description="weighted quantile loss over all quantiles of the model")]


class RecentScore(BaseModel):
    """Forecasts of the last seven days of one profile, metric and horizon, and the same of the test period."""

    profile: str
    metric: str
    horizon: str
    scored: int
    coverage_80: float | None
    wql: float | None
    baseline_wql: Annotated[float | None, Field(description="of the quantiles of the 24 hours before the origin")]
    test_coverage_80: float | None
    test_wql: float | None
    test_baseline_wql: float | None


class EvaluationResponse(BaseModel):
    """The evaluation of the model in use."""

    model: str | None
    training: Annotated[dict[str, Any] | None, Field(description="data, time, cost and scores of the training run")]
    evaluation: Annotated[dict[str, Any] | None, Field(description="evaluation.json; null of a model without one")]
    live: list[LiveScore]
    recent: list[RecentScore]


@router.get(
    "/api/v1/model/evaluation",
    summary="Scores of the model in use, at training time and since the start",
    response_model=EvaluationResponse,
    response_description="the evaluation",
    responses=ACCESS_REFUSALS,
)
async def evaluation(daemon: RunningDaemon) -> Response:
    return json_response(await asyncio.to_thread(_evaluation, daemon))


def _evaluation(daemon: Daemon) -> dict[str, Any]:
    engine = daemon.forecasts.engine
    model_dir = engine.model_dir if engine else None
    of_fleet = engine is not None and not is_starter(engine.model_id)
    info = read_document(model_dir, TRAINING_INFO_FILE) if of_fleet else None
    return {
        "model": engine.model_id if engine else None,
        "training": None if info is None else {name: info[name] for name in TRAINING_FIELDS if name in info},
        "evaluation": read_document(model_dir, EVALUATION_FILE),
        "live": _live(daemon.scores),
        "recent": _recent(daemon.drift),
    }


def _recent(drift: DriftMonitor) -> list[dict[str, Any]]:
    reference = drift.reference
    return [
        {
            **key._asdict(),
            **figures,
            **{f"test_{name}": reference.get(key, {}).get(name) for name in ("coverage_80", "wql", "baseline_wql")},
        }
        for key, figures in drift.figures.items()
    ]


def _live(scores: ForecastScores) -> list[dict[str, Any]]:
    return [
        {
            "metric": metric,
            "horizon": horizon,
            "scored": tally.scored,
            "coverage_80": round(100 * tally.covered_80 / tally.scored, 2) if tally.scored else None,
            "wql": round(tally.pinball / tally.absolute, 5) if tally.absolute else None,
        }
        for (metric, horizon), tally in sorted(scores.tallies.items())
    ]
