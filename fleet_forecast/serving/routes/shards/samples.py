"""POST /api/v1/shard/samples: stores what another shard received or had of this shard's servers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from fleet_forecast.serving.clients import Client, Right
from fleet_forecast.serving.routes.record_bodies import RECORDS_BODY, IngestResponse, batch_notes, read_body
from fleet_forecast.serving.routes.responses import (
    BODY_REFUSALS,
    BUSY,
    RunningDaemon,
    json_response,
    refusal,
    retry_later,
)
from fleet_forecast.serving.shards.neighbours import SHARD_HEADER
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryUnavailableError

OTHER_SHARD = refusal("the request is meant for another shard, or this daemon has the whole fleet")

router = APIRouter(tags=["shards"])


@router.post(
    "/api/v1/shard/samples",
    summary="Store samples that another shard sends; the response follows when they are on disk",
    response_model=IngestResponse,
    response_description="the accepted records are on disk; the others are listed, and are not sent on",
    responses={**BODY_REFUSALS, 409: OTHER_SHARD, 503: BUSY},
    openapi_extra=RECORDS_BODY,
)
async def shard_samples(
    request: Request,
    daemon: RunningDaemon,
    correct: Annotated[bool, Query(description="whether their sender may replace stored values")] = False,
    profile: Annotated[bool, Query(description="whether their sender may change profiles")] = False,
    history: Annotated[bool, Query(description="whether they may be older than the retention")] = False,
) -> Response:
    if (refused := meant_for_another(request, daemon)) is not None:
        return refused
    rights = {Right.WRITE: True, Right.CORRECT: correct, Right.PROFILE: profile}
    client = Client("", frozenset(right for right, given in rights.items() if given))
    try:
        batch = await daemon.ingest.take_of_shard(await read_body(request, daemon.settings), client, history)
    except (HistoryBusyError, HistoryUnavailableError) as problem:
        return retry_later(f"not stored: {problem}")
    return json_response({"accepted": batch.accepted, **batch_notes(batch)})


def meant_for_another(request: Request, daemon: RunningDaemon) -> Response | None:
    """409 if the shard in the request's header is not this one: the sender's addresses or numbers are others."""
    own, meant = daemon.settings.shard, request.headers.get(SHARD_HEADER)
    if own is None:
        return json_response({"detail": "this daemon has the whole fleet; start it with --shard"}, 409)
    if meant != own:
        detail = f"meant for shard {meant}, this is shard {own}; correct shard_peers, or the numbers of the shards"
        return json_response({"detail": detail}, 409)
    return None
