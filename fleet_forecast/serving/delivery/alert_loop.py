"""The alert loop: after each forecast cycle it updates scores, alert book and record, and sends alerts."""

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
from fleet_forecast.serving.delivery.alert_record import AlertRecord
from fleet_forecast.serving.delivery.notifiers import Notifier
from fleet_forecast.serving.delivery.outbox import Outbox
from fleet_forecast.serving.delivery.silence_book import SilenceBook
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.monitoring.events import EventHub
from fleet_forecast.serving.monitoring.scores import ForecastScores

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlertSinks:
    """Receivers of alerts that began, changed or ended."""

    events: EventHub
    notifiers: Sequence[Notifier]
    outbox: Outbox
    record: AlertRecord
    silences: SilenceBook
    state_file: Path  # the alerts and their record, for the next start


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
        self._saved: dict[str, Any] = {}
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
        snapshot, sinks = self._forecasts.snapshot, self._sinks
        changed = await asyncio.to_thread(self._update_book, snapshot)
        to_send = await asyncio.to_thread(sinks.outbox.to_send, changed)
        await asyncio.to_thread(self._save)
        for notifier in sinks.notifiers:
            notifier.enqueue(to_send)
        is_silenced = sinks.outbox.silenced_now()
        await sinks.events.publish_many("alert", (_logged(alert, is_silenced(alert)) for alert in changed))

    def _update_book(self, snapshot: FleetSnapshot) -> list[Alert]:
        servers = ((forecast.server_name, forecast.profile) for forecast in snapshot.forecasts.values())
        origin = snapshot.origin_seconds
        self._scores.update(snapshot, set() if origin is None else self._sinks.silences.excluded(servers, origin))
        now = self._clock()
        changed = self._book.update(snapshot.forecasts.values(), now)
        changed += self._book.keep_only(snapshot.forecasts, now)
        record = self._sinks.record
        if record.add(changed, self._sinks.outbox.silenced_now(), now) and record.last_week is not None:
            fields = {"shadow": self._sinks.outbox.shadow, **record.last_week.as_document()}
            LOG.info("alerts of the week", extra=fields)
        return changed

    def _restore(self) -> None:
        file, sinks = self._sinks.state_file, self._sinks
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(state, list):  # of versions without a record: the firing alerts, which were sent
                self._book.restore(state)
                sinks.outbox.restore([*alert.key, alert.severity] for alert in self._book.firing.values())
                return
            self._book.restore(state["firing"])
            sinks.outbox.restore(state["sent"])
            sinks.record.restore(state["record"], self._book.firing.values())
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as problem:
            LOG.error("alert state not read", extra={"file": str(file), "reason": str(problem)})

    def _save(self) -> None:
        """Write the alerts and their record if they changed; the loop continues if the disk is full."""
        state = {
            "firing": self._book.as_documents(),
            "sent": self._sinks.outbox.as_fields(),
            "record": self._sinks.record.as_fields(),
        }
        if state == self._saved:
            return
        try:
            replace_file(self._sinks.state_file, json.dumps(state).encode())
            self._saved = state
        except OSError as problem:
            LOG.error("alert state not written", extra={"reason": str(problem)})


def _logged(alert: Alert, silenced: bool) -> dict[str, Any]:
    """The alert for the event streams; it is written to the log as well."""
    fields = {"server": alert.server_name, "metric": alert.metric, "state": alert.state}
    fields |= {"severity": alert.severity, "reason": alert.reason}
    LOG.info("alert", extra={**fields, "silenced": silenced, "probability": round(alert.probability, 3)})
    return as_document(alert, silenced)
