"""GET /api/v1/servers/{name}/peers: quartiles of the values that the other servers of its profile measured."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.peer_context import PeerContext
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.forecasts.turns import WorkerBusyError
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    BUSY,
    INVALID_PARAMETER,
    NO_FORECAST,
    RunningDaemon,
    UtcTime,
    json_response,
    no_forecast,
    retry_later,
)

STEP_SECONDS = 900  # between two steps of the band
MIDDLE_HALF = {"low": 25, "high": 75}  # percentiles

router = APIRouter(tags=["forecasts"])


class PeerBand(BaseModel):
    """The middle half of the peers of one metric; null where no peer measured."""

    low: list[float | None]
    high: list[float | None]


class PeerBandResponse(BaseModel):
    """The middle half of the other servers of the profile, every quarter of an hour."""

    server_name: str
    profile: str
    servers: Annotated[int, Field(description="peers; at most 128 of a profile are used")]
    timestamps: list[UtcTime]
    metrics: dict[str, PeerBand]


@router.get(
    "/api/v1/servers/{name:path}/peers",
    summary="The middle half of the peers of one server",
    response_model=PeerBandResponse,
    response_description="quartiles of the peers by time and metric",
    responses={**ACCESS_REFUSALS, 404: NO_FORECAST, 422: INVALID_PARAMETER, 503: BUSY},
)
async def peers(
    daemon: RunningDaemon,
    name: str,
    hours: Annotated[float, Query(gt=0, le=48, description="hours before the origin of the forecast")] = 24.0,
) -> Response:
    forecast = daemon.forecasts.snapshot.forecasts.get(name)
    if forecast is None:
        return no_forecast(daemon, name)
    try:
        document = await daemon.forecasts.on_request(_peer_band, daemon.forecasts.peers, forecast, hours)
    except WorkerBusyError as problem:
        return retry_later(str(problem))
    return json_response(document)


def _peer_band(context: PeerContext, forecast: ServerForecast, hours: float) -> dict[str, Any]:
    model = forecast.model
    stride = max(1, STEP_SECONDS // model.step_seconds)
    length = max(1, int(hours * 3600 // model.step_seconds))
    last_step = forecast.origin_seconds // model.step_seconds
    values = context.values_of_others(forecast, last_step, length)[:, ::stride]  # (server, step, metric)
    steps = range(last_step + 1 - length, last_step + 1, stride)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # steps that nobody measured
        bands = {name: _percentile(values, level) for name, level in MIDDLE_HALF.items()}
    return {
        "server_name": forecast.server_name,
        "profile": forecast.profile,
        "servers": len(values),
        "timestamps": [iso(step * model.step_seconds) for step in steps],
        "metrics": {
            metric: {name: np.ascontiguousarray(band[:, column]) for name, band in bands.items()}
            for column, metric in enumerate(model.metrics)
            if metric in forecast.metrics
        },
    }


def _percentile(values: np.ndarray, level: float) -> np.ndarray:
    """Over the servers of [server, step, metric]: float32 [step, metric]."""
    if not len(values):
        return np.full(values.shape[1:], np.nan, dtype=np.float32)
    return np.nanpercentile(values, level, axis=0).astype(np.float32)
