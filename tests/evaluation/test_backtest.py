"""The backtest: nothing after the origin is used, and all methods are scored on the same points."""

from __future__ import annotations

import numpy as np

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.evaluation.backtest import BacktestPlan, backtest, rolling_origins
from fleet_forecast.features.grid import FleetGrid


def test_rolling_origins_keep_the_horizon_inside() -> None:
    origins = rolling_origins(100, 199, 10, 10)
    assert origins[0] == 99  # its first target is step 100
    assert origins[-1] + 10 <= 199
    assert (np.diff(origins) == 10).all()


def test_the_forecaster_receives_only_the_past(grid: FleetGrid) -> None:
    """It gets exactly the last history_steps up to each origin, its profile and the origin's time."""
    calls = []

    def forecaster(history: np.ndarray, profiles: list[str | None], origins: np.ndarray) -> np.ndarray:
        calls.append((history, profiles, origins))
        return np.zeros((len(history), 8, 2, 7), dtype=np.float32)

    plan = BacktestPlan(grid, np.array([0, 2]), np.array([200, 260]), 8, QUANTILE_LEVELS)
    made = backtest(plan, forecaster, 30)
    histories = np.concatenate([call[0] for call in calls])
    for window, (row, origin) in enumerate(zip(made.rows, made.origins, strict=True)):
        np.testing.assert_array_equal(histories[window], grid.values[row, origin - 29 : origin + 1])
        np.testing.assert_array_equal(made.actual[window], grid.values[row, origin + 1 : origin + 9])
    assert [profile for call in calls for profile in call[1]] == ["database", "database", None, None]
    assert calls[0][2][0] == np.datetime64("2026-03-02") + np.timedelta64(200, "h")


def test_all_methods_are_scored_on_the_same_points(grid: FleetGrid) -> None:
    """Server 0 has a gap at steps 300 to 319: seasonal_naive has no value for 324 to 343, so none is scored there."""

    def forecaster(history: np.ndarray, _profiles: object, _origins: object) -> np.ndarray:
        return np.full((len(history), 8, 2, 7), 50.0, dtype=np.float32)

    plan = BacktestPlan(grid, np.array([0]), np.array([322]), 8, QUANTILE_LEVELS)
    table = backtest(plan, forecaster, 48).scores()
    assert set(table["method"]) == {"model", "naive", "seasonal_naive", "window_quantiles_6h", "window_quantiles_24h"}
    assert table.groupby("metric")["points"].nunique().eq(1).all()
    assert table["points"].max() == 2  # of the horizon 323..330 only step 323 is left, in two metrics
