"""POST /v1/metrics: stores host metrics that are sent by OTLP/HTTP.

Answers: https://opentelemetry.io/docs/specs/otlp/#otlphttp-response, in the format of the request.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from fleet_forecast.serving.clients import CLIENT
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.ingest.tally import Protocol
from fleet_forecast.serving.ingest.validation import BodyError
from fleet_forecast.serving.routes.protocols.rejections import rejection_text
from fleet_forecast.serving.routes.record_bodies import read_body
from fleet_forecast.serving.routes.responses import BODY_REFUSALS, BUSY, JSON, RunningDaemon, refusal
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryUnavailableError
from fleet_forecast.sources.protocols.otlp import error_body, response_body
from fleet_forecast.sources.protocols.received import ReceivedSamples
from fleet_forecast.sources.protocols.unpacking import unpack_gzip

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
        400: refusal("the body is no ExportMetricsServiceRequest; the answer is a google.rpc.Status"),
        503: BUSY,
    },
    openapi_extra={"requestBody": {"required": True, "content": {PROTOBUF: _BINARY, JSON: _OBJECT}}},
)
async def otlp_metrics(request: Request, daemon: RunningDaemon) -> Response:
    is_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON
    media_type = JSON if is_json else PROTOBUF
    decode = _decoder(daemon, await read_body(request), request, is_json)
    try:
        batch = await daemon.ingest.take_received(Protocol.OTLP, decode, request.scope[CLIENT])
    except BodyError as problem:
        return Response(error_body(str(problem), is_json), 400, media_type=media_type)
    except (HistoryBusyError, HistoryUnavailableError) as problem:
        body = error_body(f"not stored: {problem}", is_json)
        return Response(body, 503, headers={"Retry-After": "1"}, media_type=media_type)
    message = rejection_text(batch) if batch.rejected else ""
    return Response(response_body(batch.rejected_samples.total(), message, is_json), media_type=media_type)


def _decoder(daemon: Daemon, body: bytes, request: Request, is_json: bool) -> Any:
    """The function that unpacks and decodes the body, for the worker thread."""
    is_gzip = request.headers.get("content-encoding", "").strip().lower() == "gzip"
    max_bytes = daemon.settings.max_body_bytes

    def decode() -> ReceivedSamples:
        return daemon.otlp.decode(unpack_gzip(body, max_bytes) if is_gzip else body, is_json)

    return decode
