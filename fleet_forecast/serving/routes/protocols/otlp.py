"""POST /v1/metrics: stores host metrics that are sent by OTLP/HTTP.

Responses: https://opentelemetry.io/docs/specs/otlp/#otlphttp-response, in the format of the request.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from fleet_forecast.serving.clients import CLIENT
from fleet_forecast.serving.ingest.bodies import BodyError, BodyTooLargeError
from fleet_forecast.serving.ingest.sink import Encoded
from fleet_forecast.serving.ingest.tally import Protocol
from fleet_forecast.serving.routes.protocols.rejections import rejection_text
from fleet_forecast.serving.routes.record_bodies import read_body
from fleet_forecast.serving.routes.responses import BODY_REFUSALS, BUSY, JSON, RunningDaemon, not_stored, refusal
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryUnavailableError
from fleet_forecast.sources.protocols.otlp import error_body, response_body

PROTOBUF = "application/x-protobuf"
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_OBJECT: dict[str, Any] = {"schema": {"type": "object"}}

router = APIRouter(tags=["samples"])


@router.post(
    "/v1/metrics",
    response_class=Response,
    summary="Store host metrics of OTLP/HTTP; the response follows when they are on disk",
    responses={
        **BODY_REFUSALS,
        200: {
            "description": "stored; partial_success has the number of rejected data points and the reasons",
            "content": {PROTOBUF: _BINARY},
        },
        400: refusal("the body is not an ExportMetricsServiceRequest; the response is a google.rpc.Status"),
        503: BUSY,
    },
    openapi_extra={"requestBody": {"required": True, "content": {PROTOBUF: _BINARY, JSON: _OBJECT}}},
)
async def otlp_metrics(request: Request, daemon: RunningDaemon) -> Response:
    is_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON
    media_type = JSON if is_json else PROTOBUF
    encoded = Encoded(await read_body(request, daemon.settings), partial(daemon.otlp.decode, is_json=is_json))
    try:
        batch = await daemon.ingest.take_encoded(Protocol.OTLP, encoded, request.scope[CLIENT])
    except BodyError as problem:
        status = 413 if isinstance(problem, BodyTooLargeError) else 400
        return Response(error_body(str(problem), is_json), status, media_type=media_type)
    except (HistoryBusyError, HistoryUnavailableError) as problem:
        body = error_body(not_stored(problem), is_json)
        return Response(body, 503, headers={"Retry-After": "1"}, media_type=media_type)
    message = "; ".join([rejection_text(batch)] * bool(batch.refusals) + batch.notices)
    return Response(response_body(batch.rejected_samples.total(), message, is_json), media_type=media_type)
