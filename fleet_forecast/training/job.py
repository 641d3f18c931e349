"""A training job: fleet, split, window lengths, network and settings, and the evaluation of its model.

The functions at the end choose what a job consists of from the data: the step, and the profiles.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.contract.reading import CheckedMetrics
from fleet_forecast.contract.specs import CONTRACT_VERSION, METRIC_SPECS
from fleet_forecast.evaluation.against_champion.champion import Challenger, Comparison, compare_with_champion
from fleet_forecast.evaluation.backtest import BacktestPlan, backtest, best_baseline, rolling_origins
from fleet_forecast.evaluation.baselines import training_quantiles
from fleet_forecast.evaluation.breakdown import breakdown
from fleet_forecast.evaluation.cold_start import cold_start_table
from fleet_forecast.evaluation.examples import examples
from fleet_forecast.evaluation.loss_sums import losses_by_day
from fleet_forecast.evaluation.peers_by_hand import fit_peers_by_hand
from fleet_forecast.evaluation.tables import GroupEvaluation
from fleet_forecast.evaluation.weight_tables import WeightTables, weight_tables
from fleet_forecast.features.cold_start import SMALLEST_SCALE
from fleet_forecast.features.grid import FleetGrid, median_distance
from fleet_forecast.features.history import past_values
from fleet_forecast.features.peer_prior import PeerPrior, PeerSample, fit_peer_prior
from fleet_forecast.features.peers import Peers
from fleet_forecast.features.scaling import FleetScaling, fit_scaling
from fleet_forecast.features.windows import DAY_SECONDS, WINDOWS_VERSION, WindowSpec
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import ModelConfig
from fleet_forecast.inference.risk_model import RiskModel
from fleet_forecast.inference.torch_backend import torch_explain, torch_run
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.mapped_arrays import IN_MEMORY, ArraysInMemory
from fleet_forecast.network.build import build_network
from fleet_forecast.network.model import ForecastModel
from fleet_forecast.risk.departures import DepartureStatistics
from fleet_forecast.training.batches.source import WindowSource
from fleet_forecast.training.risk.departures import TestPeriod, fit_departures
from fleet_forecast.training.split import Split, TrainingError
from fleet_forecast.training.trainer import TrainerSettings, TrainingData

TEST_ORIGIN_INTERVAL_HOURS = 8
MAX_TEST_WINDOWS = 8_192  # scores over more windows hardly differ, time and memory do
MAX_COMPARED_WINDOWS = 2_048  # with the champion, of each group
MAX_EXPLAINED_WINDOWS = 48  # of each profile: means over more windows hardly differ
MAX_FITTED_CELLS = 25_000_000  # server-steps that scaling statistics are fitted on: 2,900 servers over 30 days
MIN_FITTED_SERVERS = 100
MIN_DEFAULT_STEP_SECONDS = 300  # a context of 24 h in finer steps is too long for the network


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on which data, and how.

    profiles: those the network distinguishes; empty: no profile feature. arrays: where the windows' values are.
    profiled_job: the same job with the profile feature, whose scaling statistics and windows this one shares.
    """

    grid: FleetGrid
    spec: WindowSpec
    split: Split
    profiles: tuple[str, ...]
    hidden_size: int
    device: torch.device
    settings: TrainerSettings
    arrays: ArraysInMemory = IN_MEMORY
    profiled_job: Job | None = None

    def without_profiles(self) -> Job:
        """The same job without the profile feature."""
        return replace(self, profiles=(), profiled_job=self)

    @cached_property
    def scaling(self) -> FleetScaling:
        """Scaling statistics of the training servers before the test period.

        The validation period is included: scaling statistics cannot overfit as a network does. Of very many servers a
        sample is taken, which bounds the memory.
        """
        if self.profiled_job:
            return self.profiled_job.scaling.without_profiles()
        grid, rows = self.grid, self._fitted_servers()
        scaling = fit_scaling(
            grid.values[:, : self.split.test_start],
            {name: METRIC_SPECS[name].kind for name in grid.metrics},
            tuple(grid.profiles[row] if self.profiles else None for row in rows),
            self.spec.context_steps,
            rows=rows,
        )
        return replace(scaling, peer_prior=self._peer_prior(scaling))

    def _fitted_servers(self) -> np.ndarray:
        """Rows of the training servers, or of a random sample of them if they have too many cells."""
        rows = self.split.training_servers
        most = max(MIN_FITTED_SERVERS, MAX_FITTED_CELLS // self.split.test_start)
        if len(rows) <= most:
            return rows
        return np.sort(np.random.default_rng([self.settings.seed, 4]).choice(rows, most, replace=False))

    @cached_property
    def peers(self) -> Peers:
        """Peers of all servers: the training and validation servers of their profile."""
        return self.profiled_job.peers if self.profiled_job else self.grid.peers(self.split.observed_servers)

    def _peer_prior(self, scaling: FleetScaling) -> PeerPrior | None:
        grid, spec = self.grid, self.spec
        if not self.profiles:
            return None
        sample = PeerSample(
            values=grid.values[:, : self.split.test_start],
            bounds=scaling.bounds,
            servers=self.split.training_servers,
            profile_rows=scaling.profile_rows(np.array(grid.profiles, dtype=object)),
            peers=self.peers.of_fleet(grid.profiles, scaling.bounds),
            first_step=grid.first_step,
            smallest_scale=SMALLEST_SCALE * scaling.scale,
        )
        return fit_peer_prior(sample, spec.lag_steps(spec.context_steps), spec.history_steps)

    @cached_property
    def source(self) -> WindowSource:
        """The fleet's windows."""
        if self.profiled_job:
            return self.profiled_job.source.without_profiles()
        peers = self.peers if self.scaling.peer_prior else None
        return WindowSource(self.grid, self.spec, self.scaling, peers, self.arrays)

    @property
    def training_data(self) -> TrainingData:
        return TrainingData(self.source, self.split)

    def fresh_model(self) -> ForecastModel:
        """A model with the initial weights of the seed, which forecasts the prior, on the job's device."""
        torch.manual_seed(self.settings.seed)
        network = build_network(self.spec, self.profiles, self.hidden_size)
        return ForecastModel(network, self.spec, self.scaling).start_at_prior().to(self.device)

    def config(self, model_id: str) -> ModelConfig:
        """The configuration in the job's model directory."""
        return ModelConfig(
            model_id=model_id,
            contract_version=CONTRACT_VERSION,
            hidden_size=self.hidden_size,
            quantiles=QUANTILE_LEVELS,
            profiles=self.profiles,
            spec=self.spec,
            scaling=self.scaling,
            windows_version=WINDOWS_VERSION,
            definitions=tuple(METRIC_SPECS[name] for name in self.spec.metrics),
            measured_by_profile=self.grid.measured_by_profile(),
        )

    def test_origins(self) -> np.ndarray:
        """Grid steps of the test forecasts: int64 [origin]."""
        interval_steps = max(1, TEST_ORIGIN_INTERVAL_HOURS * 3600 // self.grid.step_seconds)
        first, last = self.split.test_start, self.grid.steps - 1
        return rolling_origins(first, last, self.spec.horizon_steps, interval_steps)

    def test_evaluation(self, model: ForecastModel) -> dict[str, GroupEvaluation]:
        """Scores of model and baselines in the test period, for "training" and for "unseen" servers."""
        engine, origins = Engine(self.config("test"), torch_run(model)), self.test_origins()
        groups = {}
        for name, rows in (("training", self.split.training_servers), ("unseen", self.split.unseen_servers)):
            if not len(rows):
                continue
            rows = self._test_sample(rows)
            print(f"evaluating {len(rows)} {name} servers at {len(origins)} origins", file=sys.stderr)
            compared = backtest(self._backtest_plan(rows), engine.forecast, self.spec.history_steps)
            scores = compared.scores()
            groups[name] = GroupEvaluation(
                scores,
                breakdown(compared, best_baseline(scores), self.grid, self.spec.calendar.timezone),
                examples(compared, self.grid, self.spec.context_steps),
                losses_by_day(compared, self.grid),
            )
        return groups

    def cold_start_table(self, model: ForecastModel) -> pd.DataFrame:
        """Scores of unseen servers by length of history; empty if there are no unseen servers."""
        split = self.split
        if not len(split.unseen_servers):
            return pd.DataFrame()
        print("evaluating unseen servers with little history", file=sys.stderr)
        plan = self._backtest_plan(self._test_sample(split.unseen_servers))
        by_profile = training_quantiles(self.grid, split.training_servers, split.test_start, QUANTILE_LEVELS)
        by_hand = None
        if plan.peers is not None:
            by_hand = fit_peers_by_hand(plan, split.training_servers, split.test_start, by_profile)
        forecaster = Engine(self.config("test"), torch_run(model)).forecast
        return cold_start_table(plan, forecaster, by_profile, bool(self.profiles), by_hand)

    def compare_with(self, model_dir: Path, model: ForecastModel, risk_model: RiskModel | None) -> Comparison:
        """Compare the evaluated model with that of a directory, on the test period."""
        split = self.split
        groups = {"training": split.training_servers, "unseen": split.unseen_servers}
        plans = {
            name: self._backtest_plan(self._test_sample(rows, MAX_COMPARED_WINDOWS))
            for name, rows in groups.items()
            if len(rows)
        }
        config = self.config("challenger")
        challenger = Challenger(config, Engine(config, torch_run(model)).forecast, risk_model)
        return compare_with_champion(model_dir, challenger, plans, split.observed_servers)

    def departures(self, model: ForecastModel, incidents: Sequence[IncidentRecord]) -> DepartureStatistics | None:
        """How far healthy servers deviate from the evaluated model's forecasts, in the test period."""
        period = TestPeriod(self.grid, self.peers, range(self.split.test_start, self.grid.steps), incidents)
        return fit_departures(Engine(self.config("departures"), torch_run(model)), period)

    def _backtest_plan(self, rows: np.ndarray) -> BacktestPlan:
        """The test period of some servers."""
        peers = self.peers if self.scaling.peer_prior is not None else None
        return BacktestPlan(self.grid, rows, self.test_origins(), self.spec.horizon_steps, QUANTILE_LEVELS, peers)

    def mean_weights(self, model: ForecastModel) -> WeightTables:
        """Mean variable and attention weights by profile, over a sample of windows of the test period."""
        grid, origins = self.grid, self.test_origins()
        measured = ~np.isnan(grid.values[:, origins]).all(axis=2)  # [server, origin]
        if not measured.any():  # every test origin lies in a gap
            origins = np.arange(self.split.test_start, grid.steps)
            measured = ~np.isnan(grid.values[:, origins]).all(axis=2)
        random = np.random.default_rng(self.settings.seed)
        owner = np.array([profile or "" for profile in grid.profiles])[:, None]
        windows = [np.flatnonzero(measured & (owner == profile)) for profile in np.unique(owner)]
        chosen = np.concatenate([random.permutation(of_profile)[:MAX_EXPLAINED_WINDOWS] for of_profile in windows])
        rows, steps = chosen // len(origins), origins[chosen % len(origins)]
        profiles = [grid.profiles[row] for row in rows]
        engine = Engine(self.config("explained"), torch_run(model), load_explain=lambda: torch_explain(model))
        history = past_values(grid.values, rows, steps, self.spec.history_steps)
        peers = Peers(self.peers.table, self.peers.members[rows])
        explanation = engine.explain(history, profiles, grid.timestamps()[steps], peers=peers)
        return weight_tables(explanation, engine.variables, profiles, grid.step_seconds)

    def _test_sample(self, rows: np.ndarray, most_windows: int = MAX_TEST_WINDOWS) -> np.ndarray:
        """`rows`, or a random sample of them if they have more than `most_windows` windows."""
        most = max(1, most_windows // max(1, len(self.test_origins())))
        if len(rows) <= most:
            return rows
        return np.sort(np.random.default_rng(self.settings.seed).choice(rows, most, replace=False))


def data_step_seconds(data: CheckedMetrics) -> int:
    """The divisor of a day that is nearest to the median interval between the rows of a server.

    Raises TrainingError if that interval is longer than a day.
    """
    interval = data.metadata.step_seconds if data.metadata else median_distance(data.distances)
    if interval > DAY_SECONDS:
        raise TrainingError(f"timestamp: rows are {interval} s apart; provide each server's at least once a day")
    return min(_steps_of_a_day(), key=lambda seconds: abs(seconds - interval))


def model_step_seconds(data_step: int, requested: int | None) -> int:
    """The requested step, or the data's own but at least MIN_DEFAULT_STEP_SECONDS.

    Raises TrainingError if the requested step does not divide a day or is finer than the data's.
    """
    default = max(data_step, MIN_DEFAULT_STEP_SECONDS)
    step_seconds = requested or default
    if step_seconds < data_step or step_seconds not in _steps_of_a_day():
        valid = next(seconds for seconds in _steps_of_a_day() if seconds >= default)
        raise TrainingError(
            f"--step-seconds {step_seconds}: must divide a day and not be finer than the data's {data_step} s; "
            f"choose one such as {valid}"
        )
    return step_seconds


def _steps_of_a_day() -> list[int]:
    return [seconds for seconds in range(1, DAY_SECONDS + 1) if not DAY_SECONDS % seconds]


def choose_profiles(data: CheckedMetrics, grid: FleetGrid, split: Split) -> tuple[tuple[str, ...], str]:
    """The profiles of the training servers, or the reason why they are not a feature.

    One of the two is empty.
    """
    profiles = profiles_of(grid, split.training_servers)
    if not data.has_profile_column:
        return (), (
            "the data has no profile column, only names to infer it from. "
            "Add a profile column (see DATA_CONTRACT.md) so that new servers are forecast by their profile"
        )
    if len(profiles) < 2:
        return (), (
            f"all training servers have the profile {', '.join(map(repr, profiles)) or 'unknown'}; "
            "the profile has no information. Train on servers of several profiles"
        )
    return profiles, ""


def profiles_of(grid: FleetGrid, rows: np.ndarray) -> tuple[str, ...]:
    """The profiles of some servers, sorted."""
    return tuple(sorted({profile for row in rows if (profile := grid.profiles[row]) is not None}))
