"""Sends alerts to an Alertmanager (API v2) and to a webhook, with bounded queues and retries.

Firing alerts are sent to the Alertmanager again and again, each time with an end four intervals ahead. So it has them
after its own restart, ends them if this daemon stops, and does not end any before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState

from fleet_forecast.iso_time import iso_milliseconds
from fleet_forecast.retry import back_off
from fleet_forecast.serving.alerting.alert import Alert, as_document
from fleet_forecast.sources.address import origin_of
from fleet_forecast.sources.bounded_http import AnswerLimits, BoundedClient

LOG = logging.getLogger(__name__)
ALERT_NAME = "FleetForecastBreach"
QUEUE_ALERTS = 10_000
ALERTS_PER_REQUEST = 500
INTERVALS_TO_END = 4
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
LIMITS = AnswerLimits(max_bytes=64 * 1024, seconds=10.0, needs_content=False)  # the status counts


class DeliveryError(Exception):
    """The receiver did not accept the alerts; the message gives the status and the start of its answer."""


DELIVERY_ERRORS = (DeliveryError, httpx.HTTPError, OSError, ValueError)


class Notifier:
    """Sends each alert that begins or ends to one webhook, once. Subclasses send something else."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self.sent = 0
        self.failures = 0
        self.dropped = 0
        self._queue: deque[Alert] = deque()
        self._queued = asyncio.Event()
        self._client = BoundedClient(LIMITS, transport=transport)

    def enqueue(self, changed: Iterable[Alert]) -> None:
        """Queue alerts that began or ended; a full queue drops the oldest."""
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


class AlertmanagerNotifier(Notifier):
    """Sends the firing alerts to an Alertmanager at each interval, and alerts that ended once."""

    def __init__(
        self,
        url: str,
        firing: Callable[[], Sequence[Alert]],
        interval_seconds: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, transport)
        self._firing, self._interval_seconds = firing, interval_seconds
        self._endpoint = self.url + "/api/v2/alerts"

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queued.wait(), self._interval_seconds)
        self._queued.clear()

    async def _deliver(self) -> None:
        firing = list(self._firing())
        keys = {alert.key for alert in firing}
        ended = [alert for alert in self._queue if alert.ended_seconds is not None]
        # An alert that ended and began again is firing: its end would resolve it wrongly.
        to_send = [*firing, *(alert for alert in ended if alert.key not in keys)]
        now = time.time()
        for start in range(0, len(to_send), ALERTS_PER_REQUEST):
            part = to_send[start : start + ALERTS_PER_REQUEST]
            await self._post(self._endpoint, [self._alertmanager_fields(alert, now) for alert in part])
            self.sent += len(part)
        done = set(map(id, ended))
        self._queue = deque(a for a in self._queue if a.ended_seconds is not None and id(a) not in done)

    def _alertmanager_fields(self, alert: Alert, now_seconds: float) -> dict[str, Any]:
        ends = alert.ended_seconds
        if ends is None:
            ends = now_seconds + INTERVALS_TO_END * self._interval_seconds
        return {
            "labels": {
                "alertname": ALERT_NAME,
                "server": alert.server_name,
                "profile": alert.profile,
                "metric": alert.metric,
            },
            "annotations": {
                "summary": alert.sentence,
                "reason": alert.reason,
                "probability": f"{alert.probability:.2f}",
                "threshold": f"{alert.threshold:g}",
                "current": "not measured" if alert.current is None else f"{alert.current:.4g}",
            },
            "startsAt": iso_milliseconds(alert.started_seconds),
            "endsAt": iso_milliseconds(ends),
        }


def _reason(problem: BaseException | None) -> str:
    return str(problem) or type(problem).__name__
