"""Event streams of the daemon: completed cycles, alerts that begin or end, changed models."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fleet_forecast.serving.json_bytes import to_json

MAX_LISTENERS = 64
QUEUE_EVENTS = 100
BATCH_EVENTS = 20  # of a burst
MAX_WAIT_SECONDS = 2.0  # of a burst, for slow listeners
HEARTBEAT_SECONDS = 15.0

Event = tuple[str, bytes]  # kind and JSON


class TooManyListenersError(RuntimeError):
    """No further event stream can be opened."""


class EventHub:
    """Sends each event to every listener. A listener that does not keep up is dropped, so the others do not wait."""

    def __init__(self) -> None:
        self.dropped = 0
        self._queues: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    @property
    def listeners(self) -> int:
        """Open streams."""
        return len(self._queues)

    def publish(self, kind: str, document: Any) -> None:
        """Send an event to all listeners; call it on the event loop."""
        event = (kind, to_json(document))
        for queue in list(self._queues):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._drop(queue)

    async def publish_many(self, kind: str, documents: Iterable[Any]) -> None:
        """Send a burst in batches; between them listeners read and other work runs.

        Slow listeners delay the burst by MAX_WAIT_SECONDS at most; then they are dropped.
        """
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        for number, document in enumerate(documents):
            if number and number % BATCH_EVENTS == 0:
                await asyncio.sleep(0)
                while slow := [queue for queue in self._queues if queue.qsize() > QUEUE_EVENTS // 2]:
                    if time.monotonic() < deadline:
                        await asyncio.sleep(0.005)
                        continue
                    for queue in slow:
                        self._drop(queue)
                    deadline = time.monotonic() + MAX_WAIT_SECONDS  # the other listeners have the full time again
            self.publish(kind, document)

    def close(self) -> None:
        """End all streams; a stream opened later ends at once."""
        self._closed = True
        for queue in list(self._queues):
            self._end(queue)

    def subscribe(self) -> AsyncIterator[Event | None]:
        """A stream of events; None is a heartbeat. It ends when the listener is dropped or the hub closed.

        Raises TooManyListenersError.
        """
        if len(self._queues) >= MAX_LISTENERS:
            raise TooManyListenersError(f"{MAX_LISTENERS} event streams are open already")
        queue: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE_EVENTS)
        self._queues.add(queue)
        if self._closed:
            self._end(queue)
        return self._events(queue)

    async def _events(self, queue: asyncio.Queue[Event | None]) -> AsyncIterator[Event | None]:
        try:
            while True:
                try:
                    waiting = not queue.empty()  # then no timer is needed; in a burst timers are the main cost
                    event = queue.get_nowait() if waiting else await asyncio.wait_for(queue.get(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    return
                yield event
        finally:
            self._queues.discard(queue)

    def _drop(self, queue: asyncio.Queue[Event | None]) -> None:
        self.dropped += 1
        self._end(queue)

    def _end(self, queue: asyncio.Queue[Event | None]) -> None:
        self._queues.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)


def as_server_sent(event: Event | None) -> bytes:
    """One event in the format of server-sent events; a heartbeat is a comment."""
    return b": still here\n\n" if event is None else b"event: %s\ndata: %s\n\n" % (event[0].encode(), event[1])
