"""The model in use: loads it, watches its path for a new one, and swaps the two by one assignment.

A model that cannot be loaded never replaces the one in use.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_directory import ModelError
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop

LOG = logging.getLogger(__name__)
LoadEngine = Callable[[Path], Engine]
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class LoadResult:
    """Result of one attempt to load a model; `problem` is None if the model is in use now."""

    model_id: str | None
    problem: str | None
    at_seconds: float


class ModelManager:
    """Loads the model of a path, again when the link changes or on request."""

    def __init__(self, path: Path, load_engine: LoadEngine, forecasts: ForecastLoop) -> None:
        self.path = path
        self.last_load: LoadResult | None = None
        self.loads: dict[bool, int] = {True: 0, False: 0}  # by success
        self.listeners: list[Callable[[LoadResult], None]] = []
        self._load_engine, self._forecasts = load_engine, forecasts
        self._loading = asyncio.Lock()
        self._last_target: tuple[Path, int] | None = None  # of the last attempt

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and checked."""
        return self._forecasts.engine is not None

    async def load(self) -> LoadResult:
        """Load the model at the path; on failure the model in use stays. Requests use that one meanwhile."""
        async with self._loading:
            self._last_target = self._target()
            started = time.perf_counter()
            engine: Engine | None = None
            problem: str | None = None
            try:
                engine = await asyncio.to_thread(self._load_known_metrics)
            except (ModelError, OSError) as error:
                problem = str(error)
            except Exception as error:
                problem = f"{self.path}: cannot be loaded ({type(error).__name__}: {error})"
            if engine is not None:
                self._forecasts.engine = engine
                LOG.info("model loaded", extra={"model": engine.model_id, "seconds": time.perf_counter() - started})
            else:
                LOG.error("model refused", extra={"reason": problem, "kept": self.ready})
            self.last_load = LoadResult(engine.model_id if engine else None, problem, time.time())
            self.loads[problem is None] += 1
            for listener in self.listeners:
                listener(self.last_load)
            return self.last_load

    def _load_known_metrics(self) -> Engine:
        engine = self._load_engine(self.path)
        unknown = [metric for metric in engine.config.targets if metric not in self._forecasts.metrics]
        if unknown:
            raise ModelError(
                f"{self.path}: it forecasts {', '.join(unknown)}, which the data contract does not have; train a model "
                f"on {', '.join(self._forecasts.metrics)}"
            )
        return engine

    async def watch(self) -> None:
        """Load now, and whenever the link or the manifest has changed."""
        while True:
            if self._target() != self._last_target:
                await self.load()
            await asyncio.sleep(_POLL_SECONDS)

    def _target(self) -> tuple[Path, int]:
        """The directory that the path resolves to, and when its manifest was written (0 if there is none)."""
        try:
            resolved = self.path.resolve()
        except (OSError, RuntimeError):  # a link to itself
            return self.path, 0
        try:
            return resolved, (resolved / "manifest.json").stat().st_mtime_ns
        except OSError:
            return resolved, 0
