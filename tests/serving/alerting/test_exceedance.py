"""Exceedance probabilities and crossing times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.serving.alerting.bounds import Limit
from fleet_forecast.serving.alerting.exceedance import (
    breach_probability,
    crossing_times,
    cumulative_probability,
    exceedance_probability,
    nearest_level,
)
from tests.serving.alerting.examples import LEVELS, STEP, forecast


@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=7, max_size=7),
    thresholds=st.lists(st.floats(-2e3, 2e3), min_size=2, max_size=2),
)
def test_the_probability_falls_with_the_threshold_and_agrees_with_the_quantiles(values, thresholds):
    quantiles = np.sort(np.array(values))[None, :, None]
    low, high = sorted(thresholds)
    at = [float(exceedance_probability(quantiles, LEVELS, np.array([t]))[0, 0]) for t in (low, high)]
    assert 0 <= at[1] <= at[0] <= 1
    for level, value in zip(LEVELS, quantiles[0, :, 0], strict=True):
        above = float(exceedance_probability(quantiles, LEVELS, np.array([value + 1e-2 * (1 + abs(value))]))[0, 0])
        assert above <= 1 - level + 1e-6


def test_the_probability_is_exact_between_quantiles():
    quantiles = np.array([0, 10, 20, 30, 40, 50, 60.0])[None, :, None]
    found = [float(exceedance_probability(quantiles, LEVELS, np.array([t]))[0, 0]) for t in (0, 15, 30, 45, 60)]
    np.testing.assert_allclose(found, [0.98, 0.825, 0.5, 0.175, 0.02])
    assert float(exceedance_probability(quantiles, LEVELS, np.array([70]))[0, 0]) == pytest.approx(0.02 / np.e)
    assert float(exceedance_probability(quantiles, LEVELS, np.array([np.nan]))[0, 0]) == 0


def test_a_constant_forecast_is_above_or_below():
    quantiles = np.full((1, 7, 1), 50.0)
    assert float(exceedance_probability(quantiles, LEVELS, np.array([49.0]))[0, 0]) > 0.99
    assert float(exceedance_probability(quantiles, LEVELS, np.array([51.0]))[0, 0]) < 0.01


def test_crossing_times_have_an_80_percent_band():
    rising = forecast(np.arange(96), width=5.0)
    found = crossing_times(rising, "cpu_pct", Limit(50.0))
    assert found.expected_seconds == 52 * STEP
    assert found.earliest_seconds == 48 * STEP
    assert found.latest_seconds == 56 * STEP
    assert crossing_times(rising, "cpu_pct", Limit(500.0)).expected_seconds is None


def test_the_band_of_a_model_without_its_levels_is_that_of_the_nearest_ones():
    assert [nearest_level((0.05, 0.5, 0.95), level) for level in (0.1, 0.5, 0.9)] == [0, 1, 2]


def test_a_lower_bound_is_crossed_with_the_probability_below_it_and_both_bounds_add_up():
    quantiles = np.array([0, 10, 20, 30, 40, 50, 60.0])[None, :, None]
    limits = np.array([[np.nan, 15.0], [45.0, 15.0], [45.0, np.nan], [np.nan, np.nan]])
    found = breach_probability(np.repeat(quantiles, 4, axis=0), LEVELS, limits)[:, 0]
    np.testing.assert_allclose(found, [0.175, 0.35, 0.175, 0])
    assert np.isnan(cumulative_probability(quantiles, LEVELS, np.array([np.nan]))).all()


def test_crossing_times_of_a_lower_bound_have_the_band_in_reverse():
    falling = forecast(100 - np.arange(96), width=5.0)
    found = crossing_times(falling, "cpu_pct", Limit(50.0, is_lower=True))
    assert found == (52 * STEP, 48 * STEP, 56 * STEP)
