"""Sends alerts to an Alertmanager (API v2).

Firing alerts are sent at each interval, with an end four intervals ahead. So the Alertmanager has them after its own
restart, and ends them only if this daemon stops. Labels identify an alert there: when the severity of an alert changes,
the one with the old label is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from fleet_forecast.iso_time import iso, iso_milliseconds
from fleet_forecast.serving.alerting.alert import Alert
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.delivery.notifiers import ALERTS_PER_REQUEST, Notifier

ALERT_NAME = "FleetForecast"  # and the reason: FleetForecastBreach
MODEL_VIEW = "/model"  # address of the dashboard's view of the model
INTERVALS_TO_END = 4
Identity = tuple[tuple[str, str], ...]  # labels in order


class AlertmanagerFormat:
    """Alerts in the fields of the Alertmanager.

    book: its rules name the labels. public_url: address of the dashboard, None: no link to it.
    """

    def __init__(self, book: AlertBook, public_url: str | None) -> None:
        self._book, self._public_url = book, public_url

    def labels(self, alert: Alert) -> dict[str, str]:
        """The labels under the names that the rules give, and the rules' own labels; none that would be empty."""
        own = {
            "alertname": ALERT_NAME + alert.reason.capitalize(),
            "server": alert.server_name,
            "profile": alert.profile,
            "metric": alert.metric,
            "severity": alert.severity,
            "reason": alert.reason,
        }
        rules = self._book.rules
        sent = {name: value for label, value in own.items() if value for name in rules.sent_names(label)}
        return {**sent, **rules.labels}

    def fields(self, alert: Alert, ends_seconds: float) -> dict[str, Any]:
        """One alert as the API v2 takes it."""
        fields = {
            "labels": self.labels(alert),
            "annotations": {"summary": alert.sentence, **(_of_metric(alert) if alert.metric else {})},
            "startsAt": iso_milliseconds(alert.started_seconds),
            "endsAt": iso_milliseconds(ends_seconds),
        }
        if self._public_url is not None:
            fields["generatorURL"] = f"{self._public_url.rstrip('/')}/#{quote(alert.server_name) or MODEL_VIEW}"
        return fields


def _of_metric(alert: Alert) -> dict[str, str]:
    """Annotations of an alert on a metric."""
    expected = alert.expected_seconds
    return {
        "probability": f"{alert.probability:.2f}",
        "threshold": "none" if alert.threshold is None else f"{alert.threshold:g}",
        "current": "not measured" if alert.current is None else f"{alert.current:.4g}",
        "expected": "not within the forecast" if expected is None else iso(expected),
    }


class AlertmanagerNotifier(Notifier):
    """Sends the firing alerts to an Alertmanager at each interval, and the end of each once."""

    def __init__(
        self,
        url: str,
        firing: Callable[[], Sequence[Alert]],
        interval_seconds: float,
        form: AlertmanagerFormat,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, transport)
        self._firing, self._interval_seconds, self._form = firing, interval_seconds, form
        self._endpoint = self.url + "/api/v2/alerts"
        self._sent: dict[Identity, Alert] = {}  # alerts that the Alertmanager has as firing

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queued.wait(), self._interval_seconds)
        self._queued.clear()

    async def _deliver(self) -> None:
        now = time.time()
        queued = [alert for alert in self._queue if alert.ended_seconds is not None]
        firing = {self._identity(alert): alert for alert in self._firing()}
        ended = {**self._sent, **{self._identity(alert): alert for alert in queued}}
        # An alert that ended and began again is firing: its end would resolve it wrongly.
        to_send = [*firing.items(), *((identity, alert) for identity, alert in ended.items() if identity not in firing)]
        for start in range(0, len(to_send), ALERTS_PER_REQUEST):
            part = to_send[start : start + ALERTS_PER_REQUEST]
            ends = [self._end_seconds(alert, identity in firing, now) for identity, alert in part]
            fields = [self._form.fields(alert, end) for (_, alert), end in zip(part, ends, strict=True)]
            await self._post(self._endpoint, fields)
            self.sent += len(part)
            for identity, alert in part:
                if identity in firing:
                    self._sent[identity] = alert
                else:
                    self._sent.pop(identity, None)
        done = set(map(id, queued))
        self._queue = deque(a for a in self._queue if a.ended_seconds is not None and id(a) not in done)

    def _identity(self, alert: Alert) -> Identity:
        return tuple(sorted(self._form.labels(alert).items()))

    def _end_seconds(self, alert: Alert, is_firing: bool, now_seconds: float) -> float:
        if is_firing:
            return now_seconds + INTERVALS_TO_END * self._interval_seconds
        return now_seconds if alert.ended_seconds is None else alert.ended_seconds
