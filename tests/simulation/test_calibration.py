"""Parameters that give the documented means and spreads, against plain simulation."""

import numpy as np
import pytest

from fleet_forecast.contract.calendar import BUSINESS_DAY, WEEKEND_DAY
from fleet_forecast.simulation.calibration import calibrate, noise_mean, soft_limit
from fleet_forecast.simulation.metric_model import simulated
from fleet_forecast.simulation.rhythm import demand_table, smoothed
from server_profiles import PROFILES, ServerProfile


@pytest.mark.parametrize("profile", ServerProfile)
def test_many_draws_of_cpu_have_the_documented_mean_and_spread_over_a_week(profile):
    calibration, baseline = calibrate(profile), PROFILES[profile].baselines["cpu_pct"]
    table = np.log(demand_table(profile)[[BUSINESS_DAY] * 5 + [WEEKEND_DAY] * 2].astype(float)).ravel()[::20]
    noise = np.random.default_rng(1).standard_normal((4_000, 1))
    cpu = simulated().positions["cpu_pct"]
    deviation = np.hypot(calibration.between[cpu], calibration.within[cpu])
    share = 100 / (1 + np.exp(-(calibration.loc[cpu] + table + deviation * noise)))
    assert share.mean() == pytest.approx(baseline.mean, rel=0.01)
    assert np.sqrt(np.mean((share - share.mean(axis=0)) ** 2)) == pytest.approx(baseline.spread, rel=0.05)


@pytest.mark.parametrize("profile", ServerProfile)
def test_parameters_are_positive_and_memory_moves_less_in_time_than_cpu_does(profile):
    calibration = calibrate(profile)
    assert (calibration.between > 0).all()
    assert (calibration.within > 0).all()
    ratio = calibration.within / calibration.between
    assert ratio[simulated().memory] < ratio[simulated().positions["cpu_pct"]]


@pytest.mark.parametrize("strength", [0.7, 1.0, 1.4])
def test_rhythm_means_are_the_means_over_the_week(strength):
    calibration = calibrate(ServerProfile.WEB_API)
    table = demand_table(ServerProfile.WEB_API)[[BUSINESS_DAY] * 5 + [WEEKEND_DAY] * 2].astype(float)
    interpolated = np.interp(strength, calibration.rhythm_strengths, calibration.rhythm_means)
    assert interpolated == pytest.approx(np.mean(table**strength), rel=2e-3)


def test_the_soft_limit_keeps_order_and_is_never_reached():
    factors = soft_limit(np.geomspace(0.01, 1e6, 200))
    assert (np.diff(factors) > 0).all()
    assert factors.max() < 25
    assert soft_limit(np.array(1.0)) == pytest.approx(1, abs=0.05)


def test_smoothing_is_the_plain_recursion():
    curve = np.random.default_rng(2).standard_normal(500)
    average, plain = curve[0], []
    for value in curve:
        average += (value - average) * (1 - np.exp(-1 / 180))
        plain.append(average)
    assert smoothed(curve) == pytest.approx(np.array(plain))


def test_without_noise_the_factor_is_the_soft_limit_of_1():
    assert noise_mean(np.array(0.0)) == pytest.approx(soft_limit(np.array(1.0)))
