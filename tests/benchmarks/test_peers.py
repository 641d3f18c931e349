"""Features and scores of the methods that the model is compared with."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fleet_forecast.features.grid import FleetGrid

DAY = 288


@pytest.fixture(scope="module")
def peers():
    path = Path(__file__).parents[2] / "benchmarks" / "peers.py"
    spec = importlib.util.spec_from_file_location("peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["peers"]


def fleet_task(peers, values):
    names = tuple(f"s{row}" for row in range(len(values)))
    start = np.datetime64("2026-11-02T00:00:00", "s")
    grid = FleetGrid(names, (None,) * len(names), ("cpu_pct",), start, 300, values[:, :, None])
    return peers.Task("test", grid, 96, DAY, int(grid.steps * 0.7))


def test_the_features_of_a_step_look_up_the_same_time_of_the_previous_day_and_week(peers):
    history = np.arange(7 * DAY + 12, dtype=np.float32)[None]  # the value is the position
    steps = np.array([[1, 96]])
    last = history.shape[1] - 1
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    found = peers.step_features(history, steps, DAY, zero, one)[0]
    for row, step in zip(found, (1, 96), strict=True):
        assert row[0] == last + step - DAY
        assert row[1] == pytest.approx(last + step - DAY)  # the mean of the 2 hours around it
        assert row[2] == last + step - 7 * DAY
        assert row[4] == pytest.approx(last + step - 4 * DAY)  # the mean of seven days


def test_the_seasonal_mean_of_a_server_that_repeats_its_day_is_exact(peers):
    day = np.random.default_rng(0).uniform(20, 60, (1, DAY, 2)).astype(np.float32)
    history = np.tile(day, (1, 8, 1))[:, -(7 * DAY + 12) :]
    made = peers.seasonal_mean(history, 96, DAY, (0.1, 0.5, 0.9))
    assert made.shape == (1, 96, 2, 3)
    np.testing.assert_allclose(made, np.repeat(day[:, :96, :, None], 3, axis=3), rtol=1e-3)


def test_missing_values_are_missing_features(peers):
    history = np.full((2, 7 * DAY + 12), np.nan, dtype=np.float32)
    history[1, -1] = 5
    table, loc, scale = peers.features(history, np.array([0, 0]), np.array([[1], [2]]), fleet_task(peers, history))
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert loc.tolist() == [0, 5]
    assert np.isnan(table[0, :5]).all()


def fold_scores(of_methods: dict[str, float], total: float) -> pd.DataFrame:
    """Scores of a fold with one metric, the same for training and unseen servers."""
    rows = [
        {"method": method, "servers": servers, "metric": metric, "wql": wql, "total": total}
        for servers in ("training", "unseen")
        for method, wql in of_methods.items()
        for metric in ("cpu_pct", "mean")
    ]
    return pd.DataFrame(rows).assign(accuracy=0.0, mase=0.0, coverage_80=0.0)


def test_ratios_are_to_the_best_baseline_of_the_same_servers(peers):
    quiet, busy = {"lightgbm": 0.5, "flat": 1.0, "last": 2.0}, {"lightgbm": 3.0, "flat": 4.0, "last": 6.0}
    table = peers.summarise([fold_scores(quiet, 10.0), fold_scores(busy, 30.0)]).set_index(["servers", "method"])
    assert table["ratio"]["unseen", "lightgbm"] == pytest.approx((0.5 + 0.75) / 2)
    assert table["ratio"]["training", "last"] == pytest.approx((2 + 1.5) / 2)


def test_all_folds_together_are_scored_as_one_set_of_servers(peers):
    quiet, busy = {"lightgbm": 0.5, "flat": 1.0, "last": 2.0}, {"lightgbm": 3.0, "flat": 4.0, "last": 6.0}
    table = peers.summarise([fold_scores(quiet, 10.0), fold_scores(busy, 30.0)]).set_index(["servers", "method"])
    assert table["pooled"]["unseen", "lightgbm"] == pytest.approx((0.5 * 10 + 3 * 30) / (1 * 10 + 4 * 30))
    assert table["pooled"]["unseen", "flat"] == 1


def test_every_server_is_held_out_once(peers):
    task = fleet_task(peers, np.zeros((7, 4000), dtype=np.float32))
    assert sorted(np.concatenate([part.unseen for part in peers.held_out(task, 3)]).tolist()) == list(range(7))


@pytest.mark.slow
def test_lightgbm_finds_a_daily_seasonality_that_window_quantiles_miss(peers, monkeypatch):
    monkeypatch.setattr(peers, "MAX_TRAIN_ROWS", 12_000)
    monkeypatch.setattr(peers, "TREES", peers.TREES.set_params(n_estimators=60, learning_rate=0.1))
    random = np.random.default_rng(0)
    hours = np.arange(14 * DAY) / DAY * 2 * np.pi
    values = (50 + 30 * np.sin(hours) + random.normal(0, 2, (6, hours.size))).astype(np.float32)
    scores, _ = peers.compare(fleet_task(peers, values), peers.Parts(np.array([5]), np.array([2])), None)
    unseen = scores[(scores["servers"] == "unseen") & (scores["metric"] == "mean")].set_index("method")["wql"]
    assert unseen["lightgbm"] < 0.5 * unseen["window_quantiles_24h"]
