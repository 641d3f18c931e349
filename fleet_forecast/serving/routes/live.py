"""Routes about what is happening: alerts, risks, and the event stream in two dresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Annotated, Any

import anyio
import numpy as np
from fastapi import FastAPI, Query, Request, Response, WebSocket, WebSocketDisconnect
from starlette.responses import StreamingResponse

from fleet_forecast.contract.forecast_spec import report_horizons
from fleet_forecast.serving.alerting.alert import as_document
from fleet_forecast.serving.daemon import Daemon, daemon_of, json_answer, try_again
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.monitoring.events import EventHub, TooManyListenersError, as_server_sent
from fleet_forecast.serving.routes import schemas as documents


def add_live_routes(app: FastAPI) -> None:
    """Add the routes to the application."""

    @app.get("/alerts/active", tags=["alerts"], include_in_schema=False)
    @app.get("/api/v1/alerts", tags=["alerts"], summary="Firing alerts", responses=documents.ALERTS)
    async def alerts(
        request: Request,
        server: Annotated[list[str] | None, Query(description="only these servers")] = None,
        profile: Annotated[list[str] | None, Query(description="only these profiles")] = None,
    ) -> Response:
        firing = sorted(daemon_of(request).alerts.firing.values(), key=lambda alert: -alert.probability)
        chosen = [
            as_document(alert)
            for alert in firing
            if (server is None or alert.server_name in server) and (profile is None or alert.profile in profile)
        ]
        return json_answer({"alerts": chosen})

    @app.get("/api/v1/risks", tags=["alerts"], summary="Most probable breaches", responses=documents.RISKS)
    async def risks(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1_000, description="entries in the answer")] = 50,
    ) -> Response:
        return json_answer({"risks": await asyncio.to_thread(_risks, daemon_of(request), limit)})

    @app.get("/api/v1/events", tags=["events"], summary="Server-sent events", responses=documents.EVENTS)
    async def events(request: Request) -> Response:
        try:
            stream = daemon_of(request).events.subscribe()
        except TooManyListenersError as problem:
            return try_again(str(problem))
        return StreamingResponse(_server_sent(stream), media_type="text/event-stream")

    @app.websocket("/ws/predictions")
    async def predictions(socket: WebSocket) -> None:
        hub: EventHub = socket.app.state.daemon.events
        try:
            stream = hub.subscribe()
        except TooManyListenersError as problem:
            await socket.close(1013, str(problem))
            return
        await socket.accept()
        async with anyio.create_task_group() as group:

            async def until_the_first_ends(work: Coroutine[Any, Any, None]) -> None:
                with suppress(OSError, WebSocketDisconnect):  # the client is gone, or takes nothing
                    await work
                group.cancel_scope.cancel()

            group.start_soon(until_the_first_ends, _send_all(socket, stream))
            group.start_soon(until_the_first_ends, _until_gone(socket))


async def _server_sent(stream: AsyncIterator[tuple[str, bytes] | None]) -> AsyncIterator[bytes]:
    yield b"retry: 3000\n\n"
    async for event in stream:
        yield as_server_sent(event)


async def _send_all(socket: WebSocket, stream: AsyncIterator[tuple[str, bytes] | None]) -> None:
    async for event in stream:
        if event is not None:
            await socket.send_text(f'{{"event":"{event[0]}","data":{event[1].decode()}}}')
    await socket.close(1001)


async def _until_gone(socket: WebSocket) -> None:
    """Return when the client leaves; what it says is ignored."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


def _risks(daemon: Daemon, limit: int) -> list[dict[str, Any]]:
    """The servers and metrics with the highest probability of a breach within the look-ahead, highest first."""
    found = []
    for name, probabilities in list(daemon.alerts.probabilities.items()):
        forecast = daemon.forecasts.snapshot.forecasts.get(name)
        if forecast is not None and probabilities.shape == (len(forecast.model.metrics), len(_horizons(forecast))):
            column = int(np.searchsorted(_horizons(forecast), daemon.alerts.rules.lookahead_seconds))
            at = probabilities[:, min(column, probabilities.shape[1] - 1)]
            found += [(float(value), name, index, forecast) for index, value in enumerate(at) if value >= 0.005]
    found.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    return [
        {
            "server_name": name,
            "profile": forecast.profile,
            "metric": forecast.model.metrics[index],
            "probability": round(value, 4),
            "current": forecast.current[index],
            "threshold": daemon.alerts.rules.thresholds_of(name, forecast.profile).get(forecast.model.metrics[index]),
            "by_horizon": {
                f"{seconds // 60}m": round(float(p), 4)
                for seconds, p in zip(_horizons(forecast), daemon.alerts.probabilities[name][index], strict=True)
            },
        }
        for value, name, index, forecast in found[:limit]
    ]


def _horizons(forecast: ServerForecast) -> list[int]:
    """Seconds of the report horizons, the columns of the exceedance probabilities."""
    return list(report_horizons(forecast.horizon_steps * forecast.model.step_seconds).values())
