"""The event stream: as server-sent events and over a WebSocket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

import anyio
from fastapi import APIRouter, Response, WebSocket, WebSocketDisconnect
from starlette.responses import StreamingResponse

from fleet_forecast.serving.monitoring.events import TooManyListenersError, as_server_sent
from fleet_forecast.serving.routes.responses import ACCESS_REFUSALS, RunningDaemon, refusal, retry_later

GOING_AWAY, TRY_AGAIN_LATER = 1001, 1013  # close codes of WebSockets

router = APIRouter(tags=["events"])


@router.get(
    "/api/v1/events",
    summary="Server-sent events",
    response_class=StreamingResponse,
    responses={
        200: {"description": "events cycle, alert and model, as they happen", "content": {"text/event-stream": {}}},
        **ACCESS_REFUSALS,
        503: refusal("too many event streams"),
    },
)
async def events(daemon: RunningDaemon) -> Response:
    try:
        stream = daemon.events.subscribe()
    except TooManyListenersError as problem:
        return retry_later(str(problem))
    return StreamingResponse(_server_sent(stream), media_type="text/event-stream")


@router.websocket("/ws/predictions")
async def predictions(socket: WebSocket, daemon: RunningDaemon) -> None:
    try:
        stream = daemon.events.subscribe()
    except TooManyListenersError as problem:
        await socket.close(TRY_AGAIN_LATER, str(problem))
        return
    await socket.accept()
    async with anyio.create_task_group() as group:

        async def run_then_cancel(work: Coroutine[Any, Any, None]) -> None:
            with suppress(OSError, WebSocketDisconnect):  # the client has left, or does not read
                await work
            group.cancel_scope.cancel()

        group.start_soon(run_then_cancel, _send_all(socket, stream))
        group.start_soon(run_then_cancel, _wait_for_disconnect(socket))


async def _server_sent(stream: AsyncIterator[tuple[str, bytes] | None]) -> AsyncIterator[bytes]:
    yield b"retry: 3000\n\n"
    async for event in stream:
        yield as_server_sent(event)


async def _send_all(socket: WebSocket, stream: AsyncIterator[tuple[str, bytes] | None]) -> None:
    async for event in stream:
        if event is not None:
            await socket.send_text(f'{{"event":"{event[0]}","data":{event[1].decode()}}}')
    await socket.close(GOING_AWAY)


async def _wait_for_disconnect(socket: WebSocket) -> None:
    """Return when the client disconnects; its messages are ignored."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
