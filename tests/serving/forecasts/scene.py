"""A forecast loop on a clock set by the test."""

import asyncio

from data_contract import METRICS
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import BUILT_IN_RULES
from tests.serving.fake_engine import FakeEngine

STEP = 300
NOON = 1_800_000_000 // STEP * STEP
CPU = METRICS.index("cpu_pct")


class Scene:
    """A store, a forecast loop and a clock that changes only when it is set."""

    def __init__(self, folder, engine=None, **changes):
        self.now = float(NOON)
        settings = Settings(history=folder / "h.sqlite", grace_seconds=0.0, **{"recheck_seconds": 0.05, **changes})
        self.store = HistoryStore(settings.history, STEP)
        self.forecasts = ForecastLoop(settings, self.store, BUILT_IN_RULES, clock=lambda: self.now)
        self.engine = engine or FakeEngine()
        self.forecasts.engine = self.engine

    def measure(self, name, steps_ago, cpu=50.0, seconds_in=0, profile=None):
        """Store a sample `steps_ago` steps before the running one."""
        instant = (int(self.now) // STEP - steps_ago) * STEP + seconds_in
        values = tuple(cpu if index == CPU else None for index in range(len(METRICS)))
        self.store.append([Sample(name, instant * 1000, profile, None, values)]).result(5)

    def cycle(self, step=0):
        """Move the clock by some steps and forecast the servers that are due."""
        self.now += step * STEP
        self.forecasts._next_recheck = 0.0
        asyncio.run(self.forecasts.forecast_due())
        return self.forecasts.snapshot.forecasts

    def close(self):
        self.forecasts.worker.shutdown()
        self.store.close()
