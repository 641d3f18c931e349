"""The forecast loop: after each step the whole fleet is forecast, off the event loop; requests read the last snapshot.

Between two steps, new servers and servers with late samples are forecast as well. Blocking work runs in one worker
thread, a chunk of servers at a time. Forecasts of requests (POST /api/v1/forecast) run between two cycles, one at a
time. The engine uses all cores, at a lower priority than requests.
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
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fleet_forecast.features.peers import Peers
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.forecasts.history_window import HistoryWindow
from fleet_forecast.serving.forecasts.peer_context import PeerContext
from fleet_forecast.serving.forecasts.provisional_steps import ProvisionalSteps
from fleet_forecast.serving.forecasts.server_forecasts import ServersToForecast, forecast_servers
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ModelView, ServerForecast
from fleet_forecast.serving.forecasts.turns import WorkerTurns
from fleet_forecast.serving.histogram import Histogram
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.shards.exchange import PeerExchange
from fleet_forecast.serving.storage.errors import HistoryUnavailableError
from fleet_forecast.serving.storage.ring_buffer import NEVER
from fleet_forecast.serving.storage.samples import KnownServer, StepMeans
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import ProfileRules, profile_of

LOG = logging.getLogger(__name__)
NICENESS = 10  # of the forecast worker, added to the daemon's own: requests and ingest run first
LOWEST_PRIORITY = 19
NEW_SERVER_HOURS = 24  # a server with few measured steps is deleted after so long without a sample
REQUEST_WAIT_SECONDS = 20.0  # for a cycle and for the requests before
STEPS_PER_READ = 100  # of the store; waiting samples are written in between
_POLL_SECONDS = 0.25
Result = TypeVar("Result")


@dataclass
class CycleStatistics:
    """Counts and durations of the cycles since the start."""

    cycles: int = 0
    skipped: int = 0  # steps that ended while a cycle was running
    failed: int = 0
    not_finite: int = 0  # forecasts that were dropped; the last forecasts of their servers stay
    last_seconds: float = 0.0  # duration of the last cycle that forecast something
    last_servers: int = 0  # number of its servers
    durations: Histogram = field(default_factory=Histogram)  # of the cycles of the whole fleet

    def count(self, servers: int, seconds: float, whole_fleet: bool) -> None:
        """Count and log a cycle that forecast so many servers."""
        if servers:
            self.last_seconds, self.last_servers = seconds, servers
        if whole_fleet:
            self.cycles += 1
            self.durations.observe(seconds)
            LOG.info("cycle", extra={"servers": servers, "seconds": round(seconds, 3)})


class DueServer(NamedTuple):
    """A server to forecast now, and the step of its origin."""

    server: KnownServer
    origin_step: int


class ForecastLoop:
    """Forecasts the fleet step by step and holds the last snapshot."""

    def __init__(
        self,
        settings: Settings,
        store: HistoryStore,
        rules: ProfileRules,
        clock: Callable[[], float] = time.time,
        exchange: PeerExchange | None = None,
    ) -> None:
        """exchange: with the other shards of the fleet, None: there are none."""
        self.snapshot = FleetSnapshot()
        self.statistics = CycleStatistics()
        self.engine: Engine | None = None
        self.turns = WorkerTurns(REQUEST_WAIT_SECONDS)
        self.listeners: list[Callable[[FleetSnapshot], None]] = []  # called on the event loop after each cycle
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="forecast", initializer=_lower_priority)
        self._settings, self._store, self._rules, self._clock = settings, store, rules, clock
        self.window: HistoryWindow | None = None  # for code on `worker` only
        self._cycle_engine: Engine | None = None  # of the last cycle that was completed
        self._complete_step = NEVER  # the last complete step at that cycle
        self._next_recheck = 0.0
        self._exchange = exchange
        self.peers = PeerContext(store, rules, exchange.peers if exchange else None)
        self.provisional = ProvisionalSteps(store)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of the history; a model may forecast some of them or all."""
        return self._store.metrics

    def complete_step(self, step_seconds: int) -> int:
        """Number (since 1970) of the last step that counts as complete now."""
        return int((self._clock() - self._settings.grace_seconds) // step_seconds) - 1

    def sent_recently(self, server: KnownServer, complete_step: int) -> bool:
        """Whether the server sent a sample so recently that it is forecast, even without a measurement."""
        return (self._store.last_step(server.server_id) or 0) > complete_step - self._settings.stale_steps

    def age_steps(self, forecast: ServerForecast) -> int:
        """Complete steps since the forecast's origin."""
        return self._steps_since(forecast.origin_seconds, forecast.model.step_seconds)

    def _steps_since(self, origin_seconds: int, step_seconds: int) -> int:
        return self.complete_step(step_seconds) - origin_seconds // step_seconds

    def is_stale(self, forecast: ServerForecast) -> bool:
        """Whether the server sent nothing for `stale_steps` steps after the forecast's origin."""
        return self.age_steps(forecast) >= self._settings.stale_steps

    def stale_servers(self) -> int:
        """Number of stale forecasts."""
        origins, least = self.snapshot.origins, self._settings.stale_steps
        return sum(servers for origin, servers in origins.items() if self._steps_since(*origin) >= least)

    def history_of(self, forecast: ServerForecast) -> tuple[Engine, np.ndarray, Peers | None] | None:
        """The model, the history and the peers of a forecast: float32 [1, step, metric], up to its origin.

        None if its model is no longer in use or its server was dropped. Samples received since may have changed the
        history. To be called on `worker`.
        """
        window, server = self.window, self._store.servers.get(forecast.server_name)
        if window is None or window.engine.model_id != forecast.model.model_id or server is None:
            return None
        ids, last_step = [server.server_id], np.array([forecast.origin_seconds // forecast.model.step_seconds])
        peers = self.peers.of_servers(window.engine, ids, [forecast.profile])
        return window.engine, self.provisional.history(window, ids, last_step), peers

    def peers_of_posted(
        self, engine: Engine, names: Sequence[str], profiles: Sequence[str], last_steps: np.ndarray
    ) -> Peers | None:
        """Peers of servers whose history came with a request; None before the first cycle of the model."""
        window = self.window
        if window is None or window.engine is not engine:
            return None
        return self.peers.of_posted(window, names, profiles, last_steps)

    async def run(self) -> None:
        """Forecast until cancelled; a failed cycle is logged and counted, and the last snapshot stays."""
        while True:
            try:
                await self.forecast_due()
            except HistoryUnavailableError:
                self.statistics.failed += 1
            except Exception:
                self.statistics.failed += 1
                LOG.exception("forecast cycle failed")
                await asyncio.sleep(self._settings.recheck_seconds)
            await asyncio.sleep(_POLL_SECONDS)

    async def forecast_due(self) -> bool:
        """Forecast the servers that are due now; returns whether there were any."""
        engine = self.engine
        if engine is None:
            return False
        complete_step = self.complete_step(engine.config.step_seconds)
        is_new = engine is not self._cycle_engine or complete_step != self._complete_step
        if not is_new and time.monotonic() < self._next_recheck:
            return False
        async with self.turns.cycle():
            return await self._cycle(engine, complete_step, is_new)

    async def _cycle(self, engine: Engine, complete_step: int, is_new: bool) -> bool:
        """is_new: the first cycle after a step, or of a model. A fleet that has doubled since is forecast again too."""
        started = time.perf_counter()
        window = self.window = await self._current_window(engine, complete_step)
        changed = await self._take_changes(window, complete_step)
        whole_fleet = is_new or await self._on_worker(self.peers.is_outgrown, changed, complete_step)
        if whole_fleet:
            await self._on_worker(self.peers.observe, window, complete_step)
            if self._exchange is not None:
                await self._exchange.run(complete_step, engine.config.step_seconds)
            await self._on_worker(self.peers.update, window, complete_step)
        if is_new:
            self.provisional.complete()
        provisional = [] if whole_fleet else await self._provisional(engine, complete_step)
        candidates = None if whole_fleet else changed
        due = await self._on_worker(self._due, window, candidates, complete_step)
        fresh = await self._forecast(window, due + provisional)
        self._cycle_engine, self._complete_step = engine, complete_step
        self._next_recheck = time.monotonic() + self._settings.recheck_seconds
        if not whole_fleet and not fresh:
            return False
        self.snapshot = await self._on_worker(self._next_snapshot, engine, fresh, complete_step)
        for listener in self.listeners:
            listener(self.snapshot)
        self.statistics.count(len(fresh), time.perf_counter() - started, whole_fleet)
        if whole_fleet:
            await _expire(self._store, self._settings, engine, complete_step)
        return True

    async def on_request(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run the work of a request on `worker` when no cycle runs. Raises turns.WorkerBusyError after a time."""
        async with self.turns.request():
            return await self._on_worker(work, *arguments)

    async def _on_worker(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.worker, work, *arguments)

    async def _current_window(self, engine: Engine, complete_step: int) -> HistoryWindow:
        """The window in memory, or one read from the store for other steps or after the clock was set back."""
        window = self.window
        clock_set_back = complete_step < self._complete_step
        if window is None or not window.fits(engine, self._settings.drop_steps) or clock_set_back:
            return await self._load_window(engine, complete_step)
        if self._complete_step != NEVER and complete_step > self._complete_step + 1:
            self.statistics.skipped += complete_step - self._complete_step - 1
        return window.read_by(engine)

    async def _provisional(self, engine: Engine, complete_step: int) -> list[DueServer]:
        """New servers whose samples of the steps that are not complete yet have changed."""
        step_seconds = engine.config.step_seconds
        steps = range(complete_step + 1, int(self._clock() // step_seconds) + 1)
        choose = self.provisional.choose
        chosen = await self._on_worker(choose, step_seconds, complete_step, self._settings.chunk_servers)
        if not chosen or not steps:
            return []
        ids = [server.server_id for server in chosen]
        samples = await asyncio.wrap_future(self._store.samples_of(ids, steps[0], steps[-1]))
        origins = [self.provisional.put(server.server_id, samples[server.server_id], steps) for server in chosen]
        return [DueServer(server, step) for server, step in zip(chosen, origins, strict=True) if step is not None]

    async def _load_window(self, engine: Engine, complete_step: int) -> HistoryWindow:
        self.peers.forget()
        self.provisional.forget_steps()
        await asyncio.wrap_future(self._store.use_step(engine.config.step_seconds))
        window = await self._on_worker(HistoryWindow.empty, engine, self._store, self._settings.drop_steps)
        for first in range(complete_step - window.buffer.steps + 1, complete_step + 1, STEPS_PER_READ):
            last = min(first + STEPS_PER_READ - 1, complete_step)
            for means in await asyncio.wrap_future(self._store.stored_step_means(first, last)):
                await self._on_worker(self._put, window, means)
        return window

    def _put(self, window: HistoryWindow, means: StepMeans) -> list[int]:
        """Put means into the window; returns the ids of the servers whose history changed."""
        changed = window.buffer.put(means)
        if changed:
            self.peers.note_changed(means.step)
        self.provisional.note(means)
        return changed

    async def _take_changes(self, window: HistoryWindow, complete_step: int) -> set[int]:
        """Put newly computed means into the window; returns the ids of the servers whose history changed."""
        changed: set[int] = set()
        while taken := await asyncio.wrap_future(self._store.changed_step_means(complete_step)):
            for means in taken:
                changed.update(await self._on_worker(self._put, window, means))
        await self._on_worker(window.buffer.advance, complete_step)
        return changed

    def _due(self, window: HistoryWindow, changed: set[int] | None, complete_step: int) -> list[DueServer]:
        """Servers to forecast now. changed: those whose history changed; None: the whole fleet."""
        forecasts, buffer = self.snapshot.forecasts, window.buffer
        known = list(self._store.servers.values())  # a copy: other threads add servers meanwhile
        buffer.drop(sorted(set(buffer.servers()).difference(server.server_id for server in known)))
        candidates = [s for s in known if changed is None or s.server_id in changed or s.name not in forecasts]
        last = buffer.last_measured([s.server_id for s in candidates], complete_step, self._settings.stale_steps)
        due = []
        for server, step in zip(candidates, last.tolist(), strict=True):
            if self.provisional.holds(server.server_id):
                continue  # its forecast has a later origin
            if step != NEVER:
                due.append(DueServer(server, step))
            elif server.name not in forecasts and self.sent_recently(server, complete_step):
                due.append(DueServer(server, complete_step))  # cold start: no complete step was measured yet
        return due

    async def _forecast(self, window: HistoryWindow, due: Sequence[DueServer]) -> dict[str, ServerForecast]:
        fresh: dict[str, ServerForecast] = {}
        for start in range(0, len(due), self._settings.chunk_servers):
            chunk = due[start : start + self._settings.chunk_servers]
            for forecast in await self._on_worker(self._forecast_chunk, window, chunk):
                if forecast is None:
                    self.statistics.not_finite += 1
                else:
                    fresh[forecast.server_name] = forecast
        return fresh

    def _forecast_chunk(self, window: HistoryWindow, due: Sequence[DueServer]) -> list[ServerForecast | None]:
        engine, servers = window.engine, [server for server, _ in due]
        ids = [server.server_id for server in servers]
        steps = np.array([step for _, step in due], dtype=np.int64)
        profiles = [profile_of(server.name, server.profile, self._rules) for server in servers]
        provisional = steps > window.buffer.newest_step
        self.provisional.forecasts += int(provisional.sum())
        to_forecast = ServersToForecast(
            [server.name for server in servers],
            profiles,
            self.provisional.history(window, ids, steps),
            steps * engine.config.step_seconds,
            self.peers.of_servers(engine, ids, [profile for profile, _ in profiles]),
            provisional,
            self._exchange.notes if self._exchange else (),
        )
        return forecast_servers(engine, to_forecast)

    def _next_snapshot(self, engine: Engine, fresh: dict[str, ServerForecast], complete_step: int) -> FleetSnapshot:
        kept = {
            name: forecast
            for name, forecast in self.snapshot.forecasts.items()
            if self.age_steps(forecast) < self._settings.drop_steps and name in self._store.servers
        }
        return FleetSnapshot(
            forecasts=MappingProxyType(kept | fresh),
            origin_seconds=complete_step * engine.config.step_seconds,
            made_at_seconds=self._clock(),
            model=ModelView.of(engine),
        )


async def _expire(store: HistoryStore, settings: Settings, engine: Engine, complete_step: int) -> None:
    """Delete data older than the retention before the newest data: a clock far ahead deletes nothing."""
    known = list(store.servers.values())  # a copy: other threads add servers meanwhile
    newest = max((store.last_step(server.server_id) or 0 for server in known), default=complete_step)
    now = min(complete_step, newest)
    kept = math.ceil(settings.retention_hours * 3600 / engine.config.step_seconds) + 1
    means_kept = max(kept, engine.config.history_steps + settings.drop_steps)
    new_kept = NEW_SERVER_HOURS * 3600 // engine.config.step_seconds
    while await asyncio.wrap_future(store.expire(now - kept, now - means_kept, now - new_kept)):
        await asyncio.sleep(0)


def _lower_priority() -> None:
    """Lower the priority of this thread and of the threads it starts: a forecast may use every core that is idle."""
    if sys.platform == "linux":  # where each thread has its own priority
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + NICENESS
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, LOWEST_PRIORITY))
