"""The model in use: loaded, watched for a new one, swapped by one assignment; a bad one never replaces a good one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.serving.forecasts.cycle import FleetForecasts

LOG = logging.getLogger(__name__)
LoadEngine = Callable[[Path], Engine]
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class LoadResult:
    """How one attempt to load a model ended; `problem` is None where it is in use now."""

    model_id: str | None
    problem: str | None
    at_seconds: float


class ModelSlot:
    """Loads models/current, again whenever the link changes or someone asks."""

    def __init__(self, path: Path, load_engine: LoadEngine, forecasts: FleetForecasts) -> None:
        self.path = path
        self.last_load: LoadResult | None = None
        self.loads: dict[bool, int] = {True: 0, False: 0}  # by success
        self.listeners: list[Callable[[LoadResult], None]] = []
        self._load_engine, self._forecasts = load_engine, forecasts
        self._loading = asyncio.Lock()
        self._tried: tuple[Path, int] | None = None

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and checked."""
        return self._forecasts.engine is not None

    async def load(self) -> LoadResult:
        """Load what the path leads to now; on failure the model in use stays. Requests during it go on as before."""
        async with self._loading:
            self._tried = self._target()
            started = time.perf_counter()
            engine: Engine | None = None
            problem: str | None = None
            try:
                engine = await asyncio.to_thread(self._load_engine, self.path)
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

    async def watch(self) -> None:
        """Load now, and whenever the link leads elsewhere or the manifest was replaced."""
        while True:
            if self._target() != self._tried:
                await self.load()
            await asyncio.sleep(_POLL_SECONDS)

    def _target(self) -> tuple[Path, int]:
        """Where the path leads, and when its manifest was written (0 where there is none)."""
        try:
            resolved = self.path.resolve()
        except (OSError, RuntimeError):  # a link that leads to itself
            return self.path, 0
        try:
            return resolved, (resolved / "manifest.json").stat().st_mtime_ns
        except OSError:
            return resolved, 0
