"""POST /api/v1/shard/peers: the means of this shard's servers that may be peers of other shards' servers."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from fleet_forecast.serving.routes.responses import (
    BODY_REFUSALS,
    BUSY,
    RunningDaemon,
    retry_later,
)
from fleet_forecast.serving.routes.shards.samples import OTHER_SHARD, meant_for_another
from fleet_forecast.serving.shards.peer_page import Position, page_bytes

BYTES = "application/octet-stream"
LONGEST_WAIT_SECONDS = 10.0
WAITING_PER_SHARD = 2
_POLL_SECONDS = 0.05
_LARGEST = 2**32 - 1

router = APIRouter(tags=["shards"])


class After(BaseModel):
    """Position up to which the requesting shard has received the changes of this one."""

    model_config = ConfigDict(extra="forbid")

    boot: Annotated[str, Field(max_length=64)]
    sequence: Annotated[int, Field(ge=0, le=2**53)]


class PeersRequest(BaseModel):
    """The requested changes."""

    model_config = ConfigDict(extra="forbid")

    after: Annotated[After | None, Field(description="position of the last page; null: everything")] = None
    last_step: Annotated[int, Field(ge=0, le=_LARGEST, description="number of the newest step, since 1970")]
    wait_seconds: Annotated[float, Field(ge=0, le=120, description="for this step to be complete")] = 0.0


@router.post(
    "/api/v1/shard/peers",
    response_class=Response,
    summary="Means of servers that may be peers of another shard's servers: what changed after a position",
    responses={
        **BODY_REFUSALS,
        200: {
            "description": "a line of JSON, then arrays of cells: fleet_forecast/serving/shards/peer_page.py",
            "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}},
        },
        409: OTHER_SHARD,
        503: BUSY,
    },
)
async def shard_peers(request: Request, daemon: RunningDaemon, asked: PeersRequest) -> Response:
    if (refused := meant_for_another(request, daemon)) is not None:
        return refused
    if daemon.waiting_shards >= WAITING_PER_SHARD * max(1, len(daemon.neighbours)):
        return retry_later("too many requests of other shards wait")
    daemon.waiting_shards += 1
    try:
        return await _page_after(daemon, asked)
    finally:
        daemon.waiting_shards -= 1


async def _page_after(daemon: RunningDaemon, asked: PeersRequest) -> Response:
    peers = daemon.forecasts.peers
    end = time.monotonic() + min(asked.wait_seconds, LONGEST_WAIT_SECONDS)
    while peers.offer.last_step < asked.last_step and time.monotonic() < end:
        await asyncio.sleep(_POLL_SECONDS)
    after = None if asked.after is None else Position(asked.after.boot, asked.after.sequence)
    arguments: tuple[Any, ...] = (peers.offered_page, after, asked.last_step)
    page = await asyncio.get_running_loop().run_in_executor(daemon.forecasts.worker, *arguments)
    if page is None:
        return retry_later("no cycle has begun yet")
    return Response(page_bytes(page), media_type=BYTES)
