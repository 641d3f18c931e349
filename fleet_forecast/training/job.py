"""One training job: a fleet, how it is split and cut into windows, the network to fit, and how its model is judged."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.contract.specs import CONTRACT_VERSION, METRIC_SPECS
from fleet_forecast.evaluation.backtest import BacktestPlan, backtest, rolling_origins
from fleet_forecast.evaluation.baselines import training_quantiles
from fleet_forecast.evaluation.cold_start import cold_start_table
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.history import past_values
from fleet_forecast.features.scaling import FleetScaling, fit_scaling
from fleet_forecast.features.windows import WINDOWS_VERSION, WindowSpec
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.explanations import WeightTables, weight_tables
from fleet_forecast.inference.model_config import ModelConfig
from fleet_forecast.inference.torch_backend import torch_explain, torch_run
from fleet_forecast.network.model import ForecastModel, build_network
from fleet_forecast.training.sampling import WindowSource
from fleet_forecast.training.split import Split
from fleet_forecast.training.trainer import FitSettings

TEST_EVERY_HOURS = 8
JUDGED_WINDOWS = 8_192  # at most: scores over more of them hardly differ, time and memory do
EXPLAINED_WINDOWS = 48  # of each profile, at most: a mean over more of them hardly differs


@dataclass(frozen=True)
class Job:
    """What is trained on and how.

    profiles: those the network will know; empty: no profile feature. beside: the same job with profiles, whose
    statistics and windows serve this one too.
    """

    grid: FleetGrid
    spec: WindowSpec
    split: Split
    profiles: tuple[str, ...]
    hidden_size: int
    device: torch.device
    settings: FitSettings
    beside: Job | None = None

    def without_profiles(self) -> Job:
        """The same with the profile feature off."""
        return replace(self, profiles=(), beside=self)

    @cached_property
    def scaling(self) -> FleetScaling:
        """Scaling statistics of training servers, before the later days; the fleet's alone where profiles play no role.

        The validation days are counted in: what levels are usual tells nothing of a network that learns by heart.
        """
        if self.beside:
            return self.beside.scaling.without_profiles()
        grid, seen = self.grid, self.split.seen
        return fit_scaling(
            grid.values[:, : self.split.train_end],
            grid.metrics,
            np.array([METRIC_SPECS[name].is_percent for name in grid.metrics]),
            tuple(grid.profiles[row] if self.profiles else None for row in seen),
            self.spec.context_steps,
            rows=seen,
        )

    @cached_property
    def source(self) -> WindowSource:
        """Windows of the fleet."""
        if self.beside:
            return self.beside.source.without_profiles()
        return WindowSource(self.grid, self.spec, self.scaling)

    def fresh_model(self) -> ForecastModel:
        """A network with the seed's weights, on the device to train on."""
        torch.manual_seed(self.settings.seed)
        network = build_network(self.spec, self.profiles, self.hidden_size)
        return ForecastModel(network, self.spec, self.scaling).to(self.device)

    def config(self, model_id: str) -> ModelConfig:
        """The configuration the job's model is published with."""
        return ModelConfig(
            model_id=model_id,
            contract_version=CONTRACT_VERSION,
            hidden_size=self.hidden_size,
            quantiles=QUANTILE_LEVELS,
            profiles=self.profiles,
            spec=self.spec,
            scaling=self.scaling,
            windows_version=WINDOWS_VERSION,
        )

    def test_origins(self) -> np.ndarray:
        """Grid steps of the later days from which forecasts are judged: int64 [origin]."""
        every = max(1, TEST_EVERY_HOURS * 3600 // self.grid.step_seconds)
        return rolling_origins(self.split.train_end, self.grid.steps - 1, self.spec.horizon_steps, every)

    def judged(self, rows: np.ndarray) -> np.ndarray:
        """The servers forecasts are judged on: `rows`, or as many drawn of them as JUDGED_WINDOWS has room for."""
        most = max(1, JUDGED_WINDOWS // max(1, len(self.test_origins())))
        if len(rows) <= most:
            return rows
        return np.sort(np.random.default_rng(self.settings.seed).choice(rows, most, replace=False))

    def scores(self, model: ForecastModel) -> dict[str, pd.DataFrame]:
        """Scores on the later days with baselines, servers `seen` and `unseen` apart."""
        engine, origins = Engine(self.config("being judged"), torch_run(model)), self.test_origins()
        tables = {}
        for name, rows in (("seen", self.split.seen), ("unseen", self.split.unseen)):
            if not len(rows):
                continue
            rows = self.judged(rows)
            print(f"evaluating {len(rows)} {name} servers at {len(origins)} origins", file=sys.stderr)
            tables[name] = backtest(self._backtest_plan(rows), engine.forecast, self.spec.history_steps).scores()
        return tables

    def cold_start(self, model: ForecastModel) -> pd.DataFrame:
        """cold_start_table of the unseen servers; empty if there are none."""
        if not len(self.split.unseen):
            return pd.DataFrame()
        print("evaluating unseen servers with little history", file=sys.stderr)
        grid, split = self.grid, self.split
        return cold_start_table(
            self._backtest_plan(self.judged(split.unseen)),
            Engine(self.config("being judged"), torch_run(model)).forecast,
            training_quantiles(grid, split.seen, split.train_end, QUANTILE_LEVELS),
            bool(self.profiles),
        )

    def _backtest_plan(self, rows: np.ndarray) -> BacktestPlan:
        """The later days of some servers."""
        return BacktestPlan(self.grid, rows, self.test_origins(), self.spec.horizon_steps, QUANTILE_LEVELS)

    def mean_weights(self, model: ForecastModel) -> WeightTables:
        """What forecasts of the later days rest on, by profile: means over a sample of windows."""
        grid, origins = self.grid, self.test_origins()
        measured = ~np.isnan(grid.values[:, origins]).all(axis=2)  # [server, origin]
        if not measured.any():  # gaps at just these moments
            origins = np.arange(self.split.train_end, grid.steps)
            measured = ~np.isnan(grid.values[:, origins]).all(axis=2)
        random = np.random.default_rng(self.settings.seed)
        owner = np.array([profile or "" for profile in grid.profiles])[:, None]
        places = [np.flatnonzero(measured & (owner == profile)) for profile in np.unique(owner)]
        chosen = np.concatenate([random.permutation(of_profile)[:EXPLAINED_WINDOWS] for of_profile in places])
        rows, steps = chosen // len(origins), origins[chosen % len(origins)]
        profiles = [grid.profiles[row] for row in rows]
        engine = Engine(self.config("being explained"), torch_run(model), load_explain=lambda: torch_explain(model))
        history = past_values(grid.values, rows, steps, self.spec.history_steps)
        found = engine.explain(history, profiles, grid.timestamps()[steps])
        return weight_tables(found, engine.variables, profiles, grid.step_seconds)
