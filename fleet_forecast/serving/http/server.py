"""Runs uvicorn with the limits of the settings, until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import uvicorn

from fleet_forecast.serving.http.connection import make_protocol
from fleet_forecast.serving.settings import Settings

KEEP_ALIVE_SECONDS = 30
MAX_WEBSOCKET_BYTES = 64 * 1024  # of one message from a client
MAX_WEBSOCKET_MESSAGES = 8  # received and not read yet
LISTEN_BACKLOG = 512


class Server(uvicorn.Server):
    """uvicorn's server with a callback before it waits for open responses to end."""

    def __init__(self, config: uvicorn.Config, before_shutdown: Callable[[], None]) -> None:
        super().__init__(config)
        self._before_shutdown = before_shutdown

    async def shutdown(self, sockets: Any = None) -> None:
        self._before_shutdown()
        await super().shutdown(sockets)


def serve(app: Any, settings: Settings, before_shutdown: Callable[[], None]) -> bool:
    """Serve until SIGTERM or SIGINT; returns whether the server started.

    before_shutdown: ends the event streams, for which the shutdown would otherwise wait.
    """
    server = Server(_config(app, settings), before_shutdown)
    # uvicorn raises the received signal again after the shutdown; without a handler the exit code would not be 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        server.run()
    except SystemExit:  # the address is in use, or the start failed; uvicorn has logged the reason
        return False
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # everything is closed; the process ends by itself
            signal.signal(number, signal.SIG_IGN)
    return server.started


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=make_protocol(settings.header_seconds, settings.body_seconds, settings.max_connections),
        ws="websockets-sansio",
        ws_max_size=MAX_WEBSOCKET_BYTES,
        ws_max_queue=MAX_WEBSOCKET_MESSAGES,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
        backlog=LISTEN_BACKLOG,
    )
