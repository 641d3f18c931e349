"""POST /api/v1/metrics: stores samples."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fleet_forecast.serving.clients import CLIENT
from fleet_forecast.serving.routes.record_bodies import RECORDS_BODY, IngestResponse, batch_notes, read_body
from fleet_forecast.serving.routes.responses import (
    BODY_REFUSALS,
    BUSY,
    RunningDaemon,
    json_response,
    not_stored,
    retry_later,
)
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryUnavailableError

router = APIRouter(tags=["samples"])


@router.post("/feed/data", include_in_schema=False)
@router.post(
    "/api/v1/metrics",
    summary="Store samples; the response follows when they are on disk",
    response_model=IngestResponse,
    response_description="the accepted records are on disk; the others are listed",
    responses={**BODY_REFUSALS, 503: BUSY},
    openapi_extra=RECORDS_BODY,
)
async def ingest(request: Request, daemon: RunningDaemon) -> Response:
    try:
        batch = await daemon.ingest.take_body(await read_body(request, daemon.settings), request.scope[CLIENT])
    except (HistoryBusyError, HistoryUnavailableError) as problem:
        return retry_later(not_stored(problem))
    return json_response({"accepted": batch.accepted, **batch_notes(batch)})
