"""One HTTP connection with the limits that uvicorn lacks: deadlines, sizes, pipelining, number of connections."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import sys
import termios
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from fleet_forecast.serving.http.connection_table import ConnectionTable, State

LOG = logging.getLogger(__name__)
MAX_HEADER_BYTES = 64 * 1024
MAX_READ_BYTES = 64 * 1024  # at once, so that the event loop parses one connection for a short time only
MAX_PIPELINED = 8  # requests that wait for the response of an earlier one
FREE_PIECES = 16_384  # pieces of a body of any size; further ones must have MIN_PIECE_BYTES on average
MIN_PIECE_BYTES = 64
MAX_BODY_AFTER_RESPONSE = 64 * 1024  # bytes that are read and dropped


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's connection, closed when a limit is exceeded.

    Read timer: headers, the rest of a body after its response, or the next request are late.
    Write timer: the client has read nothing of what is written for it.
    """

    header_seconds: ClassVar[float]
    body_seconds: ClassVar[float]
    table: ClassVar[ConnectionTable]
    _read_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None  # `cycle` is the newest request, which may wait for this one
    _awaiting_headers = False
    _receiving_body = False  # from the end of the headers to the end of the message, trailers included
    _non_body_bytes = 0  # received since the message began, or since the last bytes of its body
    _pieces = _body_bytes = _dropped_bytes = 0  # of the message's body; dropped: received after the response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.transport.max_size = MAX_READ_BYTES  # type: ignore[attr-defined]
        if self.table.add(self.transport, self.client[0] if self.client else ""):
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the running request as well: uvicorn tells the newest one only, and an event stream would never end."""
        self._stop_timers()
        self.table.remove(self.transport)
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        """Parse the data; close the connection if headers, trailers or chunk framing exceed MAX_HEADER_BYTES."""
        self._non_body_bytes += len(data)
        too_large = self._non_body_bytes > MAX_HEADER_BYTES
        if too_large and self._awaiting_headers and b"\r\n\r\n" not in data[:MAX_HEADER_BYTES]:
            self._awaiting_headers = False
            self.send_400_response("Request headers too large.")
            return
        super().data_received(data)
        if self._receiving_body and self._non_body_bytes > MAX_HEADER_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests before the first response")
        super().on_message_begin()
        if not self._awaiting_headers:  # a further request on a kept connection
            self._await_headers()
        self._enter_state()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. Trailers of a chunked body are dropped: no route reads them, and their number has no bound."""
        if not self._receiving_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass the request on; an invalid URL is answered with 400."""
        self._awaiting_headers, self._receiving_body, self._non_body_bytes = False, True, 0
        self._pieces = self._body_bytes = self._dropped_bytes = 0
        self._start_read_timer(None)
        try:
            super().on_headers_complete()
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            raise httptools.HttpParserError("invalid URL") from None
        self._enter_state()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on; the middleware bounds its size and time."""
        self._non_body_bytes = 0
        self._pieces += 1
        self._body_bytes += len(body)
        if (self._pieces - FREE_PIECES) * MIN_PIECE_BYTES > self._body_bytes:
            raise httptools.HttpParserError("the chunks of the body are too small")
        if self._is_answered():
            self._dropped_bytes += len(body)
            if self._dropped_bytes > MAX_BODY_AFTER_RESPONSE:
                raise httptools.HttpParserError("the request is answered; its body is not read")
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._receiving_body = False
        self._await_next()
        self._enter_state()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # uvicorn's timer stops at any byte, even one that begins no request
        self._start_write_timer()
        self._await_next()
        self._enter_state()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer 400 and close; only close where other responses come first, or a part of one is written."""
        started = self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started
        if self.pipeline or started or (self._receiving_body and self._is_answered()):
            self.transport.abort()
            return
        super().send_400_response(msg)
        self._start_write_timer()

    def handle_websocket_upgrade(self) -> None:
        """Pass the connection to the WebSocket protocol, which has timers of its own."""
        self._stop_timers()
        self.table.set_state(self.transport, State.BUSY)
        super().handle_websocket_upgrade()

    def _should_upgrade(self) -> bool:
        """Whether to pass the request to the WebSocket protocol; others are answered as if no upgrade was asked for."""
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        return self.parser.get_method() == b"GET" and not has_body and super()._should_upgrade()

    def _is_answered(self) -> bool:
        """Whether all requests are answered."""
        return self.cycle is not None and self.cycle.response_complete

    def _enter_state(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            state = State.RECEIVING_BODY if self._receiving_body else State.BUSY
        else:
            state = State.AWAITING_HEADERS if self._awaiting_headers else State.IDLE
        self.table.set_state(self.transport, state)

    def _await_headers(self) -> None:
        self._awaiting_headers, self._non_body_bytes = True, 0
        self._start_read_timer(self.header_seconds)

    def _await_next(self) -> None:
        """When all requests are answered: await the rest of the last body, or the next request."""
        if self._is_answered() and not self._awaiting_headers:
            self._start_read_timer(self.body_seconds if self._receiving_body else self.timeout_keep_alive)

    def _start_read_timer(self, seconds: float | None) -> None:
        """Start the timer again; None only stops it."""
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = None if seconds is None else self.loop.call_later(seconds, self._close_late)

    def _close_late(self) -> None:
        self._read_timer = None
        self.transport.close()
        self._start_write_timer()

    def _start_write_timer(self) -> None:
        """Start the timer again while bytes are unread: close() alone would wait for the client without a limit."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        unread = self._unread_bytes()
        self._write_timer = self.loop.call_later(self.body_seconds, self._check_progress, unread) if unread else None

    def _check_progress(self, unread_before: int) -> None:
        self._write_timer = None
        if self._unread_bytes() < unread_before:
            self._start_write_timer()
        else:
            self.table.counters.closed["unread"] += 1
            LOG.warning("response not read", extra={"seconds": self.body_seconds})
            self.transport.abort()

    def _unread_bytes(self) -> int:
        """Bytes in the write buffer and in the kernel's. The first alone shrinks in steps that are too large.

        A slow client that reads would count as one that does not.
        """
        unread = self.transport.get_write_buffer_size()
        if unread:
            in_kernel = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            unread += int.from_bytes(in_kernel, sys.byteorder)
        return unread

    def _stop_timers(self) -> None:
        self._start_read_timer(None)
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def make_protocol(header_seconds: float, body_seconds: float, table: ConnectionTable) -> type[BoundedHttp]:
    """The connection class with its limits; uvicorn makes one object for each connection."""
    limits = {"header_seconds": header_seconds, "body_seconds": body_seconds, "table": table}
    return type("LimitedHttp", (BoundedHttp,), limits)
