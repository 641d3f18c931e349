"""GET /api/v1/heat-map: one number for each server and half hour of the horizon, for the whole fleet at once."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from fleet_forecast.contract.forecast_spec import BAND_80
from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.inference.risk_model import RISK_HORIZONS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.exceedance import breach_probability, nearest_level
from fleet_forecast.serving.alerting.threshold_detector import SERVERS_AT_ONCE, limit_table
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.forecasts.selection import parse_selection
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.query_parameters import wrong_parameter
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    INVALID_PARAMETER,
    RunningDaemon,
    UtcTime,
    json_response,
)

BIN_SECONDS = 1_800
PROBABILITY_DIGITS = 4  # as in the other responses: pages that round again show the same percentage

router = APIRouter(tags=["fleet"])


class HeatMapQuery(BaseModel):
    """What is shown, and the servers of one page."""

    value: Annotated[
        Literal["breach", "risk", "quantile"],
        Field(
            description="breach: highest probability of crossing a threshold; quantile: highest value of a metric; "
            "risk: that of an incident within the first horizon of the risk model, such as 4h, that has the half hour"
        ),
    ] = "breach"
    metric: Annotated[str | None, Field(description="only this metric; needed for quantile, refused for risk")] = None
    level: Annotated[float, Field(gt=0, lt=1, description="level of the quantile; the nearest one is used")] = BAND_80[
        1
    ]
    profile: Annotated[list[str] | None, Field(description="only these profiles")] = None
    limit: Annotated[int, Field(ge=1, le=1_000, description="servers in one response")] = 1_000
    after: Annotated[str, Field(description="`next` of the previous page")] = ""


class HeatMapRow(BaseModel):
    """One server."""

    server_name: str
    profile: str
    stale: bool
    cold_start: bool
    provisional: bool
    origin: UtcTime
    metric: Annotated[str | None, Field(description="metric of the highest number; null for a risk")]
    values: Annotated[
        list[float | None],
        Field(description="by half hour after the origin; null for what is not known"),
    ]


class HeatMapResponse(BaseModel):
    """One page of servers, in the order of names."""

    model: str | None
    origin: UtcTime | None
    made_at: UtcTime | None
    bin_seconds: int
    unit: Annotated[str | None, Field(description="of quantiles; null for probabilities")]
    servers: list[HeatMapRow]
    note: Annotated[str | None, Field(description="why no risk is known; null otherwise")]
    next: Annotated[str | None, Field(description="`after` of the following page; null on the last one")]


@router.get(
    "/api/v1/heat-map",
    summary="One number for each server and half hour of the horizon",
    response_model=HeatMapResponse,
    response_description="one page",
    responses={**ACCESS_REFUSALS, 422: INVALID_PARAMETER},
)
async def heat_map(daemon: RunningDaemon, query: Annotated[HeatMapQuery, Query()]) -> Response:
    model = daemon.forecasts.snapshot.model
    metrics = None if query.metric is None else [query.metric]
    parse_selection(model, metrics)  # refuses what is not forecast
    if query.value == "quantile" and query.metric is None:
        raise wrong_parameter("metric", "value=quantile needs one, such as metric=cpu_pct")
    if query.value == "risk" and query.metric is not None:
        raise wrong_parameter("metric", "the risk of an incident is that of the server; leave metric out", query.metric)
    if query.value != "quantile" and "level" in query.model_fields_set:
        raise wrong_parameter("level", "applies to value=quantile only; add that, or leave level out")
    return json_response(await asyncio.to_thread(_page, daemon, query))


def _page(daemon: Daemon, query: HeatMapQuery) -> dict[str, Any]:
    snapshot = daemon.forecasts.snapshot
    profiles = None if query.profile is None else set(query.profile)
    chosen = [
        forecast
        for name, forecast in sorted(snapshot.forecasts.items())
        if name > query.after and (profiles is None or forecast.profile in profiles)
    ][: query.limit + 1]
    page = chosen[: query.limit]
    return {
        "model": None if snapshot.model is None else snapshot.model.model_id,
        "origin": None if snapshot.origin_seconds is None else iso(snapshot.origin_seconds),
        "made_at": None if snapshot.made_at_seconds is None else iso(snapshot.made_at_seconds),
        "bin_seconds": BIN_SECONDS,
        "unit": METRIC_SPECS[query.metric].unit if query.value == "quantile" and query.metric else None,
        "servers": _risk_rows(daemon, page) if query.value == "risk" else _metric_rows(daemon, page, query),
        "note": _note(daemon, query),
        "next": page[-1].server_name if len(chosen) > query.limit else None,
    }


def _note(daemon: Daemon, query: HeatMapQuery) -> str | None:
    """Why the values are null for every server."""
    engine = daemon.forecasts.engine
    if query.value != "risk" or (engine is not None and engine.risk_model is not None):
        return None
    if engine is None:
        return "no model is loaded; see /readyz"
    return f"model {engine.model_id} has no risk model; train one without --no-risk-model"


def _same_shape(forecasts: Sequence[ServerForecast]) -> list[list[ServerForecast]]:
    """Runs of forecasts of one model, at most SERVERS_AT_ONCE each; two models while a new one takes over."""
    runs = [list(of_model) for _, of_model in groupby(forecasts, key=lambda forecast: forecast.model)]
    return [run[start : start + SERVERS_AT_ONCE] for run in runs for start in range(0, len(run), SERVERS_AT_ONCE)]


def _risk_rows(daemon: Daemon, forecasts: Sequence[ServerForecast]) -> list[dict[str, Any]]:
    """The risk within 1, 4 or 8 hours, in the half hours that each horizon is the first to have."""
    horizons = list(RISK_HORIZONS.values())
    rows = []
    for forecast in forecasts:
        ends = range(BIN_SECONDS, forecast.horizon_steps * forecast.model.step_seconds + BIN_SECONDS, BIN_SECONDS)
        known = [] if forecast.risk is None else _rounded(forecast.risk.probabilities, PROBABILITY_DIGITS).tolist()
        values = [known[column] if (column := bisect_left(horizons, end)) < len(known) else None for end in ends]
        rows.append({**_described(daemon, forecast), "metric": None, "values": values})
    return rows


def _metric_rows(daemon: Daemon, forecasts: Sequence[ServerForecast], query: HeatMapQuery) -> list[dict[str, Any]]:
    return [row for part in _same_shape(forecasts) for row in _rows(daemon, part, query)]


def _rows(daemon: Daemon, forecasts: Sequence[ServerForecast], query: HeatMapQuery) -> list[dict[str, Any]]:
    model = forecasts[0].model
    metrics = [row for row, metric in enumerate(model.metrics) if query.metric in (None, metric)]
    if not metrics:  # a forecast of the model before
        return []
    quantiles = np.stack([forecast.quantiles[metrics] for forecast in forecasts])  # (server, metric, quantile, step)
    if query.value == "breach":
        limits = limit_table(daemon.alerts.rules, forecasts)[:, metrics]
        by_step = breach_probability(quantiles, model.quantiles, limits)
    else:
        by_step = quantiles[:, :, nearest_level(model.quantiles, query.level)]
    digits = PROBABILITY_DIGITS if query.value == "breach" else 2
    by_bin = _rounded(_highest_by_bin(by_step, model.step_seconds), digits)  # (server, metric, bin)
    for row, forecast in enumerate(forecasts):
        unknown = query.value == "breach" and forecast.history_steps == 0  # its metrics are not compared with limits
        by_bin[row, [unknown or model.metrics[metric] in forecast.not_measured for metric in metrics]] = np.nan
    known = np.where(np.isnan(by_bin), -np.inf, by_bin)
    highest = known.max(axis=2).argmax(axis=1)
    values = np.where(np.isinf(of_bins := known.max(axis=1)), np.nan, of_bins)
    return [
        {**_described(daemon, forecast), "metric": model.metrics[metrics[column]], "values": row}
        for forecast, column, row in zip(forecasts, highest, list(values), strict=True)
    ]


def _rounded(values: np.ndarray, digits: int) -> np.ndarray:
    return np.round(values.astype(np.float64), digits)


def _described(daemon: Daemon, forecast: ServerForecast) -> dict[str, Any]:
    return {
        "server_name": forecast.server_name,
        "profile": forecast.profile,
        "stale": daemon.forecasts.is_stale(forecast),
        "cold_start": forecast.history_steps == 0,
        "provisional": forecast.provisional,
        "origin": iso(forecast.origin_seconds),
    }


def _highest_by_bin(by_step: np.ndarray, step_seconds: int) -> np.ndarray:
    """[server, metric, step] -> [server, metric, bin]; the last bin may be shorter."""
    length = max(1, BIN_SECONDS // step_seconds)
    starts = range(0, by_step.shape[2], length)
    return np.stack([by_step[:, :, start : start + length].max(axis=2) for start in starts], axis=2)
