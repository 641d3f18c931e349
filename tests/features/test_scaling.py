"""Scaling: physical bounds, round trips, and shrinkage by length of history."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.contract.definitions import Kind
from fleet_forecast.features.quantile_map import KNOT_LEVELS, NORMAL_SCORES
from fleet_forecast.features.scaling import FleetScaling, fit_scaling
from fleet_forecast.network.head import QuantileHead

KINDS: dict[str, Kind] = {"cpu_pct": "percent", "latency_ms": "rate"}


@pytest.fixture(scope="module")
def fleet() -> np.ndarray:
    random = np.random.default_rng(3)
    busy = random.normal([70, 40], [5, 6], (4, 2000, 2))
    idle = random.normal([10, 5], [3, 1], (4, 2000, 2))
    return np.clip(np.concatenate([busy, idle]), 0.1, 99).astype(np.float32)


@pytest.fixture(scope="module")
def scaling(fleet: np.ndarray) -> FleetScaling:
    return fit_scaling(fleet, KINDS, ("busy",) * 4 + ("idle",) * 4, 288)


@given(st.floats(0, 100), st.floats(0, 1e6))
def test_the_transform_is_finite_and_its_inverse_near_and_within_bounds(percent: float, latency_ms: float) -> None:
    scaling = fit_scaling(np.full((1, 2, 2), 20.0, np.float32), KINDS, (None,), 2)
    value = np.array([percent, latency_ms], dtype=np.float32)
    transformed = scaling.bounds.transform(value)
    assert np.isfinite(transformed).all()
    back = scaling.bounds.inverse(transformed)
    assert 0 <= back[0] <= 100
    assert back[1] >= 0
    assert back[0] == pytest.approx(percent, abs=0.06)
    assert back[1] == pytest.approx(latency_ms, rel=0.02, abs=0.25)


@given(st.floats(-1e3, 1e3))
def test_the_inverse_of_any_number_is_within_the_physical_range(value: float) -> None:
    scaling = fit_scaling(np.full((1, 2, 2), 20.0, np.float32), KINDS, (None,), 2)
    percent, latency_ms = scaling.bounds.inverse(np.array([value, value]))
    assert 0 <= percent <= 100
    assert latency_ms >= 0
    assert np.isfinite(latency_ms)


def test_missing_values_stay_missing(scaling: FleetScaling) -> None:
    transformed = scaling.bounds.transform(np.array([[np.nan, 3.0], [50.0, np.nan]], dtype=np.float32))
    assert np.isnan(transformed).tolist() == [[True, False], [False, True]]


def test_without_history_a_window_has_the_scale_of_its_profile(scaling: FleetScaling) -> None:
    nothing = np.full((3, 5, 2), np.nan, dtype=np.float32)
    rows = scaling.profile_rows(np.array(["busy", "idle", None], dtype=object))
    scale = scaling.window_scale(nothing, np.zeros((3, 2), dtype=np.float32), rows)
    np.testing.assert_allclose(scale.loc, scaling.loc[rows], rtol=1e-6)
    np.testing.assert_allclose(scale.scale, scaling.scale[rows], rtol=1e-6)


def test_with_a_day_of_history_a_window_has_its_own_scale(scaling: FleetScaling, fleet: np.ndarray) -> None:
    day = scaling.bounds.transform(fleet[:1, :288])
    with_wrong_profile = scaling.window_scale(
        day, np.full((1, 2), 288), scaling.profile_rows(np.array(["idle"], dtype=object))
    )
    np.testing.assert_allclose(with_wrong_profile.loc[0], day[0].mean(axis=0), rtol=0.02)
    np.testing.assert_allclose(with_wrong_profile.scale[0], day[0].std(axis=0), rtol=0.05)


def test_shrinkage_equals_a_plain_loop(scaling: FleetScaling, fleet: np.ndarray) -> None:
    """The weight of the mean, the scale narrowed by it, the weight of the deviation on a log scale."""
    window = scaling.bounds.transform(fleet[5:6, :5])
    window[0, 2, 0] = np.nan
    scale = scaling.window_scale(window, np.array([[4, 5]]), scaling.profile_rows(np.array(["idle"], dtype=object)))
    for metric, n in ((0, 4), (1, 5)):
        seen = [float(value) for value in window[0, :, metric] if not np.isnan(value)]
        loc, total, within = (float(table[2, metric]) for table in (scaling.loc, scaling.scale, scaling.scale_within))
        between = 0.0 if n == 4 else math.log(5 / 4) / math.log(16 / 4)  # weights are stored at 0, 1, 4, 16, ... steps
        weight, scale_weight = (
            (1 - between) * float(table[2, metric, 2]) + between * float(table[2, metric, 3])
            for table in (scaling.loc_weight, scaling.scale_weight)
        )
        mean = sum(seen) / n
        own = ((sum((value - mean) ** 2 for value in seen) + 2.0 * within**2) / (n + 2.0)) ** 0.5
        expected = ((1 - weight) * total**2 + weight * within**2) ** 0.5
        assert scale.loc[0, metric] == pytest.approx(loc + weight * (mean - loc), rel=1e-4)
        assert scale.scale[0, metric] == pytest.approx(expected * (own / expected) ** scale_weight, rel=1e-4)


def test_unknown_profiles_have_the_row_of_the_fleet(scaling: FleetScaling) -> None:
    assert scaling.profile_rows(np.array(["mainframe", None, "busy"], dtype=object)).tolist() == [0, 0, 1]


def test_a_metric_a_profile_never_reports_takes_the_fleets_statistics(fleet: np.ndarray) -> None:
    partly = fleet.copy()
    partly[:4, :, 1] = np.nan
    scaling = fit_scaling(partly, KINDS, ("busy",) * 4 + ("idle",) * 4, 288)
    assert scaling.loc[1, 1] == scaling.loc[0, 1]
    assert np.isfinite(scaling.scale).all()


def test_after_one_measurement_the_scale_of_steady_servers_is_their_own_deviation() -> None:
    random = np.random.default_rng(0)
    values = np.linspace(20, 80, 6)[:, None] + random.normal(0, 1, (6, 2880))
    scaling = fit_scaling(values[..., None].astype(np.float32), {"mem_pct": "percent"}, (None,) * 6, 288)
    measured = scaling.bounds.transform(np.full((1, 1, 1), 65.0, dtype=np.float32))
    scale = scaling.window_scale(measured, np.ones((1, 1)), np.zeros(1, dtype=np.int64))
    assert scale.loc[0, 0] == pytest.approx(float(measured[0, 0, 0]), abs=1.0)
    assert scale.scale[0, 0] < 0.1 * scaling.scale[0, 0]


def test_without_profiles_it_equals_a_fit_without_profiles(fleet: np.ndarray, scaling: FleetScaling) -> None:
    unprofiled = fit_scaling(fleet, KINDS, (None,) * 8, 288)
    for name, value in vars(scaling.without_profiles()).items():
        np.testing.assert_array_equal(value, getattr(unprofiled, name), err_msg=name)


def test_histories_transformed_in_parts_equal_the_whole(
    fleet: np.ndarray, scaling: FleetScaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scaling.bounds.transform(fleet)
    monkeypatch.setattr(
        "fleet_forecast.features.bounded_transform.VALUES_AT_ONCE", 3 * fleet[0].size
    )  # three servers, three, two
    np.testing.assert_array_equal(scaling.bounds.transform(fleet), whole)


def test_servers_that_are_not_chosen_have_no_effect(fleet: np.ndarray) -> None:
    profiles, rows = ("busy",) * 2 + ("idle",) * 3, np.array([0, 2, 4, 5, 7])
    among_all = fit_scaling(fleet, KINDS, profiles, 288, rows=rows)
    for name, value in vars(fit_scaling(fleet[rows], KINDS, profiles, 288)).items():
        np.testing.assert_array_equal(getattr(among_all, name), value, err_msg=name)


def test_the_prior_quantiles_without_history_are_those_about_the_mean_of_the_other_servers(
    fleet: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the profiles' estimates are not drawn to the fleet's."""
    monkeypatch.setattr("fleet_forecast.features.cold_start.FEWEST_SERVERS_OF_HALVES", 100)
    scaling = fit_scaling(fleet, KINDS, ("busy",) * 4 + ("idle",) * 4, 288)
    transformed = scaling.bounds.transform(fleet)
    for row, servers in enumerate([transformed, transformed[:4], transformed[4:]]):  # all, busy, idle
        own = servers.mean(axis=1)
        others = (own.sum(axis=0) - own) / (len(own) - 1)
        expected = np.quantile(servers - others[:, None], KNOT_LEVELS, axis=(0, 1)).T / scaling.scale[row, :, None]
        found = scaling.prior_quantiles(np.zeros((1, 2)), np.array([row]))[0]
        np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.1)  # the prior samples steps


def test_the_prior_quantiles_of_a_whole_context_are_normal(scaling: FleetScaling) -> None:
    for steps in (288, 400):
        prior = scaling.prior_quantiles(np.full((3, 2), steps), np.arange(3))
        np.testing.assert_allclose(prior, np.broadcast_to(NORMAL_SCORES, prior.shape), rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-2, 1e-4])
def test_scaling_does_not_depend_on_the_unit_of_a_rate(fleet: np.ndarray, scaling: FleetScaling, unit: float) -> None:
    smaller = fleet * np.array([1.0, unit], np.float32)
    found = fit_scaling(smaller, KINDS, ("busy",) * 4 + ("idle",) * 4, 288)
    np.testing.assert_allclose(found.scale[:, 1], unit * scaling.scale[:, 1], rtol=1e-3)
    np.testing.assert_allclose(found.scale_within[:, 1], unit * scaling.scale_within[:, 1], rtol=1e-3)


def test_a_metric_that_may_be_any_number_is_not_transformed_unlike_those_with_bounds(fleet: np.ndarray) -> None:
    celsius = np.random.default_rng(4).normal(-5, 3, (8, 2000, 1)).astype(np.float32)
    values, profiles = np.concatenate([fleet, celsius], axis=2), ("busy",) * 4 + ("idle",) * 4
    with_value = fit_scaling(values, {**KINDS, "celsius": "value"}, profiles, 288)
    alone = fit_scaling(fleet, KINDS, profiles, 288)
    transformed = with_value.bounds.transform(values[:, :50])
    assert np.array_equal(transformed[..., 2], celsius[:, :50, 0])
    assert np.array_equal(transformed[..., :2], alone.bounds.transform(fleet[:, :50]))
    back = with_value.bounds.inverse(transformed)
    assert np.array_equal(back[..., 2], celsius[:, :50, 0])
    assert np.array_equal(back[..., :2], alone.bounds.inverse(transformed[..., :2]))
    assert np.array_equal(with_value.scale[:, :2], alone.scale)
    assert with_value.loc[0, 2] == pytest.approx(-5, abs=0.1)
    head = QuantileHead(with_value.bounds).inverse(torch.from_numpy(transformed.transpose(0, 2, 1)[:, :, None].copy()))
    assert head[:, :, 0].numpy().transpose(0, 2, 1) == pytest.approx(back, abs=2e-3)
