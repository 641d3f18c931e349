"""POST /api/v1/write: stores the samples that a Prometheus writes.

Statuses and headers: https://prometheus.io/docs/specs/prw/remote_write_spec_2_0/. A sender repeats requests after
5xx, but not after 4xx.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from fleet_forecast.serving.clients import CLIENT
from fleet_forecast.serving.ingest.sink import Encoded
from fleet_forecast.serving.ingest.tally import Protocol
from fleet_forecast.serving.routes.protocols.rejections import rejection_text
from fleet_forecast.serving.routes.record_bodies import read_body
from fleet_forecast.serving.routes.responses import (
    BODY_REFUSALS,
    BUSY,
    RunningDaemon,
    json_response,
    not_stored,
    refusal,
    retry_later,
)
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryUnavailableError
from fleet_forecast.sources.protocols.messages import V1, V2

router = APIRouter(tags=["samples"])


@router.post(
    "/api/v1/write",
    status_code=204,
    summary="Store samples of Prometheus remote write 1.0 or 2.0; the response follows when they are on disk",
    responses={
        **BODY_REFUSALS,
        400: refusal("the body cannot be used, or samples of it were rejected; the others are stored"),
        415: refusal("not snappy-compressed protobuf of a known message"),
        503: BUSY,
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/x-protobuf": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def remote_write(request: Request, daemon: RunningDaemon) -> Response:
    message = message_of(request.headers.get("content-type", ""))
    if message is None:
        return json_response({"detail": f"unknown proto in Content-Type; send {V1} or {V2}"}, 415)
    encoded = Encoded(await read_body(request, daemon.settings), partial(daemon.remote_write.decode, message=message))
    try:
        batch = await daemon.ingest.take_encoded(Protocol.REMOTE_WRITE, encoded, request.scope[CLIENT])
    except (HistoryBusyError, HistoryUnavailableError) as problem:
        return _with_counts(retry_later(not_stored(problem)), message, 0)
    written = batch.stored_samples + batch.forwarded_samples + batch.received.not_measured
    if batch.refusals:
        return _with_counts(json_response({"detail": rejection_text(batch)}, 400), message, written)
    return _with_counts(Response(status_code=204), message, written)


def message_of(content_type: str) -> str | None:
    """The name of the message in a body: that of the content type's parameter `proto`; None if it is unknown."""
    for parameter in content_type.split(";")[1:]:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "proto":
            name = value.strip().strip('"')
            return name if name in (V1, V2) else None
    return V1


def _with_counts(response: Response, message: str, samples: int) -> Response:
    """Version 2.0 wants the number of written elements of each kind; histograms and exemplars are not stored."""
    if message == V2:
        for kind, count in {"Samples": samples, "Histograms": 0, "Exemplars": 0}.items():
            response.headers[f"X-Prometheus-Remote-Write-{kind}-Written"] = str(count)
    return response
