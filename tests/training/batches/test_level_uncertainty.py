"""Predictive level uncertainty: against simulated fleets and Student's distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.training.batches.augmentation import predictive_excess
from fleet_forecast.training.batches.sampler import BatchSampler
from fleet_forecast.training.batches.source import WindowSource

METRICS = ("cpu_pct", "mem_pct")
STEPS, TRAIN_END = 300, 200


def source_of(levels: np.ndarray, profiles: tuple[str, ...]) -> WindowSource:
    """Servers with constant transformed levels [server, metric], and other values after the training period."""
    servers = len(levels)
    values = np.random.default_rng(0).uniform(30, 60, (servers, STEPS, 2)).astype(np.float32)
    start = np.datetime64("2026-03-02T00:00:00", "s")
    grid = FleetGrid(tuple(f"s{row}" for row in range(servers)), profiles, METRICS, start, 300, values)
    scaling = fit_scaling(values, dict.fromkeys(METRICS, "percent"), profiles, 48)
    source = WindowSource(grid, WindowSpec(METRICS, 300, BusinessCalendar("UTC"), 48, 12), scaling)
    source.transformed[:, :TRAIN_END] = levels[:, None]
    source.transformed[:, TRAIN_END:] = 1e6
    return source


def uncertainty_of(source: WindowSource, servers: int) -> np.ndarray:
    """Of the first servers."""
    return BatchSampler(source, np.arange(servers), TRAIN_END - 1, 16).level_uncertainty


@pytest.mark.parametrize("servers", [6, 9, 20, 65])
def test_with_level_uncertainty_bands_have_nominal_coverage_of_the_next_server(servers: int) -> None:
    """80 % and 96 % bands of a normal distribution with the variances of the levels and the uncertainty added."""
    levels = np.random.default_rng(servers).normal(50, 8, (servers + 1, 20_000))
    known, next_one = levels[:-1], levels[-1]
    away, own = np.abs(next_one - known.mean(axis=0)), known.std(axis=0)
    z = stats.norm.ppf([[0.9], [0.98]])
    covered, covered_without = (
        100 * (away < z * width).mean(axis=1) for width in (np.hypot(own, predictive_excess(known)), own)
    )
    assert covered == pytest.approx([80, 96], abs=4 if servers < 9 else 2.5)
    if servers < 10:
        assert (covered_without < [75, 92]).all()


def test_each_profile_has_its_own_uncertainty_and_a_single_server_that_of_the_fleet() -> None:
    random = np.random.default_rng(0)
    profiles = ("database",) * 10 + ("web_api",) * 10 + ("generic",)
    scale = np.array([1.0] * 10 + [5.0] * 10 + [1.0])
    levels = 50 + scale[:, None] * random.normal(0, 1, (21, 2))
    source = source_of(levels, profiles)
    uncertainty = uncertainty_of(source, 21)
    names = source.scaling.profiles
    database, web_api, generic = (uncertainty[1 + names.index(name)] for name in ("database", "web_api", "generic"))
    assert uncertainty.dtype == np.float32
    expected = np.std(levels[:10], axis=0, ddof=1) * np.sqrt(4 * 9 / (10 * 7))
    np.testing.assert_allclose(database, expected, rtol=1e-4)
    assert (web_api > 2 * database).all()
    np.testing.assert_array_equal(generic, uncertainty[0])


def test_other_servers_and_unmeasured_metrics_have_no_effect() -> None:
    levels = np.random.default_rng(1).normal(50, 5, (8, 2))
    source = source_of(levels, ("web_api",) * 8)
    source.transformed[7] = 1e9  # held out
    source.transformed[0, :, 1] = np.nan
    uncertainty = uncertainty_of(source, 7)
    expected = [
        np.std(column, ddof=1) * np.sqrt(4 * (n - 1) / (n * (n - 3)))
        for column, n in ((levels[:7, 0], 7), (levels[1:7, 1], 6))
    ]
    np.testing.assert_allclose(uncertainty[1], expected, rtol=1e-4)


def test_a_fleet_of_one_server_has_no_level_uncertainty() -> None:
    source = source_of(np.full((1, 2), 50.0), ("web_api",))
    np.testing.assert_array_equal(uncertainty_of(source, 1), np.zeros((2, 2)))
