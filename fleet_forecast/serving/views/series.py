"""GET /api/v1/servers/{name}/series: one metric by time as rows, for tools that draw tables such as Grafana.

A row has the measured value, the forecast, and an earlier forecast for its time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime, BaseModel, Field

from fleet_forecast.contract.forecast_spec import BAND_80, BAND_96, MEDIAN_LEVEL
from fleet_forecast.contract.specs import METRIC_SPECS, METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.forecasts.selection import check_measured, parse_selection
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.monitoring.forecast_archive import ORIGIN_SECONDS, ArchivedCycle
from fleet_forecast.serving.routes.history import MAX_HISTORY_HOURS, step_means
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    INVALID_PARAMETER,
    NO_FORECAST,
    RunningDaemon,
    UtcTime,
    json_response,
    no_forecast,
    refusal,
)
from fleet_forecast.serving.storage.errors import HistoryUnavailableError

DEFAULT_HOURS = 12
COLUMNS = {
    "median": MEDIAN_LEVEL,
    "low_80": BAND_80[0],
    "high_80": BAND_80[1],
    "low_96": BAND_96[0],
    "high_96": BAND_96[1],
}
PAST_COLUMNS = {f"past_{name}": COLUMNS[name] for name in ("median", "low_80", "high_80")}

router = APIRouter(tags=["forecasts"])


class SeriesQuery(BaseModel):
    """The metric and the time."""

    metric: Annotated[str, Field(description="such as cpu_pct")]
    since: Annotated[
        AwareDatetime | None, Field(description=f"first time; {DEFAULT_HOURS} h before now by default, at most 14 days")
    ] = None
    past_hours: Annotated[int, Field(ge=1, le=8, description="age of the past forecast that is shown")] = 4


class SeriesRow(BaseModel):
    """One time. Null: not measured, not forecast for this time, or a level that the model does not have."""

    time: UtcTime
    measured: float | None
    median: float | None
    low_80: float | None
    high_80: float | None
    low_96: float | None
    high_96: float | None
    past_median: Annotated[float | None, Field(description="as it was forecast past_hours before the origin")]
    past_low_80: float | None
    past_high_80: float | None


class SeriesResponse(BaseModel):
    """One metric of one server by time."""

    server_name: str
    metric: str
    unit: str
    origin: Annotated[UtcTime, Field(description="last step that is measured; the forecast begins after it")]
    past_origin: Annotated[UtcTime | None, Field(description="of the past forecast; null if none of that time is kept")]
    rows: list[SeriesRow]


@router.get(
    "/api/v1/servers/{name:path}/series",
    summary="One metric of one server as rows by time: measured, forecast, and forecast before",
    response_model=SeriesResponse,
    response_description="rows in the order of time",
    responses={
        **ACCESS_REFUSALS,
        404: NO_FORECAST,
        422: INVALID_PARAMETER,
        503: refusal("the history cannot be read"),
    },
)
async def series(daemon: RunningDaemon, name: str, query: Annotated[SeriesQuery, Query()]) -> Response:
    parse_selection(daemon.forecasts.snapshot.model, [query.metric])  # refuses what is not forecast
    forecast, server = daemon.forecasts.snapshot.forecasts.get(name), daemon.store.servers.get(name)
    if forecast is None or server is None or query.metric not in forecast.model.metrics:
        return no_forecast(daemon, name)
    check_measured(forecast, query.metric)
    now, step_seconds = daemon.clock(), daemon.store.step_seconds
    since = now - DEFAULT_HOURS * 3600 if query.since is None else query.since.timestamp()
    first_step = math.ceil(max(since, now - MAX_HISTORY_HOURS * 3600) / step_seconds)
    try:
        means = await step_means(daemon, server, first_step, forecast.origin_seconds // step_seconds)
    except HistoryUnavailableError as problem:
        return json_response({"detail": f"the history cannot be read: {problem}"}, 503)
    column = METRICS.index(query.metric)
    measured = {step * step_seconds: _known(float(values[column])) for step, values in means.items()}
    return json_response(await asyncio.to_thread(_series, daemon, forecast, query, measured))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _series(
    daemon: Daemon, forecast: ServerForecast, query: SeriesQuery, measured: dict[int, float | None]
) -> dict[str, Any]:
    """measured: by time in seconds."""
    past = _past_cycle(daemon, forecast, query.past_hours)
    columns: dict[str, Mapping[int, float | None]] = {
        "measured": measured,
        **_forecast_columns(forecast, query.metric),
        **_past_columns(past, forecast, query),
    }
    times = sorted({time for values in columns.values() for time in values})
    start = min(measured, default=forecast.origin_seconds)
    return {
        "server_name": forecast.server_name,
        "metric": query.metric,
        "unit": METRIC_SPECS[query.metric].unit,
        "origin": iso(forecast.origin_seconds),
        "past_origin": None if past is None else iso(past.origin_seconds),
        "rows": [
            {"time": iso(time), **{name: values.get(time) for name, values in columns.items()}}
            for time in times
            if time >= start
        ],
    }


def _forecast_columns(forecast: ServerForecast, metric: str) -> dict[str, dict[int, float]]:
    """Values by time in seconds."""
    model, rows = forecast.model, forecast.quantiles[forecast.model.metrics.index(metric)]  # (quantile, step)
    times = [forecast.origin_seconds + (step + 1) * model.step_seconds for step in range(forecast.horizon_steps)]
    return {
        name: dict(zip(times, map(float, rows[model.quantiles.index(level)]), strict=True))
        if level in model.quantiles
        else {}
        for name, level in COLUMNS.items()
    }


def _past_cycle(daemon: Daemon, forecast: ServerForecast, hours: int) -> ArchivedCycle | None:
    """The kept cycle nearest to so many hours before the forecast; None if none is within an hour of it."""
    wanted = forecast.origin_seconds - hours * 3600
    near = [
        cycle
        for cycle in daemon.archive.cycles
        if forecast.server_name in cycle.row_of and abs(cycle.origin_seconds - wanted) < ORIGIN_SECONDS
    ]
    return min(near, key=lambda cycle: abs(cycle.origin_seconds - wanted), default=None)


def _past_columns(
    past: ArchivedCycle | None, forecast: ServerForecast, query: SeriesQuery
) -> dict[str, dict[int, float]]:
    if past is None or query.metric not in past.model.metrics:
        return {name: {} for name in PAST_COLUMNS}
    rows = past.quantiles[past.row_of[forecast.server_name], past.model.metrics.index(query.metric)]  # (level, step)
    times = [past.origin_seconds + offset for offset in past.offsets_seconds]
    return {
        name: dict(zip(times, map(float, rows[past.levels.index(level)]), strict=True)) if level in past.levels else {}
        for name, level in PAST_COLUMNS.items()
    }
