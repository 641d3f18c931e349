"""A deterministic engine with the shapes of the real one: tests of the daemon need no trained model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_contract import METRICS
from fleet_forecast.inference.engine import NoExplanationError
from fleet_forecast.inference.explanations import Interpretation, Variables


@dataclass(frozen=True)
class FakeConfig:
    targets: tuple[str, ...] = METRICS
    quantiles: tuple[float, ...] = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
    step_seconds: int = 300
    horizon_steps: int = 96
    context_steps: int = 288
    history_steps: int = 288
    profiles: tuple[str, ...] = ("ml_compute", "database", "generic")


@dataclass
class FakeEngine:
    """The median is the last measured value (50 if there is none); quantile q is the median + (q - 0.5) * 10."""

    config: FakeConfig = field(default_factory=FakeConfig)
    model_id: str = "tft_model_fake"
    model_dir: Path = Path("models/tft_model_fake")
    seconds_per_call: float = 0.0
    bad_output: bool = False
    explains: bool = True
    calls: list[dict] = field(default_factory=list)
    variables = Variables(("profile", "cpu_pct_centre"), ("cpu_pct_scaled",), ("half_hour", "cpu_pct_daily_mean"))

    def forecast(self, history, profiles, origins):
        time.sleep(self.seconds_per_call)
        self.calls.append({"history": history.copy(), "profiles": list(profiles), "origins": np.array(origins)})
        servers, _, metrics = history.shape
        last = np.full((servers, metrics), 50.0, dtype=np.float32)
        for step in range(history.shape[1]):
            measured = ~np.isnan(history[:, step])
            last[measured] = history[:, step][measured]
        spread = (np.array(self.config.quantiles, dtype=np.float32) - 0.5) * 10
        forecast = last[:, None, :, None] + spread[None, None, None, :]
        full = np.broadcast_to(forecast, (servers, self.config.horizon_steps, metrics, len(spread))).copy()
        return full * np.nan if self.bad_output else full

    def explain(self, history, profiles, origins, horizon_steps=None):
        """Attention halves with each step back; a tenth of it is on the horizon."""
        if not self.explains:
            raise NoExplanationError(f"{self.model_id}: this model has no explanations; train again")
        steps = self.config.context_steps
        attention = 0.9 * 0.5 ** np.arange(1, steps + 1)
        attention[-1] += 0.9 - attention.sum()
        row = [0.25, 0.75], [1.0], [0.4, 0.6], attention, 0.1, steps
        weights = [np.array([part] * len(history)) for part in row]
        return Interpretation(*weights, quantiles=self.forecast(history, profiles, origins))

    def unknown_profiles(self, profiles):
        return tuple(sorted(set(filter(None, profiles)) - set(self.config.profiles)))
