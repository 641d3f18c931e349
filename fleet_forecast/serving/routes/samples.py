"""POST /api/v1/metrics: stores samples."""

from __future__ import annotations

import asyncio
import math

from fastapi import APIRouter, Request, Response

from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.ingest.validation import CheckedBatch, check_records
from fleet_forecast.serving.routes.record_bodies import (
    RECORDS_BODY,
    IngestResponse,
    batch_notes,
    parsed_records,
    read_body,
)
from fleet_forecast.serving.routes.responses import BODY_REFUSALS, BUSY, RunningDaemon, json_response, retry_later
from fleet_forecast.serving.storage.store import HistoryBusyError, HistoryUnavailableError

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
    body = await read_body(request)
    try:
        batch = await _store(daemon, body)
    except (HistoryBusyError, HistoryUnavailableError) as problem:
        return retry_later(f"not stored: {problem}")
    return json_response({"accepted": len(batch.samples), **batch_notes(batch)})


async def _store(daemon: Daemon, body: bytes) -> CheckedBatch:
    """Validate the records of a body, store the accepted ones and count both kinds."""
    validating = asyncio.get_running_loop().run_in_executor(daemon.validation, _checked, daemon, body)
    batch = await validating
    if batch.samples:
        await asyncio.wrap_future(daemon.store.append(batch.samples))
    daemon.accepted += len(batch.samples)
    daemon.rejected.update(rejection.field for rejection in batch.rejected)
    return batch


def _checked(daemon: Daemon, body: bytes) -> CheckedBatch:
    settings = daemon.settings
    now_ms = daemon.clock() * 1000
    records = parsed_records(body, settings.max_records)
    earliest_ms = math.ceil(now_ms - settings.retention_hours * 3_600_000)
    latest_ms = math.floor(now_ms + settings.future_minutes * 60_000)
    return check_records(records, earliest_ms, latest_ms, daemon.store.may_add)
