"""Updates the drift monitor once an hour, between two forecast cycles; passes its advice on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.forecasts.turns import WorkerBusyError
from fleet_forecast.serving.monitoring.drift_monitor import Advice, DriftMonitor
from fleet_forecast.serving.monitoring.events import EventHub


class DriftLoop:
    """Runs a DriftMonitor. listeners: called with the advice after each update; a change of it is an event, too."""

    def __init__(
        self, monitor: DriftMonitor, forecasts: ForecastLoop, events: EventHub, clock: Callable[[], float]
    ) -> None:
        self._monitor, self._forecasts, self._events, self._clock = monitor, forecasts, events, clock
        self.listeners: list[Callable[[Advice], None]] = []
        self._new_cycle = asyncio.Event()
        forecasts.listeners.append(self._on_cycle)

    def _on_cycle(self, _snapshot: FleetSnapshot) -> None:
        self._new_cycle.set()

    async def run(self) -> None:
        """Update after the first cycle of each hour until cancelled."""
        while True:
            await self._new_cycle.wait()
            self._new_cycle.clear()
            snapshot = self._forecasts.snapshot
            if not self._monitor.is_due(snapshot):
                continue
            before = self._monitor.advice.reasons
            try:
                await self._forecasts.on_request(self._monitor.update, snapshot, self._clock())
            except WorkerBusyError:  # the next cycle tries again
                continue
            advice = self._monitor.advice
            if advice.reasons != before:
                self._events.publish("advice", advice.as_document())
            for listener in self.listeners:
                listener(advice)
