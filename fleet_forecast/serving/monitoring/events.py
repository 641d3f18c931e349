"""What happens, told to whoever listens: cycles done, alerts begun and ended, models changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fleet_forecast.serving.json_bytes import to_json

MAX_LISTENERS = 64
QUEUE_EVENTS = 100
PORTION_EVENTS = 20  # of a burst
PATIENCE_SECONDS = 2.0
HEARTBEAT_SECONDS = 15.0


class TooManyListenersError(RuntimeError):
    """No further event stream can be opened."""


class EventHub:
    """Hands each event to every listener. A listener that does not keep up is dropped, so nobody waits for it."""

    def __init__(self) -> None:
        self.dropped = 0
        self._queues: set[asyncio.Queue[tuple[str, bytes] | None]] = set()
        self._closed = False

    @property
    def listeners(self) -> int:
        """Open streams."""
        return len(self._queues)

    def publish(self, kind: str, document: Any) -> None:
        """Tell all listeners; call it on the event loop."""
        event = (kind, to_json(document))
        for queue in list(self._queues):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._drop(queue)

    async def publish_many(self, kind: str, documents: Iterable[Any]) -> None:
        """Tell all listeners of a burst in portions, so that who reads keeps up and other work gets its turn.

        A listener may make it wait for some seconds in all; then it is dropped.
        """
        give_up = time.monotonic() + PATIENCE_SECONDS
        for number, document in enumerate(documents):
            if number and number % PORTION_EVENTS == 0:
                await asyncio.sleep(0)
                while lagging := [queue for queue in self._queues if queue.qsize() > QUEUE_EVENTS // 2]:
                    if time.monotonic() < give_up:
                        await asyncio.sleep(0.005)
                        continue
                    for queue in lagging:
                        self._drop(queue)
                    give_up = time.monotonic() + PATIENCE_SECONDS  # nobody else pays for them
            self.publish(kind, document)

    def close(self) -> None:
        """End all streams, and any opened later at once."""
        self._closed = True
        for queue in list(self._queues):
            self._end(queue)

    def subscribe(self) -> AsyncIterator[tuple[str, bytes] | None]:
        """Events as they happen, (kind, JSON); None is a heartbeat. Ends when dropped or closed.

        Raises TooManyListenersError.
        """
        if len(self._queues) >= MAX_LISTENERS:
            raise TooManyListenersError(f"{MAX_LISTENERS} event streams are open already")
        queue: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue(QUEUE_EVENTS)
        self._queues.add(queue)
        if self._closed:
            self._end(queue)
        return self._events(queue)

    async def _events(self, queue: asyncio.Queue[tuple[str, bytes] | None]) -> AsyncIterator[tuple[str, bytes] | None]:
        try:
            while True:
                try:
                    waiting = not queue.empty()  # taken without the cost of a timer: bursts are long
                    event = queue.get_nowait() if waiting else await asyncio.wait_for(queue.get(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    return
                yield event
        finally:
            self._queues.discard(queue)

    def _drop(self, queue: asyncio.Queue[tuple[str, bytes] | None]) -> None:
        self.dropped += 1
        self._end(queue)

    def _end(self, queue: asyncio.Queue[tuple[str, bytes] | None]) -> None:
        self._queues.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)


def as_server_sent(event: tuple[str, bytes] | None) -> bytes:
    """One event in the format of server-sent events; a heartbeat is a comment."""
    return b": still here\n\n" if event is None else b"event: %s\ndata: %s\n\n" % (event[0].encode(), event[1])
