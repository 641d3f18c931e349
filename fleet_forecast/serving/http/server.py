"""uvicorn with what it lacks: a deadline for headers, a bound on their size and on connections, a clean end."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import signal
import sys
import termios
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fleet_forecast.serving.settings import Settings

LOG = logging.getLogger(__name__)
MAX_HEADER_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 30


class BoundedHttp(HttpToolsProtocol):
    """One connection; closed if its headers are late or large, or if there are too many connections already.

    It also ends if nothing more is asked, if a body goes on long after its answer, and if the answer is not taken.
    """

    header_seconds: ClassVar[float]
    body_seconds: ClassVar[float]
    max_connections: ClassVar[int]
    _deadline: asyncio.TimerHandle | None = None  # by when what is awaited of the client must have arrived
    _progress: asyncio.TimerHandle | None = None  # by when it must have taken more of what is written for it
    _awaiting_headers = False
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
        """Stop the clocks."""
        self._stop_clocks()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the headers, or what comes with a body without being of it, have grown too large."""
        self._bytes_beside_body += len(data)
        too_large = self._bytes_beside_body > MAX_HEADER_BYTES
        if too_large and self._awaiting_headers and b"\r\n\r\n" not in data[:MAX_HEADER_BYTES]:
            self._awaiting_headers = False
            self.send_400_response("Request headers too large.")
            return
        super().data_received(data)
        if self._receiving and self._bytes_beside_body > MAX_HEADER_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Start the clock of a further request on a kept connection."""
        super().on_message_begin()
        if not self._awaiting_headers:
            self._await_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; what follows a chunked body is dropped: no route reads it, and nothing bounds it."""
        if not self._receiving:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the clock and hand the request on; an address that is none is the client's fault."""
        self._awaiting_headers, self._receiving, self._bytes_beside_body = False, True, 0
        self._await(None)
        try:
            super().on_headers_complete()
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise httptools.HttpParserError("invalid URL") from None

    def on_body(self, body: bytes) -> None:
        """Hand the body on; the guard bounds it."""
        self._bytes_beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request, if this one is answered already."""
        super().on_message_complete()
        self._receiving = False
        self._await_what_is_next()

    def on_response_complete(self) -> None:
        """Wait until the answer is taken and for the rest of the body or the next request."""
        super().on_response_complete()
        self._unset_keepalive_if_required()  # any byte would cancel it, and one that begins no request would be enough
        self._await_progress()
        self._await_what_is_next()

    def pause_writing(self) -> None:
        """Much is written that the client has yet to take: start that clock."""
        super().pause_writing()
        self._await_progress()

    def send_400_response(self, msg: str) -> None:
        """Refuse the connection and wait until that is taken."""
        super().send_400_response(msg)
        self._await_progress()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to another protocol, which has its own clocks."""
        self._stop_clocks()
        super().handle_websocket_upgrade()

    def _await_headers(self) -> None:
        self._awaiting_headers, self._bytes_beside_body = True, 0
        self._await(self.header_seconds)

    def _await_what_is_next(self) -> None:
        """Once all requests are answered: the rest of the last one's body, or the next request."""
        answered = self.cycle is not None and self.cycle.response_complete
        if answered and not self._awaiting_headers:
            self._await(self.body_seconds if self._receiving else self.timeout_keep_alive)

    def _await(self, seconds: float | None) -> None:
        """Start the clock of what is awaited anew; None awaits nothing."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        self.transport.close()
        self._await_progress()

    def _await_progress(self) -> None:
        """Start the clock of what the client has yet to take anew; closing alone would wait for that without end."""
        if self._progress is not None:
            self._progress.cancel()
        left = self._bytes_to_take()
        self._progress = self.loop.call_later(self.body_seconds, self._still_taking, left) if left else None

    def _still_taking(self, left_before: int) -> None:
        self._progress = None
        if self._bytes_to_take() < left_before:
            self._await_progress()
        else:
            LOG.warning("answer not taken", extra={"seconds": self.body_seconds})
            self.transport.abort()

    def _bytes_to_take(self) -> int:
        """Bytes that wait here and in the kernel, which moves its share in steps too large to tell a slow client by."""
        waiting = self.transport.get_write_buffer_size()
        if waiting:
            in_kernel = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            waiting += int.from_bytes(in_kernel, sys.byteorder)
        return waiting

    def _stop_clocks(self) -> None:
        self._await(None)
        if self._progress is not None:
            self._progress.cancel()
            self._progress = None


def make_protocol(header_seconds: float, body_seconds: float, max_connections: int) -> type[BoundedHttp]:
    """The HTTP protocol class with its limits; uvicorn makes one object per connection."""
    limits = {"header_seconds": header_seconds, "body_seconds": body_seconds, "max_connections": max_connections}
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
        http=make_protocol(settings.header_seconds, settings.body_seconds, settings.max_connections),
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
