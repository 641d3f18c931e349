"""Scaling: bounds, round trips, and what shrinkage does at both ends of history."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.features.quantile_map import LEVELS, NORMAL_SCORES
from fleet_forecast.features.scaling import FleetScaling, fit_scaling

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
    return fit_scaling(fleet, METRICS, PERCENT, ("busy",) * 4 + ("idle",) * 4, 288)


@given(st.floats(0, 100), st.floats(0, 1e6))
def test_link_is_finite_and_its_inverse_stays_near_and_within_bounds(percent: float, latency_ms: float) -> None:
    scaling = fit_scaling(np.full((1, 2, 2), 20.0, np.float32), METRICS, PERCENT, (None,), 2)
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
    scaling = fit_scaling(np.full((1, 2, 2), 20.0, np.float32), METRICS, PERCENT, (None,), 2)
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
    scale = scaling.window_scale(nothing, np.zeros((3, 2), dtype=np.float32), rows)
    np.testing.assert_allclose(scale.centre, scaling.centre[rows], rtol=1e-6)
    np.testing.assert_allclose(scale.spread, scaling.spread[rows], rtol=1e-6)


def test_with_a_day_of_history_the_server_speaks_for_itself(scaling: FleetScaling, fleet: np.ndarray) -> None:
    day = scaling.to_link(fleet[:1, :288])
    told_wrongly = scaling.window_scale(
        day, np.full((1, 2), 288), scaling.profile_rows(np.array(["idle"], dtype=object))
    )
    np.testing.assert_allclose(told_wrongly.centre[0], day[0].mean(axis=0), rtol=0.02)
    np.testing.assert_allclose(told_wrongly.spread[0], day[0].std(axis=0), rtol=0.05)


def test_a_window_is_shrunk_by_the_weights_of_its_measured_steps(scaling: FleetScaling, fleet: np.ndarray) -> None:
    """Against a plain loop: the mean's weight, the spread narrowed by it, the deviation's weight on a log scale."""
    window = scaling.to_link(fleet[5:6, :5])
    window[0, 2, 0] = np.nan
    scale = scaling.window_scale(window, np.array([[4, 5]]), scaling.profile_rows(np.array(["idle"], dtype=object)))
    for metric, n in ((0, 4), (1, 5)):
        seen = [float(value) for value in window[0, :, metric] if not np.isnan(value)]
        centre, spread, within = (
            float(table[2, metric]) for table in (scaling.centre, scaling.spread, scaling.spread_within)
        )
        between = 0.0 if n == 4 else math.log(5 / 4) / math.log(16 / 4)  # kept at 0, 1, 4, 16, ... steps
        weight, of_spread = (
            (1 - between) * float(table[2, metric, 2]) + between * float(table[2, metric, 3])
            for table in (scaling.level_weight, scaling.spread_weight)
        )
        mean = sum(seen) / n
        own = ((sum((value - mean) ** 2 for value in seen) + 2.0 * within**2) / (n + 2.0)) ** 0.5
        usual = ((1 - weight) * spread**2 + weight * within**2) ** 0.5
        assert scale.centre[0, metric] == pytest.approx(centre + weight * (mean - centre), rel=1e-4)
        assert scale.spread[0, metric] == pytest.approx(usual * (own / usual) ** of_spread, rel=1e-4)


def test_unknown_profiles_share_the_fleet_row(scaling: FleetScaling) -> None:
    assert scaling.profile_rows(np.array(["mainframe", None, "busy"], dtype=object)).tolist() == [0, 0, 1]


def test_a_metric_a_profile_never_reports_takes_the_fleets_statistics(fleet: np.ndarray) -> None:
    partly = fleet.copy()
    partly[:4, :, 1] = np.nan
    scaling = fit_scaling(partly, METRICS, PERCENT, ("busy",) * 4 + ("idle",) * 4, 288)
    assert scaling.centre[1, 1] == scaling.centre[0, 1]
    assert np.isfinite(scaling.spread).all()


def test_after_one_measurement_servers_that_keep_their_level_are_as_narrow_as_they_vary() -> None:
    random = np.random.default_rng(0)
    values = np.linspace(20, 80, 6)[:, None] + random.normal(0, 1, (6, 2880))
    scaling = fit_scaling(values[..., None].astype(np.float32), ("mem_pct",), np.array([True]), (None,) * 6, 288)
    measured = scaling.to_link(np.full((1, 1, 1), 65.0, dtype=np.float32))
    scale = scaling.window_scale(measured, np.ones((1, 1)), np.zeros(1, dtype=np.int64))
    assert scale.centre[0, 0] == pytest.approx(float(measured[0, 0, 0]), abs=1.0)
    assert scale.spread[0, 0] < 0.1 * scaling.spread[0, 0]


def test_without_profiles_it_is_what_the_same_servers_give_untold(fleet: np.ndarray, scaling: FleetScaling) -> None:
    untold = fit_scaling(fleet, METRICS, PERCENT, (None,) * 8, 288)
    for name, value in vars(scaling.without_profiles()).items():
        np.testing.assert_array_equal(value, getattr(untold, name), err_msg=name)


def test_histories_linked_in_parts_are_linked_as_a_whole(
    fleet: np.ndarray, scaling: FleetScaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scaling.to_link(fleet)
    monkeypatch.setattr(
        "fleet_forecast.features.scaling.LINKED_AT_ONCE", 3 * fleet[0].size
    )  # three servers, three, two
    np.testing.assert_array_equal(scaling.to_link(fleet), whole)


def test_servers_that_are_not_chosen_do_not_count(fleet: np.ndarray) -> None:
    profiles, rows = ("busy",) * 2 + ("idle",) * 3, np.array([0, 2, 4, 5, 7])
    among_all = fit_scaling(fleet, METRICS, PERCENT, profiles, 288, rows=rows)
    for name, value in vars(fit_scaling(fleet[rows], METRICS, PERCENT, profiles, 288)).items():
        np.testing.assert_array_equal(getattr(among_all, name), value, err_msg=name)


def test_the_shape_of_no_history_is_how_values_lie_about_the_other_servers_mean(
    fleet: np.ndarray, scaling: FleetScaling
) -> None:
    linked = scaling.to_link(fleet)
    for row, servers in enumerate([linked, linked[:4], linked[4:]]):  # all, busy, idle
        own = servers.mean(axis=1)
        others = (own.sum(axis=0) - own) / (len(own) - 1)
        expected = np.quantile(servers - others[:, None], LEVELS, axis=(0, 1)).T / scaling.spread[row, :, None]
        found = scaling.prior_shape(np.zeros((1, 2)), np.array([row]))[0]
        np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.1)  # ours is of every so many steps


def test_the_shape_a_whole_context_is_drawn_toward_is_the_normal_one(scaling: FleetScaling) -> None:
    for steps in (288, 400):
        shape = scaling.prior_shape(np.full((3, 2), steps), np.arange(3))
        np.testing.assert_allclose(shape, np.broadcast_to(NORMAL_SCORES, shape.shape), rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-2, 1e-4])
def test_a_small_rate_is_scaled_as_a_large_one(fleet: np.ndarray, scaling: FleetScaling, unit: float) -> None:
    smaller = fleet * np.array([1.0, unit], np.float32)
    found = fit_scaling(smaller, METRICS, PERCENT, ("busy",) * 4 + ("idle",) * 4, 288)
    np.testing.assert_allclose(found.spread[:, 1], unit * scaling.spread[:, 1], rtol=1e-3)
    np.testing.assert_allclose(found.spread_within[:, 1], unit * scaling.spread_within[:, 1], rtol=1e-3)
