"""Alerts out of the house: to an Alertmanager (API v2) and to a webhook, with a bounded queue and retries.

The Alertmanager is told the firing alerts again and again, each time with an end four intervals ahead: it keeps them
over its own restart, ends them by itself if this daemon dies, and never sees one end that has not ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import httpx

from fleet_forecast.serving.alerting.book import Alert

LOG = logging.getLogger(__name__)
ALERT_NAME = "FleetForecastBreach"
QUEUE_ALERTS = 10_000
ALERTS_PER_REQUEST = 500
INTERVALS_TO_END = 4
LONGEST_PAUSE_SECONDS = 30.0
TIMEOUT_SECONDS = 10.0


class Delivery:
    """Sends alerts to one address. Subclasses say what is sent."""

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self.sent = 0
        self.failures = 0
        self.dropped = 0
        self._changed: deque[Alert] = deque()
        self._wake = asyncio.Event()
        self._client = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, transport=transport, follow_redirects=False)

    def take(self, changed: Iterable[Alert]) -> None:
        """Queue alerts that began or ended; the oldest are dropped when too many wait."""
        for alert in changed:
            if len(self._changed) >= QUEUE_ALERTS:
                self._changed.popleft()
                self.dropped += 1
            self._changed.append(alert)
        self._wake.set()

    async def run(self) -> None:
        """Deliver for ever; what fails is tried again, later and later."""
        pause = 0.5
        if self._changed:  # begun again
            self._wake.set()
        while True:
            await self._wait()
            try:
                await self._deliver()
                pause = 0.5
            except (httpx.HTTPError, OSError, ValueError) as problem:
                self.failures += 1
                LOG.error("alerts not delivered", extra={"to": _origin(self.url), "reason": _reason(problem)})
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                self._wake.set()

    async def close(self) -> None:
        """Close the connections; to be called when `run` has ended."""
        await self._client.aclose()

    async def _wait(self) -> None:
        await self._wake.wait()
        self._wake.clear()

    async def _deliver(self) -> None:
        """Send what waits; an alert leaves the queue once it was taken."""
        while self._changed:
            part = list(self._changed)[:ALERTS_PER_REQUEST]
            await self._post(self.url, self._body(part))
            for alert in part:
                if self._changed and self._changed[0] is alert:
                    self._changed.popleft()
            self.sent += len(part)

    async def _post(self, url: str, body: Any) -> None:
        response = await self._client.post(url, json=body)
        if not response.is_success:
            message = f"status {response.status_code}: {response.text[:200]}"
            raise httpx.HTTPStatusError(message, request=response.request, response=response)

    def _body(self, alerts: Sequence[Alert]) -> Any:
        return {"version": "1", "alerts": [as_document(alert) for alert in alerts]}


class AlertmanagerDelivery(Delivery):
    """Keeps an Alertmanager up to date."""

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
            await asyncio.wait_for(self._wake.wait(), self._interval_seconds)
        self._wake.clear()

    async def _deliver(self) -> None:
        firing = list(self._firing())
        keys = {alert.key for alert in firing}
        ended = [alert for alert in self._changed if alert.ended_seconds is not None]
        # One that ended and began again is firing: telling its end would be a false resolve.
        waiting = [*firing, *(alert for alert in ended if alert.key not in keys)]
        now = time.time()
        for start in range(0, len(waiting), ALERTS_PER_REQUEST):
            part = waiting[start : start + ALERTS_PER_REQUEST]
            await self._post(self._endpoint, [self._alertmanager_fields(alert, now) for alert in part])
            self.sent += len(part)
        told = set(map(id, ended))
        self._changed = deque(a for a in self._changed if a.ended_seconds is not None and id(a) not in told)

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
            "startsAt": _instant(alert.started_seconds),
            "endsAt": _instant(ends),
        }


def as_document(alert: Alert) -> dict[str, Any]:
    """An alert as the API and webhooks say it."""
    fields = asdict(alert)
    for name in ("started", "ended", "expected", "earliest", "latest"):
        seconds = fields.pop(f"{name}_seconds")
        fields[f"{name}_at"] = None if seconds is None else _instant(seconds)
    return {"state": "firing" if alert.ended_seconds is None else "resolved", **fields}


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _origin(url: str) -> str:
    """Scheme and host of an address: webhooks carry secrets in their path."""
    return f"{httpx.URL(url).scheme}://{httpx.URL(url).host}"


def _reason(problem: Exception) -> str:
    return str(problem) or type(problem).__name__
