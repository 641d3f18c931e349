"""GET /api/v1/servers/{name}/past-forecasts: the forecasts of the last hours, to compare with the measured values."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    RunningDaemon,
    UtcTime,
    json_response,
    refusal,
    unknown_server,
)

router = APIRouter(tags=["forecasts"])


class PastForecast(BaseModel):
    """One past forecast: by metric one list for each level, named q and the level, with one value a timestamp."""

    model: str
    origin: UtcTime
    timestamps: Annotated[list[UtcTime], Field(description="every quarter of an hour of the horizon")]
    metrics: dict[str, dict[str, list[float]]]


class PastForecastsResponse(BaseModel):
    """The forecasts that were made for a server once an hour, oldest first."""

    server_name: str
    forecasts: Annotated[list[PastForecast], Field(description="of the last 8 hours, at most since the start")]


@router.get(
    "/api/v1/servers/{name:path}/past-forecasts",
    summary="Past forecasts of one server, one an hour",
    response_model=PastForecastsResponse,
    response_description="past forecasts; none if the daemon has just started",
    responses={**ACCESS_REFUSALS, 404: refusal("no such server")},
)
async def past_forecasts(daemon: RunningDaemon, name: str) -> Response:
    if name not in daemon.store.servers:
        return unknown_server(name)
    forecasts = await asyncio.to_thread(daemon.archive.of_server, name)
    return json_response({"server_name": name, "forecasts": forecasts})
