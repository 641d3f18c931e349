"""What few servers cannot tell about the next one's level: against simulated fleets and Student's distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.training.level_uncertainty import doubt_after, level_doubt
from fleet_forecast.training.sampling import WindowSource

METRICS = ("cpu_pct", "mem_pct")
STEPS, FIT_END = 300, 200


def source_of(levels: np.ndarray, profiles: tuple[str, ...]) -> WindowSource:
    """Servers that measure their levels in link space [server, metric], something else after the training part."""
    servers = len(levels)
    values = np.random.default_rng(0).uniform(30, 60, (servers, STEPS, 2)).astype(np.float32)
    start = np.datetime64("2026-03-02T00:00:00", "s")
    grid = FleetGrid(tuple(f"s{row}" for row in range(servers)), profiles, METRICS, start, 300, values)
    scaling = fit_scaling(values, METRICS, np.array([True, True]), profiles, 48)
    source = WindowSource(grid, WindowSpec(METRICS, 300, "UTC", 48, 12), scaling)
    source.linked[:, :FIT_END] = levels[:, None]
    source.linked[:, FIT_END:] = 1e6
    return source


@pytest.mark.parametrize("servers", [6, 9, 20, 65])
def test_with_the_doubt_bands_cover_the_next_server_as_often_as_they_say(servers: int) -> None:
    """80 % and 96 % bands of a normal distribution as wide as the known servers' levels and the doubt together."""
    levels = np.random.default_rng(servers).normal(50, 8, (servers + 1, 20_000))
    known, next_one = levels[:-1], levels[-1]
    away, own = np.abs(next_one - known.mean(axis=0)), known.std(axis=0)
    z = stats.norm.ppf([[0.9], [0.98]])
    covered, covered_without = (
        100 * (away < z * width).mean(axis=1) for width in (np.hypot(own, doubt_after(known)), own)
    )
    assert covered == pytest.approx([80, 96], abs=4 if servers < 9 else 2.5)
    if servers < 10:
        assert (covered_without < [75, 92]).all()


def test_each_profile_has_its_own_doubt_and_one_of_a_single_server_the_fleets() -> None:
    random = np.random.default_rng(0)
    profiles = ("database",) * 10 + ("web_api",) * 10 + ("generic",)
    scale = np.array([1.0] * 10 + [5.0] * 10 + [1.0])
    levels = 50 + scale[:, None] * random.normal(0, 1, (21, 2))
    source = source_of(levels, profiles)
    doubt = level_doubt(source, np.arange(21), FIT_END)
    names = source.scaling.profiles
    database, web_api, generic = (doubt[1 + names.index(name)] for name in ("database", "web_api", "generic"))
    assert doubt.dtype == np.float32
    expected = np.std(levels[:10], axis=0, ddof=1) * np.sqrt(4 * 9 / (10 * 7))
    np.testing.assert_allclose(database, expected, rtol=1e-4)
    assert (web_api > 2 * database).all()
    np.testing.assert_array_equal(generic, doubt[0])


def test_servers_not_trained_on_and_metrics_not_measured_tell_nothing() -> None:
    levels = np.random.default_rng(1).normal(50, 5, (8, 2))
    source = source_of(levels, ("web_api",) * 8)
    source.linked[7] = 1e9  # held out
    source.linked[0, :, 1] = np.nan
    doubt = level_doubt(source, np.arange(7), FIT_END)
    expected = [
        np.std(column, ddof=1) * np.sqrt(4 * (n - 1) / (n * (n - 3)))
        for column, n in ((levels[:7, 0], 7), (levels[1:7, 1], 6))
    ]
    np.testing.assert_allclose(doubt[1], expected, rtol=1e-4)


def test_a_single_server_leaves_levels_as_they_are() -> None:
    source = source_of(np.full((1, 2), 50.0), ("web_api",))
    np.testing.assert_array_equal(level_doubt(source, np.arange(1), FIT_END), np.zeros((2, 2)))
