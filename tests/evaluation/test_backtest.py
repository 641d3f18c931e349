"""Scores against plain loops and known values; baselines against pandas; the backtest sees nothing it should not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fleet_forecast.evaluation import backtest as evaluation
from fleet_forecast.features.grid import FleetGrid

QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
DAY = 24  # steps of an hour


@pytest.fixture
def grid() -> FleetGrid:
    random = np.random.default_rng(0)
    values = random.uniform(1, 100, (3, 20 * DAY, 2)).astype(np.float32)
    values[0, 300:320] = np.nan
    return FleetGrid(
        ("a1", "b1", "c1"), ("database", "web_api", None), ("cpu_pct", "mem_pct"), np.datetime64("2026-03-02", "s"),
        3600, values,
    )  # fmt: skip


def test_pinball_equals_the_plain_loop() -> None:
    random = np.random.default_rng(0)
    actual, forecast = random.normal(size=(4, 5)), random.normal(size=(4, 5, 3))
    loss = evaluation.pinball(actual, forecast, (0.1, 0.5, 0.9))
    for i in range(4):
        for j in range(5):
            for k, level in enumerate((0.1, 0.5, 0.9)):
                error = actual[i, j] - forecast[i, j, k]
                assert loss[i, j, k] == pytest.approx(level * error if error >= 0 else (level - 1) * error)


def test_known_scores_of_a_small_example() -> None:
    """Four points, actual 10 each; median off by 2, bands at 5 and 15."""
    actual = np.full((1, 4, 1), 10.0)
    forecast = np.broadcast_to(np.array([1, 5, 8, 12, 13, 15, 20.0]), (1, 4, 1, 7))
    counted = np.ones_like(actual, dtype=bool)
    row = evaluation.score(actual, forecast, QUANTILES, counted, np.full((1, 1), 4.0)).iloc[0]
    pinball = (0.1 * 5, 0.5 * 2, 0.1 * 5)
    assert row["wql"] == pytest.approx(np.mean([2 * loss / 10 for loss in pinball]))
    assert row["wape"] == pytest.approx(0.2)
    assert row["accuracy"] == pytest.approx(80.0)
    assert row["mase"] == pytest.approx(0.5)
    assert (row["coverage_80"], row["coverage_96"]) == (100.0, 100.0)


def test_coverage_counts_the_points_inside() -> None:
    actual = np.arange(100, dtype=float).reshape(1, 100, 1)
    forecast = np.broadcast_to(np.array([4, 9.5, 25, 50, 75, 89.5, 95.0]), (1, 100, 1, 7))
    row = evaluation.score(actual, forecast, QUANTILES, np.ones_like(actual, bool), np.ones((1, 1))).iloc[0]
    assert (row["coverage_80"], row["coverage_96"]) == (80.0, 92.0)


def test_points_that_were_not_measured_do_not_count() -> None:
    actual = np.array([[[10.0], [np.nan]]])
    forecast = np.full((1, 2, 1, 7), 10.0)
    row = evaluation.score(actual, forecast, QUANTILES, ~np.isnan(actual), np.ones((1, 1))).iloc[0]
    assert row["points"] == 1
    assert row["wql"] == 0


def test_baselines_equal_pandas() -> None:
    random = np.random.default_rng(2)
    history = random.uniform(0, 50, (2, 3 * DAY, 2)).astype(np.float32)
    history[random.random(history.shape) < 0.2] = np.nan
    simple = evaluation.baselines(history, 8, DAY, QUANTILES)
    for window in range(2):
        for metric in range(2):
            series = pd.Series(history[window, :, metric])
            for hours in (6, 24):
                expected = series.iloc[-hours:].quantile(list(QUANTILES)).to_numpy()
                np.testing.assert_allclose(simple[f"flat_{hours}h"][window, 3, metric], expected, rtol=1e-5)
            assert (simple["last_value"][window, :, metric] == series.dropna().iloc[-1]).all()
            np.testing.assert_array_equal(simple["yesterday"][window, :, metric, 0], series.iloc[2 * DAY :][:8])


def test_a_baseline_without_the_history_it_needs_is_left_out() -> None:
    assert evaluation.baselines(np.empty((2, 0, 1), np.float32), 8, DAY, QUANTILES) == {}
    assert set(evaluation.baselines(np.ones((2, 5, 1), np.float32), 8, DAY, QUANTILES)) == {
        "last_value",
        "flat_6h",
        "flat_24h",
    }


def test_rolling_origins_keep_the_horizon_inside() -> None:
    origins = evaluation.rolling_origins(100, 199, 10, 10)
    assert origins[0] == 99  # its first target is step 100
    assert origins[-1] + 10 <= 199
    assert (np.diff(origins) == 10).all()


def test_backtest_shows_the_forecaster_only_the_past(grid: FleetGrid) -> None:
    """The forecaster gets exactly the last history_steps up to each origin, its profile and the origin's time."""
    calls = []

    def forecaster(history: np.ndarray, profiles: list[str | None], origins: np.ndarray) -> np.ndarray:
        calls.append((history, profiles, origins))
        return np.zeros((len(history), 8, 2, 7), dtype=np.float32)

    origins = np.array([200, 260])
    past = evaluation.backtest(grid, np.array([0, 2]), origins, 8, 30, QUANTILES, forecaster)
    histories = np.concatenate([call[0] for call in calls])
    for window, (row, origin) in enumerate(zip(past.rows, past.origins, strict=True)):
        np.testing.assert_array_equal(histories[window], grid.values[row, origin - 29 : origin + 1])
        np.testing.assert_array_equal(past.actual[window], grid.values[row, origin + 1 : origin + 9])
    assert [profile for call in calls for profile in call[1]] == ["database", "database", None, None]
    assert calls[0][2][0] == np.datetime64("2026-03-02") + np.timedelta64(200, "h")


def test_all_methods_are_scored_on_the_same_points(grid: FleetGrid) -> None:
    """Server 0 has a gap at steps 300 to 319: yesterday cannot forecast 324 to 343, so nobody is scored there."""

    def forecaster(history: np.ndarray, _profiles: object, _origins: object) -> np.ndarray:
        return np.full((len(history), 8, 2, 7), 50.0, dtype=np.float32)

    past = evaluation.backtest(grid, np.array([0]), np.array([322]), 8, 48, QUANTILES, forecaster)
    table = past.scores()
    assert set(table["method"]) == {"model", "last_value", "yesterday", "flat_6h", "flat_24h"}
    assert table.groupby("metric")["points"].nunique().eq(1).all()
    assert table["points"].max() == 2  # of the horizon 323..330 only step 323 is left, in two metrics


def test_profile_quantiles_are_those_of_the_profiles_training_days(grid: FleetGrid) -> None:
    prior = evaluation.profile_quantiles(grid, np.array([0, 1]), 240, QUANTILES)
    expected = np.quantile(grid.values[1, :240, 0], QUANTILES)
    np.testing.assert_allclose(prior["web_api"][0], expected, rtol=1e-5)
    assert set(prior) == {None, "database", "web_api"}


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
def test_short_histories_are_as_long_as_their_labels_say(step_seconds: int, steps: dict[str, int]) -> None:
    assert evaluation.young_histories(step_seconds) == steps


def test_servers_that_are_gone_in_the_later_days_score_nothing(grid: FleetGrid) -> None:
    gone = replace(grid, values=np.where(np.arange(grid.steps)[None, :, None] > 240, np.nan, grid.values))
    prior = evaluation.profile_quantiles(gone, np.array([1]), 240, QUANTILES)
    table = evaluation.cold_start_table(
        gone, np.array([0]), np.array([250, 270]), 8, QUANTILES, lambda *_: np.empty((0, 8, 2, 7)), prior, True
    )
    assert table["wql"].isna().all()


def test_cold_start_table_compares_the_profile_given_and_hidden(grid: FleetGrid) -> None:
    def forecaster(history: np.ndarray, profiles: list[str | None], _origins: object) -> np.ndarray:
        told = np.array([profile is not None for profile in profiles])
        level = np.where(told, 50.0, 90.0)[:, None, None, None]
        return np.broadcast_to(level, (len(history), 8, 2, 7)).astype(np.float32)

    prior = evaluation.profile_quantiles(grid, np.array([1]), 240, QUANTILES)
    table = evaluation.cold_start_table(
        grid, np.array([0, 1]), np.array([250, 270]), 8, QUANTILES, forecaster, prior, knows_profiles=True
    )
    assert list(table["history"].unique()) == ["none", "1 step", "6 h", "24 h"]  # the hour is the step
    without = table[table["history"] == "none"].set_index("method")
    assert set(without.index) == {"model, profile given", "model, profile hidden", "profile_flat"}
    assert without.loc["model, profile given", "accuracy"] > without.loc["model, profile hidden", "accuracy"]
