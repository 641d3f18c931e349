"""HTTPS connections: the TLS handshake is counted and has a deadline, like everything after it.

uvicorn and asyncio pass a connection to its protocol after the handshake. Clients that never begin it would be outside
all limits and use up the open files.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from uvicorn.server import ServerState

from fleet_forecast.serving.http.connection import BoundedHttp


class TlsHandshake(asyncio.Protocol):
    """A connection until its handshake ends; then the HTTP connection takes its place."""

    def __init__(self, context: ssl.SSLContext, http: BoundedHttp, server_state: ServerState) -> None:
        self._context, self._http, self._state = context, http, server_state
        self._received: list[bytes] = []  # between the end of the handshake and the return of start_tls
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection and begin the handshake."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        if self._http.table.add(self._transport, str(peer[0]) if peer else ""):
            self._transport.pause_reading()  # until start_tls reads
            self._state.connections.add(self)  # type: ignore[arg-type]
            self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    def data_received(self, data: bytes) -> None:
        """Keep what the client sent right behind its handshake."""
        self._received.append(data)

    def connection_lost(self, _problem: Exception | None) -> None:
        """Note that there is nothing to pass on."""
        self._is_lost = True

    async def _shake_hands(self) -> None:
        encrypted, seconds = None, self._http.header_seconds
        try:
            encrypted = await asyncio.get_running_loop().start_tls(
                self._transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=seconds,
            )
        except OSError:  # the client's fault, or the connection made room for another one
            self._transport.abort()
        finally:
            self._http.table.remove(self._transport)
            self._state.connections.discard(self)
        if encrypted is not None and not self._is_lost:
            self._pass_on(encrypted)

    def _pass_on(self, encrypted: asyncio.Transport) -> None:
        encrypted.set_protocol(self._http)
        self._http.connection_made(encrypted)
        for data in self._received:
            self._http.data_received(data)

    def shutdown(self) -> None:
        """End the connection; uvicorn calls it when the server ends."""
        self._transport.abort()


def tls_protocol(http: type[BoundedHttp], context: ssl.SSLContext) -> Callable[..., TlsHandshake]:
    """What makes a protocol object for each connection, with the arguments that uvicorn gives."""

    def make(server_state: ServerState, **others: Any) -> TlsHandshake:
        return TlsHandshake(context, http(server_state=server_state, **others), server_state)

    return make
