"""Runs uvicorn with the limits of the settings, until SIGTERM or SIGINT."""

from __future__ import annotations

import gc
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from fleet_forecast.serving.http.certificate import TlsCertificate
from fleet_forecast.serving.http.connection import make_protocol
from fleet_forecast.serving.http.connection_table import ConnectionTable
from fleet_forecast.serving.http.descriptors import accepts_per_turn, allowed_connections
from fleet_forecast.serving.http.tls import tls_protocol
from fleet_forecast.serving.http.websocket import make_websocket
from fleet_forecast.serving.settings import Settings

LOG = logging.getLogger(__name__)
KEEP_ALIVE_SECONDS = 30
MAX_WEBSOCKET_BYTES = 64 * 1024  # of one message from a client
MAX_WEBSOCKET_MESSAGES = 8  # received and not read yet
LISTEN_BACKLOG = 512  # connections that the kernel holds until they are accepted


class Server(uvicorn.Server):
    """uvicorn's server with a callback before it waits for open responses to end, and a longer listen backlog.

    asyncio accepts as many connections in one turn of the event loop as its backlog has places. That number is small
    here, so that connections beyond the limit cannot use up the process's open files.
    """

    def __init__(self, config: uvicorn.Config, before_shutdown: Callable[[], None]) -> None:
        super().__init__(config)
        self._before_shutdown = before_shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in (listener for server in self.servers for listener in server.sockets):
            with socket.fromfd(listener.fileno(), listener.family, listener.type) as same:
                same.listen(LISTEN_BACKLOG)
        # A full collection holds up every thread for 0.1 s of CPU time, and large bodies cause many. The modules and
        # what the start has made stay until the end: they are not looked through again.
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: Any = None) -> None:
        self._before_shutdown()
        await super().shutdown(sockets)


def serve(app: Any, settings: Settings, certificate: TlsCertificate) -> bool:
    """Serve an application of create_app until SIGTERM or SIGINT; returns whether the server started."""
    server = Server(_config(app, settings, certificate), app.state.before_shutdown)
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


def _config(app: Any, settings: Settings, certificate: TlsCertificate) -> uvicorn.Config:
    connections = allowed_connections(settings.max_connections)
    if connections < settings.max_connections:
        remedy = "raise the limit of open files (ulimit -n, LimitNOFILE)"
        LOG.warning("fewer connections allowed", extra={"max_connections": connections, "remedy": remedy})
    per_address = min(connections, settings.max_connections_per_address)
    table = ConnectionTable(connections, per_address, app.state.http_counters)
    http: Any = make_protocol(settings.header_seconds, settings.body_seconds, table)
    if certificate.in_use:
        http = tls_protocol(http, certificate.load())
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=http,
        ws=make_websocket(settings.body_seconds, table),
        ws_max_size=MAX_WEBSOCKET_BYTES,
        ws_max_queue=MAX_WEBSOCKET_MESSAGES,
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
        backlog=accepts_per_turn(connections),
    )
