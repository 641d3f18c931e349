"""The cold-start table: lengths of history, and profiles given and masked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.evaluation.backtest import BacktestPlan
from fleet_forecast.evaluation.baselines import training_quantiles
from fleet_forecast.evaluation.cold_start import cold_start_table, history_lengths
from fleet_forecast.features.grid import FleetGrid


@pytest.mark.parametrize(
    ("step_seconds", "steps"),
    [
        (300, {"none": 0, "1 step": 1, "1 h": 12, "6 h": 72, "24 h": 288}),
        (3_600, {"none": 0, "1 step": 1, "6 h": 6, "24 h": 24}),
        (7_200, {"none": 0, "1 step": 1, "6 h": 3, "24 h": 12}),
        (14_400, {"none": 0, "1 step": 1, "24 h": 6}),
        (86_400, {"none": 0, "1 step": 1}),
    ],
)
def test_lengths_of_history_are_as_long_as_their_labels(step_seconds: int, steps: dict[str, int]) -> None:
    assert history_lengths(step_seconds) == steps


def test_servers_without_a_target_have_no_scores(grid: FleetGrid) -> None:
    gone = replace(grid, values=np.where(np.arange(grid.steps)[None, :, None] > 240, np.nan, grid.values))
    by_profile = training_quantiles(gone, np.array([1]), 240, QUANTILE_LEVELS)
    plan = BacktestPlan(gone, np.array([0]), np.array([250, 270]), 8, QUANTILE_LEVELS)
    table = cold_start_table(plan, lambda *_: np.empty((0, 8, 2, 7)), by_profile, has_profiles=True)
    assert table["wql"].isna().all()


def test_the_table_compares_the_profile_given_and_masked(grid: FleetGrid) -> None:
    def forecaster(history: np.ndarray, profiles: list[str | None], _origins: object) -> np.ndarray:
        given = np.array([profile is not None for profile in profiles])
        level = np.where(given, 50.0, 90.0)[:, None, None, None]
        return np.broadcast_to(level, (len(history), 8, 2, 7)).astype(np.float32)

    by_profile = training_quantiles(grid, np.array([1]), 240, QUANTILE_LEVELS)
    plan = BacktestPlan(grid, np.array([0, 1]), np.array([250, 270]), 8, QUANTILE_LEVELS)
    table = cold_start_table(plan, forecaster, by_profile, has_profiles=True)
    assert list(table["history"].unique()) == ["none", "1 step", "6 h", "24 h"]  # 1 h is the step
    without = table[table["history"] == "none"].set_index("method")
    assert set(without.index) == {"model, profile given", "model, profile masked", "profile_quantiles"}
    assert without.loc["model, profile given", "accuracy"] > without.loc["model, profile masked", "accuracy"]
