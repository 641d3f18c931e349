"""Reads request bodies within a deadline, a size for each and a size for all that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


@dataclass
class WaitingBodies:
    """Bytes of all bodies that were received and whose requests are not answered yet."""

    max_bytes: int
    held_bytes: int = 0


class BoundedBody:
    """An ASGI `receive` that raises HTTPException when a limit is exceeded: 408 (time), 413 (size), 503 (all bodies).

    A body refused with 503 is read to its end and dropped, so that its sender gets the response and keeps the
    connection. After the body, messages pass without limits.
    """

    def __init__(self, receive: Receive, seconds: float, max_bytes: int, waiting: WaitingBodies) -> None:
        self._receive, self._seconds, self._max_bytes, self._waiting = receive, seconds, max_bytes, waiting
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._received_bytes = self._held_bytes = 0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        message = await self._next()
        size = len(message.get("body", b""))
        waiting = self._waiting
        others_wait = waiting.held_bytes > self._held_bytes  # a single body is always accepted
        if waiting.held_bytes + size > waiting.max_bytes and others_wait:
            self.release()
            while not self._complete:
                await self._next()
            raise HTTPException(503, "too many bodies wait to be validated; try again", headers={"Retry-After": "1"})
        self._held_bytes += size
        waiting.held_bytes += size
        return message

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise _incomplete(408, f"the body did not arrive within {self._seconds:g} s") from None
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > self._max_bytes:
            raise _incomplete(413, f"the body is larger than {self._max_bytes} bytes; send smaller batches")
        self._complete = not message.get("more_body", False)
        return message

    def release(self) -> None:
        """Stop counting this body: its request is answered, or the body is dropped."""
        self._waiting.held_bytes -= self._held_bytes
        self._held_bytes = 0


def _incomplete(status: int, detail: str) -> HTTPException:
    """Refusal of a body that is not read to its end; the connection cannot be used again."""
    return HTTPException(status, detail, headers={"connection": "close"})
