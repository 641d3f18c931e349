"""Looks at every new cycle: scores earlier forecasts, judges alerts, remembers them, tells events and deliveries."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fleet_forecast.serving.alerting.book import Alert, AlertBook
from fleet_forecast.serving.alerting.notifiers import Delivery, as_document
from fleet_forecast.serving.forecasts.cycle import FleetForecasts
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.monitoring.events import EventHub
from fleet_forecast.serving.monitoring.scores import ForecastScores

LOG = logging.getLogger(__name__)


class AlertWatch:
    """Runs the alert book beside the forecast cycle."""

    def __init__(
        self,
        book: AlertBook,
        scores: ForecastScores,
        forecasts: FleetForecasts,
        events: EventHub,
        deliveries: Sequence[Delivery],
        state_file: Path,
        clock: Callable[[], float],
    ) -> None:
        self._book, self._forecasts, self._events, self._deliveries = book, forecasts, events, deliveries
        self._scores, self._state_file, self._clock = scores, state_file, clock
        self._wake = asyncio.Event()
        self._saved: list[dict[str, Any]] = []
        forecasts.listeners.append(self._on_cycle)

    async def run(self) -> None:
        """Judge after each cycle, for ever."""
        self._restore()
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._judge()
            except Exception:
                LOG.exception("alerts not judged")

    def _on_cycle(self, _snapshot: FleetSnapshot) -> None:
        self._wake.set()

    async def _judge(self) -> None:
        snapshot = self._forecasts.snapshot
        changed = await asyncio.to_thread(self._judge_snapshot, snapshot)
        await asyncio.to_thread(self._save)
        for delivery in self._deliveries:
            delivery.take(changed)
        await self._events.publish_many("alert", map(_logged, changed))

    def _judge_snapshot(self, snapshot: FleetSnapshot) -> list[Alert]:
        self._scores.take(snapshot)
        now = self._clock()
        changed = self._book.judge(snapshot.forecasts.values(), now)
        return changed + self._book.keep_only(snapshot.forecasts, now)

    def _restore(self) -> None:
        try:
            self._book.restore(json.loads(self._state_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError) as problem:
            LOG.error("alert state not read", extra={"file": str(self._state_file), "reason": str(problem)})

    def _save(self) -> None:
        """Write what fires, if it changed; a full disk is no reason to stop judging."""
        documents = self._book.as_documents()
        if documents == self._saved:
            return
        beside = self._state_file.with_name(self._state_file.name + ".tmp")
        try:
            with beside.open("w", encoding="utf-8") as file:
                json.dump(documents, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._state_file)
            self._saved = documents
        except OSError as problem:
            LOG.error("alert state not written", extra={"reason": str(problem)})


def _logged(alert: Alert) -> dict[str, Any]:
    """The alert as the event streams tell it, written to the log as well."""
    state = "resolved" if alert.ended_seconds is not None else "firing"
    fields = {"server": alert.server_name, "metric": alert.metric, "state": state}
    LOG.info("alert", extra={**fields, "probability": round(alert.probability, 3)})
    return as_document(alert)
