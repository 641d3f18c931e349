"""The model in use: loads it, watches its path for a new one, and swaps the two by one assignment.

A model that cannot be loaded never replaces the one in use. It is tried again when a file of its directory changes, and
after pauses that double: the directory may be copied while it is read, or the reason may pass.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import check_served, contradictions
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import STARTER_NOTICE, is_starter, present_model
from fleet_forecast.serving.daemon_thread import on_daemon_thread
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.model_trial import ModelTrial

LOG = logging.getLogger(__name__)
LoadEngine = Callable[[Path], Engine]
Result = TypeVar("Result")
POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 120.0
MAX_WATCHED_FILES = 100


@dataclass(frozen=True)
class LoadResult:
    """Result of one attempt to load a model; `problem` is None if the model is in use now."""

    model_id: str | None
    problem: str | None
    at_seconds: float


@dataclass(frozen=True)
class ModelLoading:
    """Where a model is loaded from and how.

    seconds: for one attempt. trial: what a model has to pass before it is loaded. chosen: whether the user named the
    path; otherwise the starter model is served while there is nothing.
    """

    path: Path
    load_engine: LoadEngine
    seconds: float = 60.0
    trial: ModelTrial | None = None
    chosen: bool = True


class _FileState(NamedTuple):
    name: str
    bytes: int
    modified_ns: int


class ModelManager:
    """Loads the model of a path, again when the link or a file changes, after a refusal, or on request."""

    def __init__(self, loading: ModelLoading, forecasts: ForecastLoop) -> None:
        self.path = loading.path
        self.last_load: LoadResult | None = None
        self.loads: dict[bool, int] = {True: 0, False: 0}  # by success
        self.listeners: list[Callable[[LoadResult], None]] = []  # called after each attempt with another result
        self._settings, self._forecasts = loading, forecasts
        self._loading = asyncio.Lock()
        self._last_state: object = None  # of the directory at the last attempt
        self._retry_at = 0.0  # monotonic time; where the last attempt failed
        self._pause_seconds = POLL_SECONDS

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and checked."""
        return self._forecasts.engine is not None

    async def load(self) -> LoadResult:
        """Load the model at the path; on failure the model in use stays. Requests use that one meanwhile."""
        async with self._loading:
            started = time.perf_counter()
            engine: Engine | None = None
            problem: str | None = None
            try:
                self._last_state = await self._in_time(self._directory_state)
                source = await self._in_time(self._source)
                if self._settings.trial is not None:
                    await self._settings.trial.run(source)
                engine = await self._in_time(partial(self._load_known_metrics, source))
            except (ModelError, OSError) as error:
                problem = str(error)
            except Exception as error:
                problem = f"{self.path}: cannot be loaded ({type(error).__name__}: {error})"
            return self._note(engine, problem, time.perf_counter() - started)

    def _note(self, engine: Engine | None, problem: str | None, seconds: float) -> LoadResult:
        """Use a loaded model; log, count and publish the result."""
        repeated = problem is not None and self.last_load is not None and self.last_load.problem == problem
        result = self.last_load = LoadResult(engine.model_id if engine else None, problem, time.time())
        self.loads[problem is None] += 1
        if engine is not None:
            self._forecasts.engine = engine
            self._pause_seconds = POLL_SECONDS
            LOG.info("model loaded", extra={"model": engine.model_id, "seconds": seconds})
            if is_starter(engine.model_id):
                LOG.warning("starter model", extra={"model": engine.model_id, "reason": STARTER_NOTICE})
            for text in contradictions(engine.config):
                LOG.warning("model and fleet file differ", extra={"model": engine.model_id, "reason": text})
        else:
            self._retry_at = time.monotonic() + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
            if not repeated:
                LOG.error("model refused", extra={"reason": problem, "kept": self.ready})
        for listener in () if repeated else self.listeners:
            listener(result)
        return result

    async def _in_time(self, work: Callable[[], Result]) -> Result:
        """The result of work on the file system, which can hang. Raises ModelError after the deadline."""
        try:
            async with asyncio.timeout(self._settings.seconds):
                return await on_daemon_thread(work)
        except TimeoutError:
            raise ModelError(f"{self.path}: not loaded within {self._settings.seconds:g} s; check the disk") from None

    def _source(self) -> Path:
        """The path, or that of the starter model until there was another one."""
        engine = self._forecasts.engine
        before_own = engine is None or is_starter(engine.model_id)
        return present_model(self.path, self._settings.chosen or not before_own)

    def _load_known_metrics(self, source: Path) -> Engine:
        engine = self._settings.load_engine(source)
        check_served(engine.config, source)
        return engine

    async def watch(self) -> None:
        """Load now, whenever the link or a file of the model has changed, and again after a refusal."""
        await self.load()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if await self._changed() or self._retry_due():
                await self.load()

    async def _changed(self) -> bool:
        try:
            state = await self._in_time(self._directory_state)
        except ModelError:
            return False
        if state == self._last_state:
            return False
        self._pause_seconds = POLL_SECONDS
        return True

    def _retry_due(self) -> bool:
        refused = self.last_load is not None and self.last_load.problem is not None
        return refused and time.monotonic() >= self._retry_at

    def _directory_state(self) -> tuple[Path, tuple[_FileState, ...]]:
        """The directory that the path resolves to, and its files with size and time of change."""
        try:
            resolved = self._source().resolve()
        except (OSError, RuntimeError):  # a link to itself
            return self.path, ()
        try:
            with os.scandir(resolved) as entries:
                states = [
                    (entry.name, entry.stat(follow_symlinks=False)) for entry in islice(entries, MAX_WATCHED_FILES)
                ]
        except OSError:
            return resolved, ()
        return resolved, tuple(sorted(_FileState(name, of.st_size, of.st_mtime_ns) for name, of in states))
