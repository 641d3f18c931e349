"""The alert loop: after each forecast cycle it updates the online scores and the alert book, and notifies."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.serving.alerting.alert import Alert, as_document
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.notifiers import Notifier
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.monitoring.events import EventHub
from fleet_forecast.serving.monitoring.scores import ForecastScores

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlertSinks:
    """Where alerts that began or ended go."""

    events: EventHub
    notifiers: Sequence[Notifier]
    state_file: Path  # the firing alerts, for the next start


class AlertLoop:
    """Runs the alert book after each forecast cycle."""

    def __init__(
        self,
        book: AlertBook,
        scores: ForecastScores,
        forecasts: ForecastLoop,
        sinks: AlertSinks,
        clock: Callable[[], float],
    ) -> None:
        self._book, self._scores, self._forecasts = book, scores, forecasts
        self._sinks, self._clock = sinks, clock
        self._new_cycle = asyncio.Event()
        self._saved: list[dict[str, Any]] = []
        forecasts.listeners.append(self._on_cycle)

    async def run(self) -> None:
        """Update after each cycle until cancelled."""
        self._restore()
        while True:
            await self._new_cycle.wait()
            self._new_cycle.clear()
            try:
                await self._update()
            except Exception:
                LOG.exception("alerts not updated")

    def _on_cycle(self, _snapshot: FleetSnapshot) -> None:
        self._new_cycle.set()

    async def _update(self) -> None:
        snapshot = self._forecasts.snapshot
        changed = await asyncio.to_thread(self._update_book, snapshot)
        await asyncio.to_thread(self._save)
        for notifier in self._sinks.notifiers:
            notifier.enqueue(changed)
        await self._sinks.events.publish_many("alert", map(_logged, changed))

    def _update_book(self, snapshot: FleetSnapshot) -> list[Alert]:
        self._scores.update(snapshot)
        now = self._clock()
        changed = self._book.update(snapshot.forecasts.values(), now)
        return changed + self._book.keep_only(snapshot.forecasts, now)

    def _restore(self) -> None:
        file = self._sinks.state_file
        try:
            self._book.restore(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, RecursionError) as problem:
            LOG.error("alert state not read", extra={"file": str(file), "reason": str(problem)})

    def _save(self) -> None:
        """Write the firing alerts if they changed; the loop continues if the disk is full."""
        documents = self._book.as_documents()
        if documents == self._saved:
            return
        try:
            replace_file(self._sinks.state_file, json.dumps(documents).encode())
            self._saved = documents
        except OSError as problem:
            LOG.error("alert state not written", extra={"reason": str(problem)})


def _logged(alert: Alert) -> dict[str, Any]:
    """The alert for the event streams; it is written to the log as well."""
    fields = {"server": alert.server_name, "metric": alert.metric, "state": alert.state}
    LOG.info("alert", extra={**fields, "probability": round(alert.probability, 3)})
    return as_document(alert)
