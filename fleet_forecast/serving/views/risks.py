"""GET /api/v1/servers/{name}/risks: thresholds of one server, and when its forecast crosses them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from fleet_forecast.contract.forecast_spec import report_horizons
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.exceedance import crossing_times, likelier_limit
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    BUSY,
    NO_FORECAST,
    RunningDaemon,
    UtcTime,
    json_response,
    no_forecast,
)

router = APIRouter(tags=["alerts"])


class MetricRisk(BaseModel):
    """One metric of one server against its threshold."""

    threshold: Annotated[float | None, Field(description="the bound that is more likely crossed; null for none")]
    below: Annotated[bool, Field(description="the threshold is a lower bound")]
    limits: Annotated[list[float], Field(description="all bounds: the upper one, then the lower one")]
    by_horizon: Annotated[dict[str, float], Field(description="probability of a breach by horizon, such as 15m")]
    expected_at: Annotated[UtcTime | None, Field(description="the median crosses; null if it does not")]
    earliest_at: UtcTime | None
    latest_at: UtcTime | None


class ServerRisksResponse(BaseModel):
    """The risks of one server by metric."""

    server_name: str
    origin: UtcTime
    metrics: dict[str, MetricRisk]


@router.get(
    "/api/v1/servers/{name:path}/risks",
    summary="Thresholds of one server, and when it will exceed them",
    response_model=ServerRisksResponse,
    response_description="thresholds, probabilities and times by metric",
    responses={**ACCESS_REFUSALS, 404: NO_FORECAST, 503: BUSY},
)
async def server_risks(daemon: RunningDaemon, name: str) -> Response:
    forecast = daemon.forecasts.snapshot.forecasts.get(name)
    if forecast is None:
        return no_forecast(daemon, name)
    return json_response(await asyncio.to_thread(_server_risks, daemon, forecast))


def _server_risks(daemon: Daemon, forecast: ServerForecast) -> dict[str, Any]:
    return {
        "server_name": forecast.server_name,
        "origin": iso(forecast.origin_seconds),
        "metrics": {
            metric: {
                "by_horizon": _by_horizon(daemon, forecast, row),
                **_crossing(daemon, forecast, metric),
            }
            for row, metric in enumerate(forecast.model.metrics)
            if metric in forecast.metrics
        },
    }


def _by_horizon(daemon: Daemon, forecast: ServerForecast, row: int) -> dict[str, float]:
    """Empty before a complete step was measured and the alerts of its cycle were made, and of another model."""
    if not forecast.has_complete_step:
        return {}
    probabilities = daemon.alerts.probabilities.get(forecast.server_name)  # float32 [metric, report horizon]
    horizons = report_horizons(forecast.horizon_steps * forecast.model.step_seconds)
    if probabilities is None or probabilities.shape != (len(forecast.model.metrics), len(horizons)):
        return {}
    return {label: round(float(value), 4) for label, value in zip(horizons, probabilities[row], strict=True)}


def _crossing(daemon: Daemon, forecast: ServerForecast, metric: str) -> dict[str, Any]:
    bounds = daemon.alerts.rules.bounds_of(forecast.server_name, forecast.profile, metric)
    limit = likelier_limit(forecast, metric, bounds)
    if limit is None:
        nothing = dict.fromkeys(("threshold", "expected_at", "earliest_at", "latest_at"))
        return {**nothing, "below": False, "limits": []}
    times = crossing_times(forecast, metric, limit)._asdict()
    limits = [each.value for each in bounds.limits]
    return {"threshold": limit.value, "below": limit.is_lower, "limits": limits} | {
        name.replace("_seconds", "_at"): None if seconds is None else iso(forecast.origin_seconds + seconds)
        for name, seconds in times.items()
    }
