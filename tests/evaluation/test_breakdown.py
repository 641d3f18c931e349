"""Errors by horizon, hour, profile and metric, and calibration, against plain loops over the points."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.evaluation.backtest import Backtest
from fleet_forecast.evaluation.breakdown import breakdown
from fleet_forecast.evaluation.examples import examples
from fleet_forecast.evaluation.scores import weighted_quantile_loss
from fleet_forecast.features.grid import FleetGrid

LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture
def compared(grid: FleetGrid) -> Backtest:
    """Two windows of each of three servers, four hours ahead; some values are missing."""
    random = np.random.default_rng(1)
    rows, origins = np.repeat(np.arange(3), 2), np.tile([100, 209], 3)
    actual = random.uniform(1, 50, (6, 4, 2)).astype(np.float32)
    actual[0, 1, 0] = np.nan
    forecasts = {
        name: np.sort(random.uniform(1, 50, (6, 4, 2, 3)), axis=-1).astype(np.float32) for name in ("model", "naive")
    }
    forecasts["naive"][5, :, 1] = np.nan  # not forecast: the points count for neither
    return Backtest(grid.metrics, LEVELS, rows, origins, actual, np.ones((3, 2), np.float32), forecasts)


def wql(compared: Backtest, method: str, points: np.ndarray) -> float:
    """points: boolean [window, horizon]."""
    scored = ~np.isnan(compared.actual) & ~np.isnan(compared.forecasts["naive"]).any(axis=3) & points[..., None]
    losses = []
    for metric in range(2):
        known = scored[..., metric]
        if known.any():
            actual = compared.actual[..., metric][known]
            losses.append(weighted_quantile_loss(actual, compared.forecasts[method][..., metric, :][known], LEVELS))
    return float(np.mean(losses))


def test_errors_are_those_of_a_loop_over_the_points(compared: Backtest, grid: FleetGrid) -> None:
    found = breakdown(compared, "naive", grid, "UTC")
    for name, method in (("model", "model"), ("baseline", "naive")):
        for hour in range(4):
            points = np.zeros((6, 4), bool)
            points[:, hour] = True
            assert found["by_horizon"][name][hour] == pytest.approx(wql(compared, method, points), abs=1e-4)
        steps = compared.origins[:, None] + np.arange(1, 5)
        for hour in range(24):
            points = steps % 24 == hour  # the grid starts at midnight
            expected = pytest.approx(wql(compared, method, points), abs=1e-4) if points.any() else None
            assert found["by_hour"][name][hour] == expected
    by_profile = {row["profile"]: row for row in found["by_profile"]}
    assert by_profile.keys() == {"database", "web_api", "unknown"}
    points = np.repeat([True, False, False], 2)[:, None] & np.ones((6, 4), bool)
    assert by_profile["database"]["model"] == pytest.approx(wql(compared, "model", points), abs=1e-4)
    assert found["by_horizon"]["hours"] == [1, 2, 3, 4]


def test_a_metric_without_a_scored_value_at_a_horizon_has_no_error_there(compared: Backtest, grid: FleetGrid) -> None:
    compared.actual[:, :, 0] = np.nan
    found = breakdown(compared, "naive", grid, "UTC")["by_metric_horizon"]
    empty, measured = (list(found[metric].values()) for metric in compared.metrics)
    assert all(horizon == {"wql": None, "coverage_80": None} for horizon in empty)
    assert all(horizon["wql"] is not None for horizon in measured)


def test_calibration_and_coverage_count_values(compared: Backtest, grid: FleetGrid) -> None:
    found = breakdown(compared, "naive", grid, "UTC")
    scored = ~np.isnan(compared.actual) & ~np.isnan(compared.forecasts["naive"]).any(axis=3)
    model = compared.forecasts["model"]
    whole = next(own for own in found["calibration"] if own["profile"] == "all")
    below = [100 * (compared.actual <= model[..., level])[scored].mean() for level in range(3)]
    assert whole["below"] == pytest.approx(below, abs=0.01)
    inside = (model[..., 0] <= compared.actual) & (compared.actual <= model[..., 2])
    first = scored[:, 0, 0]
    assert found["by_metric_horizon"]["cpu_pct"]["1h"]["coverage_80"] == pytest.approx(
        100 * inside[:, 0, 0][first].mean(), abs=0.01
    )


def test_examples_are_the_best_the_middle_and_the_worst_window_of_a_profile(grid: FleetGrid) -> None:
    rows, origins = np.zeros(5, np.int64), np.array([30, 60, 90, 120, 150])
    actual = np.full((5, 4, 2), 10.0, np.float32)
    actual[4] = np.nan  # not measured
    forecasts = {"model": np.full((5, 4, 2, 3), 10.0, np.float32) + np.array([3, 1, 2, 0, 9.0])[:, None, None, None]}
    found = examples(
        Backtest(grid.metrics, LEVELS, rows, origins, actual, np.ones((3, 2)), forecasts), grid, history_steps=24
    )
    assert [(one.place, int((one.origin - grid.timestamps()[0]) / np.timedelta64(1, "h"))) for one in found] == [
        ("best", 120),
        ("typical", 60 if found[1].error < 0.15 else 90),
        ("worst", 30),
    ]
    assert np.array_equal(found[0].history, grid.values[0, 97:121, 0])
    assert [one.server_name for one in found] == ["a1"] * 3
