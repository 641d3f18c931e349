"""Sends large responses in pieces, within a deadline for each piece and a total of bytes that clients have not read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fleet_forecast.serving.http.bounded_body import Message, expire_now

Send = Callable[[Message], Awaitable[None]]
PIECE_BYTES = 64 * 1024


@dataclass(eq=False)
class _Response:
    """A body that is being sent."""

    unsent_bytes: int
    timeout: asyncio.Timeout | None = None  # of the piece that is being sent


@dataclass
class UnsentResponses:
    """Bytes of all large bodies that are not sent yet.

    Beyond `max_bytes`, the body of which nothing was read for the longest time is dropped.
    """

    max_bytes: int
    unsent_bytes: int = 0
    given_up: int = 0  # since the start
    _responses: dict[_Response, None] = field(default_factory=dict)  # by the time of their last progress

    async def send(self, send: Send, message: Message, seconds: float) -> None:
        """Send an http.response.body; raises TimeoutError if a piece is not sent in time, or the body is dropped."""
        body, more_body = memoryview(message["body"]), message.get("more_body", False)
        self._make_room(len(body))
        response = _Response(len(body))
        self._responses[response] = None
        self.unsent_bytes += len(body)
        try:
            for start in range(0, len(body), PIECE_BYTES):
                piece = bytes(body[start : start + PIECE_BYTES])
                more = more_body or start + PIECE_BYTES < len(body)
                async with asyncio.timeout(seconds) as response.timeout:
                    await send({"type": "http.response.body", "body": piece, "more_body": more})
                if response not in self._responses:
                    raise TimeoutError
                self._release(response, len(piece))
                del self._responses[response]
                self._responses[response] = None
        finally:
            if response in self._responses:
                self._release(response, response.unsent_bytes)
                del self._responses[response]

    def _make_room(self, size: int) -> None:
        while self._responses and self.unsent_bytes + size > self.max_bytes:
            stuck = next(iter(self._responses))
            del self._responses[stuck]
            self._release(stuck, stuck.unsent_bytes)
            self.given_up += 1
            if stuck.timeout is not None:
                expire_now(stuck.timeout)

    def _release(self, response: _Response, size: int) -> None:
        response.unsent_bytes -= size
        self.unsent_bytes -= size
