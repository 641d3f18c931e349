"""Access to the forecast worker: the cycle first, then requests one at a time.

The interpreter runs one thread at a time and the engine uses every core. With requests running at the same time, a
cycle would take minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WorkerBusyError(RuntimeError):
    """No turn became free within the time; try again."""


class WorkerTurns:
    """Turns on the forecast worker. All methods are called on the event loop.

    A request that runs when a cycle begins is completed; the others wait until the cycle has ended.
    """

    def __init__(self, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds
        self._request = asyncio.Lock()
        self._no_cycle = asyncio.Event()
        self._no_cycle.set()

    @asynccontextmanager
    async def cycle(self) -> AsyncIterator[None]:
        """The turn of a cycle: no request begins until it ends."""
        self._no_cycle.clear()
        try:
            yield
        finally:
            self._no_cycle.set()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """The turn of one request. Raises WorkerBusyError after `wait_seconds`."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._request.acquire()
                try:
                    await self._no_cycle.wait()
                except BaseException:
                    self._request.release()
                    raise
        except TimeoutError:
            raise WorkerBusyError("the fleet's forecasts are being made; try again") from None
        try:
            yield
        finally:
            self._request.release()
