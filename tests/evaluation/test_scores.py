"""Scores against plain loops and known values."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.evaluation.scores import mean_seasonal_error, pinball_loss, score_table


def test_pinball_loss_equals_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    actual, forecast = random.normal(size=(4, 5)), random.normal(size=(4, 5, 3))
    loss = pinball_loss(actual, forecast, (0.1, 0.5, 0.9))
    for i in range(4):
        for j in range(5):
            for k, level in enumerate((0.1, 0.5, 0.9)):
                error = actual[i, j] - forecast[i, j, k]
                assert loss[i, j, k] == pytest.approx(level * error if error >= 0 else (level - 1) * error)


def test_scores_of_a_small_example_are_known() -> None:
    """Four points, actual 10 each; median off by 2, bands at 5 and 15."""
    actual = np.full((1, 4, 1), 10.0)
    forecast = np.broadcast_to(np.array([1, 5, 8, 12, 13, 15, 20.0]), (1, 4, 1, 7))
    scored = np.ones_like(actual, dtype=bool)
    row = score_table(actual, forecast, QUANTILE_LEVELS, scored, np.full((1, 1), 4.0)).iloc[0]
    losses = (0.1 * 5, 0.5 * 2, 0.1 * 5)
    assert row["wql"] == pytest.approx(np.mean([2 * loss / 10 for loss in losses]))
    assert row["wape"] == pytest.approx(0.2)
    assert row["accuracy"] == pytest.approx(80.0)
    assert row["mase"] == pytest.approx(0.5)
    assert (row["coverage_80"], row["coverage_96"]) == (100.0, 100.0)
    assert (row["points"], row["total"]) == (4, 40.0)


def test_coverage_counts_the_points_inside_the_band() -> None:
    actual = np.arange(100, dtype=float).reshape(1, 100, 1)
    forecast = np.broadcast_to(np.array([4, 9.5, 25, 50, 75, 89.5, 95.0]), (1, 100, 1, 7))
    row = score_table(actual, forecast, QUANTILE_LEVELS, np.ones_like(actual, bool), np.ones((1, 1))).iloc[0]
    assert (row["coverage_80"], row["coverage_96"]) == (80.0, 92.0)


def test_a_band_that_is_not_forecast_has_no_coverage() -> None:
    actual = np.ones((1, 4, 1))
    forecast = np.broadcast_to(np.array([0.0, 1.0, 2.0]), (1, 4, 1, 3))
    row = score_table(actual, forecast, (0.1, 0.5, 0.9), np.ones_like(actual, bool), np.ones((1, 1))).iloc[0]
    assert row["coverage_80"] == 100.0
    assert np.isnan(row["coverage_96"])


def test_points_that_were_not_measured_do_not_count() -> None:
    actual = np.array([[[10.0], [np.nan]]])
    forecast = np.full((1, 2, 1, 7), 10.0)
    row = score_table(actual, forecast, QUANTILE_LEVELS, ~np.isnan(actual), np.ones((1, 1))).iloc[0]
    assert row["points"] == 1
    assert row["wql"] == 0


def test_a_metric_without_a_point_has_no_scores() -> None:
    actual = np.full((1, 2, 1), np.nan)
    row = score_table(actual, np.ones((1, 2, 1, 7)), QUANTILE_LEVELS, ~np.isnan(actual), np.ones((1, 1))).iloc[0]
    assert row.drop(["points", "total"]).isna().all()
    assert (row["points"], row["total"]) == (0, 0)


def test_the_seasonal_error_equals_a_plain_loop_and_is_the_fleets_for_a_server_without_days() -> None:
    values = np.random.default_rng(1).uniform(0, 9, (3, 60, 2)).astype(np.float32)
    values[1, 10:30] = np.nan
    values[2, :40] = np.nan  # 20 steps are left: no pair of days
    found = mean_seasonal_error(values, 24)
    changes = [np.abs(of_server[24:] - of_server[:-24]) for of_server in values]
    for server in (0, 1):
        np.testing.assert_allclose(found[server], np.nanmean(changes[server], axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[2], np.nanmean(np.concatenate(changes[:2]), axis=0), rtol=1e-5)
