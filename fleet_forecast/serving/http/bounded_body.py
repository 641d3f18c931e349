"""Reads request bodies within a deadline, a size limit for each and one for all that wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


@dataclass
class WaitingBodies:
    """Bytes of all bodies that were received, in part or completely, and whose requests are not answered yet.

    Complete bodies come first: if there is no memory left, incomplete ones are dropped, the oldest one of the client
    address with the most bytes.
    """

    max_bytes: int
    held_bytes: int = 0
    incomplete: dict[BoundedBody, None] = field(default_factory=dict)  # oldest first

    def make_room(self, body: BoundedBody, size: int) -> bool:
        """Whether `size` more bytes of `body` may be held. A single body is always accepted."""
        while self.held_bytes + size > self.max_bytes and self.held_bytes > body.held_bytes:
            by_client = Counter[str]()
            for other in self.incomplete:
                by_client[other.client] += other.held_bytes
            others = [other for other in self.incomplete if other is not body and other.held_bytes]
            if not others:
                return False
            max(others, key=lambda other: by_client[other.client]).drop()  # the first one of several
        return True


class BoundedBody:
    """An ASGI `receive` that raises HTTPException when a limit is exceeded: 408 (time), 413 (size), 503 (all bodies).

    A body refused with 503 is read to its end and dropped, so that its sender gets the response and keeps the
    connection; one that was dropped for another body is not. After the body, messages pass without limits.
    """

    def __init__(
        self, receive: Receive, seconds: float, max_bytes: int, waiting: WaitingBodies, client: str = ""
    ) -> None:
        self._receive, self._seconds, self._max_bytes, self._waiting = receive, seconds, max_bytes, waiting
        self.client, self.held_bytes = client, 0
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._received_bytes = 0
        self._complete = self._dropped = False
        self._timeout: asyncio.Timeout | None = None

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        message = await self._next()
        size = len(message.get("body", b""))
        if not self._waiting.make_room(self, size):
            self.release()
            while not self._complete:
                await self._next()
            raise HTTPException(503, "too many bodies wait to be validated; try again", headers={"Retry-After": "1"})
        self.held_bytes += size
        self._waiting.held_bytes += size
        if not self._complete:
            self._waiting.incomplete[self] = None
        return message

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline) as self._timeout:
                message = await self._receive()
        except TimeoutError:
            if not self._dropped:
                raise _incomplete(408, f"the body did not arrive within {self._seconds:g} s") from None
        if self._dropped:
            detail = "complete bodies need the memory of this incomplete one; send it again, faster"
            raise _incomplete(503, detail, {"Retry-After": "1"})
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > self._max_bytes:
            raise _incomplete(413, f"the body is larger than {self._max_bytes} bytes; send smaller batches")
        self._complete = not message.get("more_body", False)
        if self._complete:
            self._waiting.incomplete.pop(self, None)
        return message

    def drop(self) -> None:
        """Drop this body in favour of another one: the request is refused with 503."""
        self._dropped = True
        self.release()
        if self._timeout is not None:
            expire_now(self._timeout)

    def release(self) -> None:
        """Stop counting this body: its request is answered, or the body is dropped."""
        self._waiting.held_bytes -= self.held_bytes
        self.held_bytes = 0
        self._waiting.incomplete.pop(self, None)


def expire_now(timeout: asyncio.Timeout) -> None:
    """Raise TimeoutError where the timeout is awaited; no effect on one that has expired or ended."""
    with contextlib.suppress(RuntimeError):
        timeout.reschedule(asyncio.get_running_loop().time())


def _incomplete(status: int, detail: str, headers: dict[str, str] | None = None) -> HTTPException:
    """Refusal of a body that is not read to its end; the connection cannot be used again."""
    return HTTPException(status, detail, headers={"connection": "close", **(headers or {})})
