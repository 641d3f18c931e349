"""The tables of the real servers: folds apart, and all of their servers together."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.real_servers import markdown, table_of
from fleet_forecast.evaluation.backtest import Backtest
from fleet_forecast.evaluation.scores import score_table
from tft_trainer import scores_as_json

METRICS = ("cpu_pct", "mem_pct")
QUANTILES = (0.1, 0.5, 0.9)


def backtest_of(levels: tuple[float, ...], seed: int) -> Backtest:
    """Windows of servers at different levels; "model" is near what happened, "window_quantiles_24h" farther off."""
    random = np.random.default_rng(seed)
    actual = random.exponential(1, (len(levels), 6, 2)) * np.array(levels)[:, None, None]
    offsets = np.array([-1.0, 0.0, 1.0])
    forecasts = {
        name: (actual + random.normal(0, far, actual.shape))[..., None] + far * offsets
        for name, far in (("model", 1.0), ("window_quantiles_24h", 3.0))
    }
    rows = np.arange(len(levels))
    return Backtest(METRICS, QUANTILES, rows, rows, actual, np.ones((len(levels), 2)), forecasts)


def test_all_together_is_the_score_of_all_windows_at_once_and_the_ratio_the_mean_of_the_folds() -> None:
    folds = [backtest_of((1.0, 2.0), 0), backtest_of((80.0, 5.0), 1)]
    as_printed = [{"trained": {"scores": scores_as_json({"unseen": fold.scores()})}} for fold in folds]
    table = table_of(as_printed).set_index("method")
    apart: dict[str, list[float]] = {name: [] for name in ("model", "window_quantiles_24h")}
    at_once = {}
    for name, of_fold in apart.items():
        parts = [(fold.actual, fold.forecasts[name], fold.seasonal_error) for fold in folds]
        for actual, made, naive in parts:
            of_fold.append(score_table(actual, made, QUANTILES, np.ones(actual.shape, dtype=bool), naive)["wql"].mean())
        actual, made, naive = (np.concatenate(part) for part in zip(*parts, strict=True))
        at_once[name] = score_table(actual, made, QUANTILES, np.ones(actual.shape, dtype=bool), naive)["wql"].mean()
    ratios = np.array(apart["model"]) / np.array(apart["window_quantiles_24h"])
    assert table.loc["model", "ratio"] == pytest.approx(ratios.mean(), rel=1e-4)
    assert table.loc["model", "spread"] == pytest.approx(ratios.std(ddof=1), rel=1e-3)
    assert table.loc["model", "together"] == pytest.approx(at_once["model"] / at_once["window_quantiles_24h"], rel=1e-4)
    assert table.loc["window_quantiles_24h", "together"] == 1
    assert abs(table.loc["model", "together"] - table.loc["model", "ratio"]) > 0.005
    assert f"| **model** | {ratios.mean():.2f} ± " in markdown("", table.reset_index())
