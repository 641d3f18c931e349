"""Baselines against pandas, and their one table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.evaluation.backtest import BacktestPlan, backtest
from fleet_forecast.evaluation.baselines import BASELINES, Observed, baseline_forecasts, training_quantiles
from fleet_forecast.evaluation.cold_start import cold_start_table
from fleet_forecast.features.grid import FleetGrid
from tests.evaluation.conftest import DAY


def observed(history: np.ndarray, horizon_steps: int = 8, profile_quantiles: np.ndarray | None = None) -> Observed:
    return Observed(history, horizon_steps, DAY, QUANTILE_LEVELS, profile_quantiles)


def test_baselines_equal_pandas() -> None:
    random = np.random.default_rng(2)
    history = random.uniform(0, 50, (2, 3 * DAY, 2)).astype(np.float32)
    history[random.random(history.shape) < 0.2] = np.nan
    made = baseline_forecasts(observed(history))
    for window in range(2):
        for metric in range(2):
            series = pd.Series(history[window, :, metric])
            for hours in (6, 24):
                expected = series.iloc[-hours:].quantile(list(QUANTILE_LEVELS)).to_numpy()
                np.testing.assert_allclose(made[f"window_quantiles_{hours}h"][window, 3, metric], expected, rtol=1e-5)
            assert (made["naive"][window, :, metric] == series.dropna().iloc[-1]).all()
            np.testing.assert_array_equal(made["seasonal_naive"][window, :, metric, 0], series.iloc[2 * DAY :][:8])


def test_seasonal_naive_looks_back_as_many_days_as_the_horizon_has() -> None:
    history = np.arange(3 * DAY, dtype=np.float32)[None, :, None]
    made = baseline_forecasts(observed(history, horizon_steps=DAY + 1))["seasonal_naive"]
    np.testing.assert_array_equal(made[0, :, 0, 0], np.arange(DAY, 2 * DAY + 1))


def test_a_baseline_without_the_history_it_needs_is_left_out() -> None:
    assert baseline_forecasts(observed(np.empty((2, 0, 1), np.float32))) == {}
    assert set(baseline_forecasts(observed(np.ones((2, 5, 1), np.float32)))) == {
        "naive",
        "window_quantiles_6h",
        "window_quantiles_24h",
    }


def test_the_quantiles_of_a_profile_need_no_history() -> None:
    quantiles = np.random.default_rng(0).normal(size=(2, 1, 7)).astype(np.float32)
    made = baseline_forecasts(observed(np.empty((2, 0, 1), np.float32), profile_quantiles=quantiles))
    assert set(made) == {"profile_quantiles"}
    for step in range(8):
        np.testing.assert_array_equal(made["profile_quantiles"][:, step], quantiles)


def test_training_quantiles_are_those_of_the_profiles_training_days(grid: FleetGrid) -> None:
    by_profile = training_quantiles(grid, np.array([0, 1]), 240, QUANTILE_LEVELS)
    expected = np.quantile(grid.values[1, :240, 0], QUANTILE_LEVELS)
    np.testing.assert_allclose(by_profile["web_api"][0], expected, rtol=1e-5)
    assert set(by_profile) == {None, "database", "web_api"}


def test_a_new_baseline_is_one_entry_and_appears_in_every_table(
    grid: FleetGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BASELINES, "zero", lambda observed: np.zeros((len(observed.history), 1, 1, 1), np.float32))
    plan = BacktestPlan(grid, np.array([0, 1]), np.array([250, 270]), 8, QUANTILE_LEVELS)

    def forecaster(history: np.ndarray, _profiles: object, _origins: object) -> np.ndarray:
        return np.ones((len(history), 8, 2, 7), dtype=np.float32)

    scores = backtest(plan, forecaster, 48).scores().set_index(["method", "metric"])
    assert scores.loc[("zero", "mean"), "accuracy"] == 0.0
    by_profile = training_quantiles(grid, np.array([1]), 240, QUANTILE_LEVELS)
    table = cold_start_table(plan, forecaster, by_profile, has_profiles=True)
    assert (table["method"] == "zero").sum() == table["history"].nunique()
