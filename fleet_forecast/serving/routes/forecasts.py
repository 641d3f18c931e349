"""Forecasts: of one server and of the fleet from the last cycle, and of a history in the request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from fleet_forecast.inference.engine import Engine
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.forecasts.on_request import HistorySpanError, check_span, forecast_samples
from fleet_forecast.serving.forecasts.selection import Selection, check_reach, parse_selection
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.forecasts.tables import (
    ARROW_STREAM,
    PARQUET,
    empty_table,
    encoded,
    fleet_table,
    wanted_table,
)
from fleet_forecast.serving.forecasts.turns import WorkerBusyError
from fleet_forecast.serving.ingest.bodies import ReceivedBody
from fleet_forecast.serving.ingest.validation import CheckedBatch, check_history
from fleet_forecast.serving.json_bytes import list_parts, to_json
from fleet_forecast.serving.routes.forecast_responses import ForecastResponse, forecast_document
from fleet_forecast.serving.routes.record_bodies import (
    RECORDS_BODY,
    BatchNotes,
    batch_notes,
    read_body,
)
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    BODY_REFUSALS,
    BUSY,
    JSON,
    NO_FORECAST,
    Refusal,
    RunningDaemon,
    Starter,
    UtcTime,
    json_response,
    no_forecast,
    retry_later,
)
from fleet_forecast.serving.streaming import bounded_response

MAX_SERVERS_PER_REQUEST = 256
MAX_WAITING_FORECASTS = 8

router = APIRouter(tags=["forecasts"])


class SelectionQuery(BaseModel):
    """The part of each forecast to return."""

    metric: Annotated[list[str] | None, Field(description="only these metrics")] = None
    quantile: Annotated[list[float] | None, Field(description="only these quantiles, such as 0.5")] = None
    horizon: Annotated[list[str] | None, Field(description="only these horizons, such as 15m or 8h")] = None


class FleetQuery(SelectionQuery):
    """The servers of one page, and the part of each forecast."""

    server: Annotated[list[str] | None, Field(description="only these servers")] = None
    profile: Annotated[list[str] | None, Field(description="only these profiles")] = None
    limit: Annotated[int, Field(ge=1, le=1_000, description="servers in one response")] = 100
    after: Annotated[str, Field(description="`next` of the previous page")] = ""


class FleetForecastsResponse(BaseModel):
    """One page of forecasts, in the order of server names."""

    model: str | None
    starter: Starter
    origin: UtcTime | None
    made_at: UtcTime | None
    servers: Annotated[int, Field(description="forecasts on this page")]
    next: Annotated[str | None, Field(description="`after` of the following page; null on the last one")]
    forecasts: list[ForecastResponse]


class HistoryForecastsResponse(BatchNotes):
    """One forecast for each server in the request."""

    model: str
    starter: Starter
    forecasts: list[ForecastResponse]


class RefusedHistory(Refusal, BatchNotes):
    """The reason why a history is not forecast, and the rejected records."""


@router.get(
    "/api/v1/servers/{name:path}/forecast",
    summary="Forecast of one server, from the last cycle",
    response_model=ForecastResponse,
    response_description="the forecast",
    responses={**ACCESS_REFUSALS, 404: NO_FORECAST, 503: BUSY},
)
async def server_forecast(daemon: RunningDaemon, name: str, query: Annotated[SelectionQuery, Query()]) -> Response:
    selection = _selection(daemon, query)
    forecast = daemon.forecasts.snapshot.forecasts.get(name)
    if forecast is None:
        return no_forecast(daemon, name)
    check_reach(forecast, selection)
    return Response(_forecast_json(daemon, forecast, selection), media_type=JSON)


_TABLE = {"schema": {"type": "string", "format": "binary"}}


@router.get("/predictions/current", include_in_schema=False)
@router.get(
    "/api/v1/forecasts",
    summary="Forecasts of the fleet, from the last cycle",
    response_model=FleetForecastsResponse,
    response_description="one page; as a table by the Accept header, with `next` in the header X-Next",
    responses={
        200: {"content": {ARROW_STREAM: _TABLE, PARQUET: _TABLE}},
        **ACCESS_REFUSALS,
    },
)
async def fleet_forecasts(request: Request, daemon: RunningDaemon, query: Annotated[FleetQuery, Query()]) -> Response:
    selection = _selection(daemon, query)
    page, following = await asyncio.to_thread(_page, daemon, query)
    if page:
        check_reach(page[0], selection)
    media_type = wanted_table(request.headers.get("accept", ""))
    if media_type is None:
        return await bounded_response(_page_json(daemon, page, following, selection), JSON)
    table = await asyncio.to_thread(_page_table, daemon, page, selection, media_type)
    return Response(table, headers={"x-next": following or ""}, media_type=media_type)


@router.post(
    "/api/v1/forecast",
    summary="Forecast the history in the request; nothing is stored",
    response_model=HistoryForecastsResponse,
    response_description="one forecast for each server in the request",
    responses={
        **BODY_REFUSALS,
        422: {
            "model": RefusedHistory,
            "description": "no record accepted, too many servers, or times too far apart",
        },
        503: BUSY,
    },
    openapi_extra=RECORDS_BODY,
)
async def forecast_of_history(request: Request, daemon: RunningDaemon) -> Response:
    engine = daemon.forecasts.engine
    if engine is None:
        return retry_later("no model is loaded; see /readyz")
    if daemon.waiting_forecasts >= MAX_WAITING_FORECASTS:
        return retry_later("other forecasts are already waiting")
    daemon.waiting_forecasts += 1
    try:
        return await _forecast_body(daemon, engine, await read_body(request, daemon.settings))
    except WorkerBusyError as problem:
        return retry_later(str(problem))
    finally:
        daemon.waiting_forecasts -= 1


async def _forecast_body(daemon: Daemon, engine: Engine, body: ReceivedBody) -> Response:
    """The response to a history. Raises WorkerBusyError."""
    settings = daemon.settings
    batch, problem = await daemon.forecasts.on_request(_checked, body, settings.max_records, settings.input_timezone)
    if problem is not None:
        return json_response({"detail": problem, **batch_notes(batch)}, 422)
    work = engine, batch.samples, daemon.rules, daemon.forecasts.peers_of_posted
    forecasts = await daemon.forecasts.on_request(forecast_samples, *work)
    return await bounded_response(_history_json(forecasts, batch), JSON)


def _checked(body: ReceivedBody, max_records: int, input_timezone: str | None) -> tuple[CheckedBatch, str | None]:
    """The records of a history, and why they cannot be forecast: None if they can. Raises BodyError."""
    batch = check_history(body, max_records, input_timezone)
    return batch, _problem_of(batch)


def _problem_of(batch: CheckedBatch) -> str | None:
    servers = {sample.server_name for sample in batch.samples}
    if not servers:
        return "no record was accepted"
    if len(servers) > MAX_SERVERS_PER_REQUEST:
        return f"{len(servers)} servers; send at most {MAX_SERVERS_PER_REQUEST} at once"
    try:
        check_span(batch.samples)
    except HistorySpanError as problem:
        return str(problem)
    return None


def _selection(daemon: Daemon, query: SelectionQuery) -> Selection:
    return parse_selection(daemon.forecasts.snapshot.model, query.metric, query.quantile, query.horizon)


def _forecast_json(daemon: Daemon, forecast: ServerForecast, selection: Selection) -> bytes:
    age_seconds = daemon.clock() - forecast.origin_seconds
    return to_json(forecast_document(forecast, age_seconds, daemon.forecasts.is_stale(forecast), selection))


def _page(daemon: Daemon, query: FleetQuery) -> tuple[list[ServerForecast], str | None]:
    """One page of the fleet's forecasts in the order of names, and `after` of the following page."""
    forecasts, profiles = daemon.forecasts.snapshot.forecasts, query.profile
    servers = None if query.server is None else set(query.server)
    names = sorted(
        name
        for name, forecast in forecasts.items()
        if name > query.after
        and (servers is None or name in servers)
        and (profiles is None or forecast.profile in profiles)
    )
    page = names[: query.limit]
    return [forecasts[name] for name in page], page[-1] if len(names) > query.limit else None


def _page_json(
    daemon: Daemon, page: list[ServerForecast], following: str | None, selection: Selection
) -> Iterator[bytes]:
    snapshot = daemon.forecasts.snapshot
    head = {
        "model": snapshot.model.model_id if snapshot.model else None,
        "starter": snapshot.model is not None and snapshot.model.starter,
        "origin": None if snapshot.origin_seconds is None else iso(snapshot.origin_seconds),
        "made_at": None if snapshot.made_at_seconds is None else iso(snapshot.made_at_seconds),
        "servers": len(page),
        "next": following,
    }
    return list_parts(head, "forecasts", (_forecast_json(daemon, forecast, selection) for forecast in page))


def _page_table(daemon: Daemon, page: list[ServerForecast], selection: Selection, media_type: str) -> bytes:
    """Forecasts of the model in use as a table. The next cycle replaces those of other models."""
    model = daemon.forecasts.snapshot.model
    forecasts = [forecast for forecast in page if forecast.model == model]
    return encoded(fleet_table(forecasts, selection) if forecasts else empty_table(model, selection), media_type)


def _history_json(forecasts: list[ServerForecast | None], batch: CheckedBatch) -> Iterator[bytes]:
    finite = [forecast for forecast in forecasts if forecast is not None]
    if not finite:
        raise HTTPException(503, "the model gave no finite forecast", headers={"Retry-After": "60"})
    items = (to_json(forecast_document(f, f.made_at_seconds - f.origin_seconds, stale=False)) for f in finite)
    model = finite[0].model
    return list_parts({"model": model.model_id, "starter": model.starter, **batch_notes(batch)}, "forecasts", items)
