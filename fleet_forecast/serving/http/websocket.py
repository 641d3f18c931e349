"""One WebSocket connection with the deadlines that uvicorn lacks."""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from fleet_forecast.serving.http.connection_table import ConnectionTable

LOG = logging.getLogger(__name__)
_BAD_HANDSHAKE = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, aborted when it neither completes its handshake nor its close in time.

    An open one has uvicorn's deadline for the response to a ping, and the middleware's for reading a message.
    """

    seconds: ClassVar[float]
    table: ClassVar[ConnectionTable]
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.seconds, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.table.remove(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data; the first is the whole upgrade request, on which the parser gives up without an event."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.handshake_complete = self.close_sent = True
            self.transport.write(_BAD_HANDSHAKE)
            self.transport.close()

    def shutdown(self) -> None:
        """Close with a message; the shutdown of the other connections goes on where that fails."""
        try:
            super().shutdown()
        except Exception:
            LOG.exception("a WebSocket could not be closed")
            self.transport.abort()

    def _check(self) -> None:
        if self.transport.is_closing() or not self.handshake_complete:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(self.seconds, self._check)


def make_websocket(seconds: float, table: ConnectionTable) -> type[BoundedWebSocket]:
    """The WebSocket class with its limits; uvicorn makes one object for each connection."""
    return type("LimitedWebSocket", (BoundedWebSocket,), {"seconds": seconds, "table": table})
