"""Sends alerts to a webhook, with a bounded queue and retries."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState

from fleet_forecast.retry import back_off
from fleet_forecast.serving.alerting.alert import Alert, as_document
from fleet_forecast.sources.address import origin_of
from fleet_forecast.sources.bounded_http import BoundedClient, ResponseLimits

LOG = logging.getLogger(__name__)
QUEUE_ALERTS = 10_000
ALERTS_PER_REQUEST = 500
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
LIMITS = ResponseLimits(max_bytes=64 * 1024, seconds=10.0, needs_content=False)  # the status counts


class DeliveryError(Exception):
    """The receiver did not accept the alerts; the message gives the status and the start of its response."""


DELIVERY_ERRORS = (DeliveryError, httpx.HTTPError, OSError, ValueError)


class Notifier:
    """Sends each alert that begins, ends or changes its severity to one webhook, once."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self.sent = 0
        self.failures = 0
        self.dropped = 0
        self._queue: deque[Alert] = deque()
        self._queued = asyncio.Event()
        self._client = BoundedClient(LIMITS, transport=transport)

    def enqueue(self, changed: Iterable[Alert]) -> None:
        """Queue alerts that began, ended or changed their severity; a full queue drops the oldest."""
        for alert in changed:
            if len(self._queue) >= QUEUE_ALERTS:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(alert)
        self._queued.set()

    async def run(self) -> None:
        """Send until cancelled; a failed delivery is repeated after pauses that double."""
        policy = back_off(DELIVERY_ERRORS, LONGEST_PAUSE_SECONDS, first_pause_seconds=FIRST_PAUSE_SECONDS)
        deliver = AsyncRetrying(**policy, before_sleep=self._count_failure)
        if self._queue:  # after a restart of this task
            self._queued.set()
        while True:
            await self._wait()
            await deliver(self._deliver)

    async def close(self) -> None:
        """Close the connections, after `run` has ended."""
        await self._client.close()

    async def _wait(self) -> None:
        await self._queued.wait()
        self._queued.clear()

    async def _deliver(self) -> None:
        """Send the queue; an alert leaves it when the receiver has accepted it."""
        while self._queue:
            part = list(self._queue)[:ALERTS_PER_REQUEST]
            await self._post(self.url, self._body(part))
            for alert in part:
                if self._queue and self._queue[0] is alert:
                    self._queue.popleft()
            self.sent += len(part)

    async def _post(self, url: str, body: Any) -> None:
        response = await self._client.post(url, json=body)
        if not response.is_success:
            raise DeliveryError(f"status {response.status_code}: {response.text[:200]}")

    def _body(self, alerts: Sequence[Alert]) -> Any:
        return {"version": "1", "alerts": [as_document(alert) for alert in alerts]}

    def _count_failure(self, state: RetryCallState) -> None:
        self.failures += 1
        problem = state.outcome.exception() if state.outcome else None
        LOG.error("alerts not delivered", extra={"to": origin_of(self.url), "reason": _reason(problem)})


def _reason(problem: BaseException | None) -> str:
    return str(problem) or type(problem).__name__
