"""Scaling: bounds, round trips, and what shrinkage does at both ends of history."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecasting.scaling import FleetScaling, fit_scaling
from forecasting.window_shape import LEVELS

METRICS = ("cpu_pct", "latency_ms")
PERCENT = np.array([True, False])


@pytest.fixture(scope="module")
def fleet() -> np.ndarray:
    random = np.random.default_rng(3)
    busy = random.normal([70, 40], [5, 6], (4, 2000, 2))
    idle = random.normal([10, 5], [3, 1], (4, 2000, 2))
    return np.clip(np.concatenate([busy, idle]), 0.1, 99).astype(np.float32)


@pytest.fixture(scope="module")
def scaling(fleet: np.ndarray) -> FleetScaling:
    return fit_scaling(fleet, METRICS, PERCENT, ("busy",) * 4 + ("idle",) * 4, 288, 3.0)


@given(st.floats(0, 100), st.floats(0, 1e6))
def test_link_is_finite_and_its_inverse_stays_near_and_within_bounds(percent: float, latency_ms: float) -> None:
    scaling = fit_scaling(np.full((1, 2, 2), 20.0, np.float32), METRICS, PERCENT, (None,), 2, 3.0)
    value = np.array([percent, latency_ms], dtype=np.float32)
    linked = scaling.to_link(value)
    assert np.isfinite(linked).all()
    back = scaling.from_link(linked)
    assert 0 <= back[0] <= 100
    assert back[1] >= 0
    assert back[0] == pytest.approx(percent, abs=0.06)
    assert back[1] == pytest.approx(latency_ms, rel=0.02, abs=0.25)


@given(st.floats(-1e3, 1e3))
def test_nothing_in_link_space_leaves_the_physical_range(linked: float) -> None:
    scaling = fit_scaling(np.full((1, 2, 2), 20.0, np.float32), METRICS, PERCENT, (None,), 2, 3.0)
    percent, latency_ms = scaling.from_link(np.array([linked, linked]))
    assert 0 <= percent <= 100
    assert latency_ms >= 0
    assert np.isfinite(latency_ms)


def test_missing_stays_missing(scaling: FleetScaling) -> None:
    linked = scaling.to_link(np.array([[np.nan, 3.0], [50.0, np.nan]], dtype=np.float32))
    assert np.isnan(linked).tolist() == [[True, False], [False, True]]


def test_without_history_a_window_is_scaled_as_its_profile(scaling: FleetScaling) -> None:
    nothing = np.full((3, 5, 2), np.nan, dtype=np.float32)
    rows = scaling.profile_rows(np.array(["busy", "idle", None], dtype=object))
    scale = scaling.window_scale(nothing, rows)
    np.testing.assert_allclose(scale.centre, scaling.centre[rows], rtol=1e-6)
    np.testing.assert_allclose(scale.spread, scaling.spread[rows], rtol=1e-6)


def test_with_a_day_of_history_the_server_speaks_for_itself(scaling: FleetScaling, fleet: np.ndarray) -> None:
    day = scaling.to_link(fleet[:1, :288])
    told_wrongly = scaling.window_scale(day, scaling.profile_rows(np.array(["idle"], dtype=object)))
    np.testing.assert_allclose(told_wrongly.centre[0], day[0].mean(axis=0), rtol=0.02)
    np.testing.assert_allclose(told_wrongly.spread[0], day[0].std(axis=0), rtol=0.05)


def test_shrinkage_follows_the_formula(scaling: FleetScaling, fleet: np.ndarray) -> None:
    """Against a plain loop over metrics: centre n mean / (n + k), log-spread with the same weight."""
    window = scaling.to_link(fleet[5:6, :7])
    window[0, 2, 0] = np.nan
    rows = scaling.profile_rows(np.array(["idle"], dtype=object))
    scale = scaling.window_scale(window, rows)
    for metric in range(2):
        seen = [value for value in window[0, :, metric] if not np.isnan(value)]
        centre, spread = scaling.centre[2, metric], scaling.spread[2, metric]
        units = [(value - centre) / spread for value in seen]
        n, mean = len(units), sum(units) / len(units)
        prior = 2.0 * (scaling.spread_within[2, metric] / spread) ** 2
        deviation = ((sum((unit - mean) ** 2 for unit in units) + prior) / (n + 2.0)) ** 0.5
        weight = n / (n + 3.0)
        assert scale.centre[0, metric] == pytest.approx(centre + spread * weight * mean, rel=1e-4)
        assert scale.spread[0, metric] == pytest.approx(spread * deviation**weight, rel=1e-4)


def test_unknown_profiles_share_the_fleet_row(scaling: FleetScaling) -> None:
    assert scaling.profile_rows(np.array(["mainframe", None, "busy"], dtype=object)).tolist() == [0, 0, 1]


def test_a_metric_a_profile_never_reports_takes_the_fleets_statistics(fleet: np.ndarray) -> None:
    partly = fleet.copy()
    partly[:4, :, 1] = np.nan
    scaling = fit_scaling(partly, METRICS, PERCENT, ("busy",) * 4 + ("idle",) * 4, 288, 3.0)
    assert scaling.centre[1, 1] == scaling.centre[0, 1]
    assert np.isfinite(scaling.spread).all()


def test_k_follows_how_much_servers_differ_and_swing() -> None:
    """Servers alike with a strong daily rhythm: a few hours prove little. Far apart and steady: they prove all."""
    random = np.random.default_rng(0)
    rhythm = 20 * np.sin(2 * np.pi * np.arange(2880) / 288)
    levels = np.linspace(20, 80, 6)[:, None]
    alike = 50 + random.normal(0, 1, (6, 1)) + rhythm + random.normal(0, 1, (6, 2880))
    apart = levels + random.normal(0, 1, (6, 2880))
    values = np.stack([alike, apart], axis=-1).astype(np.float32)
    scaling = fit_scaling(values, ("mem_pct", "cpu_pct"), np.array([True, True]), (None,) * 6, 288)
    assert scaling.shrinkage_steps[0, 0] > 100
    assert scaling.shrinkage_steps[0, 1] == 3


def test_a_server_that_swings_widely_does_not_take_away_the_others_word() -> None:
    random = np.random.default_rng(2)
    values = np.linspace(20, 80, 6)[:, None] + random.normal(0, 1, (6, 2880))
    values[3] = 100.0 * (np.arange(2880) // 100 % 2)
    scaling = fit_scaling(values[..., None].astype(np.float32), ("cpu_pct",), np.array([True]), (None,) * 6, 288)
    assert scaling.shrinkage_steps[0, 0] == 3


def test_the_estimated_k_gives_the_best_weight_of_a_windows_mean() -> None:
    """Against least squares over many servers: regress a server's long-run mean on the mean of one of its windows."""
    random = np.random.default_rng(1)
    own = random.normal(50, 4, (400, 1))
    windows = own[..., None] + random.normal(0, 6, (400, 12, 1))  # means of 72 steps around the server's own
    values = np.repeat(windows, 72, axis=2).reshape(400, -1, 1).astype(np.float32)
    k = fit_scaling(values, ("cpu_pct",), np.array([True]), (None,) * 400, 288).shrinkage_steps[0, 0]
    centred = windows[:, 0, 0] - windows.mean()
    slope = float((centred * (own[:, 0] - own.mean())).sum() / (centred**2).sum())
    assert 72 / (72 + 3 + (k - 3) * 0.75) == pytest.approx(slope, abs=0.06)


def test_without_profiles_it_is_what_the_same_servers_give_untold(fleet: np.ndarray, scaling: FleetScaling) -> None:
    untold = fit_scaling(fleet, METRICS, PERCENT, (None,) * 8, 288, 3.0)
    for name, value in vars(scaling.without_profiles()).items():
        np.testing.assert_array_equal(value, getattr(untold, name), err_msg=name)


def test_histories_linked_in_parts_are_linked_as_a_whole(
    fleet: np.ndarray, scaling: FleetScaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scaling.to_link(fleet)
    monkeypatch.setattr("forecasting.scaling.LINKED_AT_ONCE", 3 * fleet[0].size)  # three servers, three, two
    np.testing.assert_array_equal(scaling.to_link(fleet), whole)


def test_servers_that_are_not_chosen_do_not_count(fleet: np.ndarray) -> None:
    profiles, rows = ("busy",) * 2 + ("idle",) * 3, np.array([0, 2, 4, 5, 7])
    among_all = fit_scaling(fleet, METRICS, PERCENT, profiles, 288, rows=rows)
    for name, value in vars(fit_scaling(fleet[rows], METRICS, PERCENT, profiles, 288)).items():
        np.testing.assert_array_equal(getattr(among_all, name), value, err_msg=name)


def test_the_shape_is_how_a_profiles_values_lie_about_its_centre(fleet: np.ndarray, scaling: FleetScaling) -> None:
    linked = scaling.to_link(fleet)
    for row, servers in enumerate([linked, linked[:4], linked[4:]]):  # all, busy, idle
        expected = (np.quantile(servers, LEVELS, axis=(0, 1)).T - scaling.centre[row, :, None]) / scaling.spread[
            row, :, None
        ]
        np.testing.assert_allclose(scaling.shape[row], expected, rtol=1e-3, atol=1e-3)
