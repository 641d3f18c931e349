"""A deterministic engine with the shapes of the real one: tests of the daemon need no trained model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_contract import METRIC_SPECS, METRICS
from fleet_forecast.contract.calendar import DEFAULT_CALENDAR, BusinessCalendar
from fleet_forecast.inference.engine import NoExplanationError
from fleet_forecast.inference.explanations import Interpretation, Variables
from fleet_forecast.inference.peer_support import PeerSupport
from fleet_forecast.risk.departures import SIMULATED, DepartureStatistics


@dataclass(frozen=True)
class FakeConfig:
    targets: tuple[str, ...] = tuple(METRICS)
    quantiles: tuple[float, ...] = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
    step_seconds: int = 300
    horizon_steps: int = 96
    context_steps: int = 288
    history_steps: int = 288
    profiles: tuple[str, ...] = ("ml_compute", "database", "generic")
    calendar: BusinessCalendar = DEFAULT_CALENDAR

    measured_by_profile: dict = field(default_factory=dict)

    def definition_of(self, metric):
        return METRIC_SPECS.get(metric)


@dataclass
class FakeEngine:
    """The median is the last measured value (50 if there is none); quantile q is the median + (q - 0.5) * 10."""

    config: FakeConfig = field(default_factory=FakeConfig)
    model_id: str = "tft_model_fake"
    model_dir: Path = Path("models/tft_model_fake")
    seconds_per_call: float = 0.0
    bad_output: bool = False
    explains: bool = True
    risk_model: object = None
    departures: DepartureStatistics = SIMULATED
    calls: list[dict] = field(default_factory=list)
    variables = Variables(("profile", "cpu_pct_loc"), ("cpu_pct_scaled",), ("half_hour", "cpu_pct_seasonal_mean"))

    def forecast(self, history, profiles, origins, peers=None):
        time.sleep(self.seconds_per_call)
        self.calls.append({"history": history.copy(), "profiles": list(profiles), "origins": np.array(origins)})
        self.calls[-1]["peers"] = peers
        servers, _, metrics = history.shape
        last = np.full((servers, metrics), 50.0, dtype=np.float32)
        for step in range(history.shape[1]):
            measured = ~np.isnan(history[:, step])
            last[measured] = history[:, step][measured]
        spread = (np.array(self.config.quantiles, dtype=np.float32) - 0.5) * 10
        forecast = last[:, None, :, None] + spread[None, None, None, :]
        full = np.broadcast_to(forecast, (servers, self.config.horizon_steps, metrics, len(spread))).copy()
        return full * np.nan if self.bad_output else full

    def explain(self, history, profiles, origins, horizon_steps=None, peers=None):
        """Attention halves with each step back; a tenth of it is on the horizon."""
        if not self.explains:
            raise NoExplanationError(f"{self.model_id}: this model has no explanations; train again")
        steps = self.config.context_steps
        attention = 0.9 * 0.5 ** np.arange(1, steps + 1)
        attention[-1] += 0.9 - attention.sum()
        row = [0.25, 0.75], [1.0], [0.4, 0.6], attention, 0.1, steps
        weights = [np.array([part] * len(history)) for part in row]
        quantiles = self.forecast(history, profiles, origins, peers)
        support = None if peers is None else self.peer_support(history, profiles, origins, peers)
        if support is not None:
            support = support._replace(weights=support.weights[:, :1])  # `variables` has one metric
        return Interpretation(*weights, quantiles=quantiles, peers=support)

    def forecast_with_support(self, history, profiles, origins, peers=None):
        quantiles = self.forecast(history, profiles, origins, peers)
        if peers is None:
            servers, _, metrics = history.shape
            return quantiles, PeerSupport(np.zeros(servers, np.int64), np.zeros((servers, metrics), np.float32))
        return quantiles, self.peer_support(history, profiles, origins, peers)

    def peer_support(self, history, profiles, origins, peers):
        """Counts of the table at any step; the weight is 0.5 with peers."""
        rows = peers.table.rows_of(profiles)
        counts = np.where(rows < 0, 0, peers.table.statistics.counts.max(axis=(1, 2), initial=0)[rows]) - peers.members
        counts = np.maximum(counts, 0)
        weights = np.repeat(np.where(counts[:, None] > 0, np.float32(0.5), np.float32(0.0)), history.shape[2], axis=1)
        return PeerSupport(counts.astype(np.int64), weights)

    def unknown_profiles(self, profiles):
        return tuple(sorted(set(filter(None, profiles)) - set(self.config.profiles)))
