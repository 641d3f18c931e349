"""The forecast cycle: after each step the whole fleet is forecast, off the event loop; reads take the last result.

Between two steps, servers that appeared and servers whose earlier samples arrived late are forecast as well. Blocking
work runs in one worker thread, a chunk of servers at a time, so that other forecasts (POST /api/v1/forecast) get their
turn in between. The engine spreads a chunk over all cores; where requests want one, they get it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from fleet_forecast.contract.profile_rules import profile_of
from fleet_forecast.contract.specs import METRICS
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.forecasts.snapshot import (
    CycleFigures,
    FleetSnapshot,
    ModelView,
    ServerForecast,
    forecast_servers,
)
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.errors import HistoryUnavailableError
from fleet_forecast.serving.storage.ring_buffer import NEVER, RingBuffer
from fleet_forecast.serving.storage.samples import KnownServer
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import ProfileRules

LOG = logging.getLogger(__name__)
NICENESS = 10  # of forecasting, on top of the daemon's own: requests and ingest go first
LOWEST_PRIORITY = 19
_POLL_SECONDS = 0.25
Result = TypeVar("Result")


def _give_way() -> None:
    """Lower the priority of this thread, and so of those it starts: a forecast may take every core that is idle."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + NICENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, LOWEST_PRIORITY))


class FleetForecasts:
    """Runs the cycle and holds its last result."""

    def __init__(
        self, settings: Settings, store: HistoryStore, rules: ProfileRules, clock: Callable[[], float] = time.time
    ) -> None:
        self.snapshot = FleetSnapshot()
        self.figures = CycleFigures()
        self.engine: Engine | None = None
        self.listeners: list[Callable[[FleetSnapshot], None]] = []  # called on the event loop after each cycle
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="forecast", initializer=_give_way)
        self._settings, self._store, self._rules, self._clock = settings, store, rules, clock
        self._grid: RingBuffer | None = None
        self._grid_engine: Engine | None = None  # the one that reads the grid
        self._cycle_engine: Engine | None = None  # of the last cycle that was not cut short
        self._columns: list[int] | slice = []  # of METRICS, those the model forecasts
        self._complete = NEVER
        self._next_recheck = 0.0

    def complete_step(self, step_seconds: int) -> int:
        """Number (since 1970) of the last step that counts as complete now."""
        return int((self._clock() - self._settings.grace_seconds) // step_seconds) - 1

    def is_heard(self, server: KnownServer, complete: int) -> bool:
        """Whether the server sent something so lately that it is forecast, be it without a measurement."""
        return (self._store.last_step(server.server_id) or 0) > complete - self._settings.stale_steps

    def age_steps(self, forecast: ServerForecast) -> int:
        """Complete steps that passed since the forecast's origin."""
        return self._age_steps(forecast.origin_seconds, forecast.model.step_seconds)

    def _age_steps(self, origin_seconds: int, step_seconds: int) -> int:
        return self.complete_step(step_seconds) - origin_seconds // step_seconds

    def is_stale(self, forecast: ServerForecast) -> bool:
        """Whether the forecast's server sent nothing for so long that its forecast no longer speaks of now."""
        return self.age_steps(forecast) >= self._settings.stale_steps

    def stale_servers(self) -> int:
        """How many forecasts are stale."""
        origins, least = self.snapshot.origins, self._settings.stale_steps
        return sum(servers for origin, servers in origins.items() if self._age_steps(*origin) >= least)

    async def run(self) -> None:
        """Cycle for ever; a failing cycle is logged and counted, and the last forecasts stay."""
        while True:
            try:
                await self.forecast_due()
            except HistoryUnavailableError:
                self.figures.failed += 1
            except Exception:
                self.figures.failed += 1
                LOG.exception("forecast cycle failed")
                await asyncio.sleep(self._settings.recheck_seconds)
            await asyncio.sleep(_POLL_SECONDS)

    async def forecast_due(self) -> bool:
        """Forecast what is due now, if anything; says whether something was forecast."""
        engine = self.engine
        if engine is None:
            return False
        complete = self.complete_step(engine.config.step_seconds)
        whole_fleet = engine is not self._cycle_engine or complete != self._complete
        if not whole_fleet and time.monotonic() < self._next_recheck:
            return False
        started = time.perf_counter()
        if not self._grid_serves(engine) or complete < self._complete:  # the second: the clock was set back
            await self._lay_grid(engine, complete)
        else:
            await self._on_worker(self._use, engine, self._grid)
            if self._complete != NEVER and complete > self._complete + 1:
                self.figures.skipped += complete - self._complete - 1
        changed = await self._take_changes(complete)
        due = await self._on_worker(self._due, whole_fleet, changed, complete)
        fresh = await self._forecast(engine, due)
        self._cycle_engine, self._complete = engine, complete
        self._next_recheck = time.monotonic() + self._settings.recheck_seconds
        if not whole_fleet and not fresh:
            return False
        self.snapshot = await self._on_worker(self._next_snapshot, engine, fresh, complete)
        for listener in self.listeners:
            listener(self.snapshot)
        seconds = time.perf_counter() - started
        if fresh:
            self.figures.last_seconds, self.figures.last_servers = seconds, len(fresh)
        if whole_fleet:
            self.figures.cycles += 1
            self.figures.durations.observe(seconds)
            LOG.info("cycle", extra={"servers": len(fresh), "seconds": round(seconds, 3)})
            await self._expire(engine, complete)
        return True

    async def _on_worker(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.worker, work, *arguments)

    def _grid_serves(self, engine: Engine) -> bool:
        """Whether the window in memory is one that the engine reads: a new model seldom wants another."""
        if self._grid is None or self._grid_engine is None:
            return False
        step_seconds = self._grid_engine.config.step_seconds
        return (step_seconds, self._grid.steps) == (engine.config.step_seconds, self._grid_steps(engine))

    def _grid_steps(self, engine: Engine) -> int:
        """A server is forecast on a whole history for as long as it is not dropped."""
        return engine.config.history_steps + self._settings.drop_steps

    async def _lay_grid(self, engine: Engine, complete: int) -> None:
        """Fill the window in memory from the means on disk."""
        config = engine.config
        await asyncio.wrap_future(self._store.use_step(config.step_seconds))
        grid = await self._on_worker(RingBuffer, self._grid_steps(engine), len(METRICS), len(self._store.servers))
        for first in range(complete - grid.steps + 1, complete + 1, 100):
            last = min(first + 99, complete)
            for means in await asyncio.wrap_future(self._store.stored_step_means(first, last)):
                await self._on_worker(grid.put, means)
        await self._on_worker(self._use, engine, grid)

    def _use(self, engine: Engine, grid: RingBuffer) -> None:
        """Set on the worker, where they are read together."""
        self._grid, self._grid_engine = grid, engine
        forecast = engine.config.targets
        self._columns = slice(None) if tuple(forecast) == METRICS else [METRICS.index(metric) for metric in forecast]

    async def _take_changes(self, complete: int) -> set[int]:
        """Lay newly taken means on the grid; gives the ids of the servers whose history changed."""
        assert self._grid is not None  # noqa: S101 - laid before
        changed: set[int] = set()
        while taken := await asyncio.wrap_future(self._store.changed_step_means(complete)):
            for means in taken:
                changed.update(await self._on_worker(self._grid.put, means))
        await self._on_worker(self._grid.advance, complete)
        return changed

    def _due(self, whole_fleet: bool, changed: set[int], complete: int) -> list[tuple[KnownServer, int]]:
        """Servers to forecast now, each with its origin's step."""
        assert self._grid is not None  # noqa: S101 - laid before
        forecasts = self.snapshot.forecasts
        known = list(self._store.servers.values())
        self._grid.drop(sorted(set(self._grid.servers()).difference(server.server_id for server in known)))
        candidates = [s for s in known if whole_fleet or s.server_id in changed or s.name not in forecasts]
        last = self._grid.last_measured([s.server_id for s in candidates], complete, self._settings.stale_steps)
        due = []
        for server, step in zip(candidates, last.tolist(), strict=True):
            if step != NEVER:
                due.append((server, step))
            elif server.name not in forecasts and self.is_heard(server, complete):
                due.append((server, complete))  # first seen in the step still running, or nothing measured: cold start
        return due

    async def _forecast(self, engine: Engine, due: list[tuple[KnownServer, int]]) -> dict[str, ServerForecast]:
        fresh: dict[str, ServerForecast] = {}
        for start in range(0, len(due), self._settings.chunk_servers):
            chunk = due[start : start + self._settings.chunk_servers]
            for forecast in await self._on_worker(self._forecast_chunk, engine, chunk):
                if forecast is None:
                    self.figures.kept_for_bad_output += 1
                else:
                    fresh[forecast.server_name] = forecast
        return fresh

    def _forecast_chunk(self, engine: Engine, due: list[tuple[KnownServer, int]]) -> list[ServerForecast | None]:
        steps = np.array([step for _, step in due], dtype=np.int64)
        history = self._history(engine, [server.server_id for server, _ in due], steps)
        profiles = [profile_of(server.name, server.profile, self._rules) for server, _ in due]
        names = [server.name for server, _ in due]
        return forecast_servers(engine, names, profiles, history, steps * engine.config.step_seconds)

    def _history(self, engine: Engine, ids: Sequence[int], last_steps: np.ndarray) -> np.ndarray:
        """What the engine is given: float32 [server, step, metric of the model]."""
        assert self._grid is not None  # noqa: S101 - laid before
        return self._grid.history(ids, last_steps, engine.config.history_steps)[:, :, self._columns]

    def history_behind(self, forecast: ServerForecast) -> tuple[Engine, np.ndarray] | None:
        """The engine and the history up to the origin that a forecast was made from: float32 [1, step, metric].

        None if its model is no longer in use or its server gone. Samples that arrived since may have changed the
        history. To be called on `worker`.
        """
        engine, server = self._grid_engine, self._store.servers.get(forecast.server_name)
        if engine is None or engine.model_id != forecast.model.model_id or server is None:
            return None
        last_step = np.array([forecast.origin_seconds // forecast.model.step_seconds])
        return engine, self._history(engine, [server.server_id], last_step)

    def _next_snapshot(self, engine: Engine, fresh: dict[str, ServerForecast], complete: int) -> FleetSnapshot:
        kept = {
            name: forecast
            for name, forecast in self.snapshot.forecasts.items()
            if self.age_steps(forecast) < self._settings.drop_steps and name in self._store.servers
        }
        return FleetSnapshot(
            forecasts=MappingProxyType(kept | fresh),
            origin_seconds=complete * engine.config.step_seconds,
            made_at_seconds=self._clock(),
            model=ModelView.of(engine),
        )

    async def _expire(self, engine: Engine, complete: int) -> None:
        """Delete what is older than the retention, counted from the newest data: a clock far ahead deletes nothing."""
        known = list(self._store.servers.values())  # a copy: other threads add servers meanwhile
        newest = max((self._store.last_step(server.server_id) or 0 for server in known), default=complete)
        now = min(complete, newest)
        kept = math.ceil(self._settings.retention_hours * 3600 / engine.config.step_seconds) + 1
        means_kept = max(kept, engine.config.history_steps + self._settings.drop_steps)
        while await asyncio.wrap_future(self._store.expire(now - kept, now - means_kept)):
            await asyncio.sleep(0)
