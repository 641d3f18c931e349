"""Past forecasts of the last hours in memory, to compare them with the measured values.

One cycle an hour is kept, at the levels of SCORED_LEVELS and every quarter of an hour of the horizon: with six metrics
and eight hours 21 KB a server, 100 MB at MAX_SERVERS. A restart loses them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fleet_forecast.contract.forecast_spec import SCORED_LEVELS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ModelView

ORIGIN_SECONDS = 3_600  # one kept cycle in so many seconds
KEPT_CYCLES = 9  # of the last eight hours
STEP_SECONDS = 900  # between two kept steps of a horizon
MAX_SERVERS = 5_000  # of a cycle, in the order of names


@dataclass(frozen=True)
class ArchivedCycle:
    """The forecasts of one cycle: float32 [server, metric, level, kept step]."""

    model: ModelView
    origin_seconds: int
    levels: tuple[float, ...]
    offsets_seconds: tuple[int, ...]  # of the kept steps after the origin
    row_of: Mapping[str, int]
    quantiles: np.ndarray


class ForecastArchive:
    """The kept cycles, oldest first. `cycles` is replaced as a whole: any thread may read it."""

    def __init__(self) -> None:
        self.cycles: tuple[ArchivedCycle, ...] = ()
        self._new_cycle = asyncio.Event()
        self._snapshot = FleetSnapshot()

    def on_cycle(self, snapshot: FleetSnapshot) -> None:
        """Listener of the forecast loop."""
        self._snapshot = snapshot
        self._new_cycle.set()

    async def run(self) -> None:
        """Update after each cycle until cancelled."""
        while True:
            await self._new_cycle.wait()
            self._new_cycle.clear()
            await asyncio.to_thread(self.update, self._snapshot)

    def update(self, snapshot: FleetSnapshot) -> None:
        """Keep a snapshot if it is the first one of its hour."""
        origin = snapshot.origin_seconds
        if origin is None or snapshot.model is None:
            return
        kept = tuple(cycle for cycle in self.cycles if cycle.origin_seconds <= origin)  # the clock may be set back
        if not kept or origin // ORIGIN_SECONDS > kept[-1].origin_seconds // ORIGIN_SECONDS:
            kept += _archived(snapshot, snapshot.model, origin)
        self.cycles = kept[-KEPT_CYCLES:]

    def of_server(self, server_name: str) -> list[dict[str, Any]]:
        """The past forecasts of one server, oldest first, ready for to_json."""
        return [
            _document(cycle, cycle.quantiles[cycle.row_of[server_name]])
            for cycle in self.cycles
            if server_name in cycle.row_of
        ]


def _archived(snapshot: FleetSnapshot, model: ModelView, origin: int) -> tuple[ArchivedCycle, ...]:
    """The cycle of a snapshot, without provisional and old forecasts; empty if nothing is left to keep."""
    levels = tuple(level for level in SCORED_LEVELS if level in model.quantiles)
    of_cycle = [
        forecast
        for name, forecast in sorted(snapshot.forecasts.items())
        if forecast.origin_seconds == origin and forecast.model == model and not forecast.provisional
    ][:MAX_SERVERS]
    if not of_cycle or not levels:
        return ()
    stride = max(1, STEP_SECONDS // model.step_seconds)
    steps = np.arange(stride - 1, of_cycle[0].horizon_steps, stride)
    rows = np.array([model.quantiles.index(level) for level in levels])
    return (
        ArchivedCycle(
            model=model,
            origin_seconds=origin,
            levels=levels,
            offsets_seconds=tuple(((steps + 1) * model.step_seconds).tolist()),
            row_of={forecast.server_name: row for row, forecast in enumerate(of_cycle)},
            quantiles=np.stack([forecast.quantiles[:, rows[:, None], steps] for forecast in of_cycle]),
        ),
    )


def _document(cycle: ArchivedCycle, quantiles: np.ndarray) -> dict[str, Any]:
    """quantiles: float32 [metric, level, kept step], NaN for a metric that was not forecast."""
    return {
        "model": cycle.model.model_id,
        "origin": iso(cycle.origin_seconds),
        "timestamps": [iso(cycle.origin_seconds + offset) for offset in cycle.offsets_seconds],
        "metrics": {
            metric: {f"q{level:g}": quantiles[row, column].copy() for column, level in enumerate(cycle.levels)}
            for row, metric in enumerate(cycle.model.metrics)
            if not np.isnan(quantiles[row]).any()
        },
    }
