"""uvicorn with what it lacks: a deadline for headers, a bound on their size and on connections, a clean end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.settings import Settings

MAX_HEADER_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 30


class BoundedHttp(HttpToolsProtocol):
    """One connection; closed if its headers are late or large, or if there are too many connections already."""

    header_seconds: ClassVar[float]
    max_connections: ClassVar[int]
    _deadline: asyncio.TimerHandle | None = None
    _receiving = False  # the body, and what comes with it
    _bytes_beside_body = 0  # since the message began, or since the last of its body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, if it is within the bound, and start its clock."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self.max_connections:
            self.transport.abort()
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._headers_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the headers, or what comes with a body without being of it, have grown too large."""
        self._bytes_beside_body += len(data)
        too_large = self._bytes_beside_body > MAX_HEADER_BYTES
        if too_large and self._deadline is not None and b"\r\n\r\n" not in data[:MAX_HEADER_BYTES]:
            self._headers_arrived()
            self.send_400_response("Request headers too large.")
            return
        super().data_received(data)
        if self._receiving and self._bytes_beside_body > MAX_HEADER_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Start the clock of a further request on a kept connection."""
        super().on_message_begin()
        if self._deadline is None:
            self._await_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; what follows a chunked body is dropped: no route reads it, and nothing bounds it."""
        if not self._receiving:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the clock and hand the request on; an address that is none is the client's fault."""
        self._receiving, self._bytes_beside_body = True, 0
        self._headers_arrived()
        try:
            super().on_headers_complete()
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise httptools.HttpParserError("invalid URL") from None

    def on_body(self, body: bytes) -> None:
        """Hand the body on; the guard bounds it."""
        self._bytes_beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is there."""
        super().on_message_complete()
        self._receiving = False

    def _await_headers(self) -> None:
        self._bytes_beside_body = 0
        self._deadline = self.loop.call_later(self.header_seconds, self._too_late)

    def _headers_arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.abort()


def make_protocol(header_seconds: float, max_connections: int) -> type[BoundedHttp]:
    """The HTTP protocol class with its limits; uvicorn makes one object per connection."""
    limits = {"header_seconds": header_seconds, "max_connections": max_connections}
    return type("LimitedHttp", (BoundedHttp,), limits)


class Server(uvicorn.Server):
    """uvicorn's server that tells the application before it waits for open streams to end."""

    def __init__(self, config: uvicorn.Config, before_shutdown: Callable[[], None]) -> None:
        super().__init__(config)
        self._before_shutdown = before_shutdown

    async def shutdown(self, sockets: Any = None) -> None:
        """End open event streams, then shut down as uvicorn does."""
        self._before_shutdown()
        await super().shutdown(sockets)


def serve(app: Any, settings: Settings, before_shutdown: Callable[[], None]) -> bool:
    """Serve until SIGTERM or SIGINT; gives whether the server came up."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=make_protocol(settings.header_seconds, settings.max_connections),
        ws="websockets-sansio",
        ws_max_size=64 * 1024,
        ws_max_queue=8,
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
        backlog=512,
    )
    server = Server(config, before_shutdown)
    # uvicorn raises the signal that ended it once more when all is closed: a clean end is none of a signal's.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        server.run()
    except SystemExit:  # the address is in use, or the start failed; uvicorn has logged why
        return False
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # all is closed: nothing is left that a signal could end
            signal.signal(number, signal.SIG_IGN)
    return server.started
