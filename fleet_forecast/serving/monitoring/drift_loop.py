"""Updates the drift monitor once an hour, between two forecast cycles, and publishes a change of its advice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.forecasts.turns import WorkerBusyError
from fleet_forecast.serving.monitoring.drift_monitor import DriftMonitor
from fleet_forecast.serving.monitoring.events import EventHub


class DriftLoop:
    """Runs a DriftMonitor."""

    def __init__(
        self, monitor: DriftMonitor, forecasts: ForecastLoop, events: EventHub, clock: Callable[[], float]
    ) -> None:
        self._monitor, self._forecasts, self._events, self._clock = monitor, forecasts, events, clock
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
            if self._monitor.advice.reasons != before:
                self._events.publish("advice", self._monitor.advice.as_document())
