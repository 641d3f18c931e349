"""The seasonal component: strength equals a plain regression and shrinks where the context does not follow it."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.features.seasonality import FITTED_PARAMETERS, INDEPENDENT_POINTS_PER_DAY, seasonal_component

DAY, AHEAD = 288, 96
Draw = np.random.Generator


@pytest.fixture
def random() -> Draw:
    return np.random.default_rng(3)


def random_days(random: Draw, windows: int = 4) -> np.ndarray:
    return random.normal(size=(windows, DAY + AHEAD, 2)).cumsum(axis=1).astype(np.float32)


def test_a_context_equal_to_the_seasonal_mean_has_strength_one(random: Draw) -> None:
    seasonal = random_days(random)
    result = seasonal_component(seasonal[:, :DAY] + 7.0, seasonal, DAY)  # on another level today
    np.testing.assert_allclose(result.strength, 1.0, atol=1e-3)
    np.testing.assert_allclose(result.component, seasonal - seasonal[:, :DAY].mean(axis=1, keepdims=True), atol=1e-2)


def test_a_context_that_opposes_the_seasonal_mean_or_is_unrelated_has_no_component(random: Draw) -> None:
    seasonal = random.normal(size=(200, DAY + AHEAD, 2)).astype(np.float32)
    assert not seasonal_component(-seasonal[:, :DAY], seasonal, DAY).component.any()
    by_chance = seasonal_component(random.normal(size=(200, DAY, 2)).astype(np.float32), seasonal, DAY)
    assert (by_chance.strength == 0).mean() > 0.99


def test_strength_is_the_shrunken_slope_of_a_regression(random: Draw) -> None:
    seasonal = random_days(random)
    context = 0.6 * seasonal[:, :DAY] + random.normal(size=(4, DAY, 2)).astype(np.float32)
    context[:, 40:90] = np.nan
    seasonal[:, 200:210] = np.nan
    result = seasonal_component(context, seasonal, DAY)
    for window, metric in np.ndindex(4, 2):
        x, y = seasonal[window, :DAY, metric].astype(float), context[window, :, metric].astype(float)
        known = ~np.isnan(x + y)
        slope = np.polyfit(x[known], y[known], 1)[0]
        explained = np.corrcoef(x[known], y[known])[0, 1] ** 2
        points = INDEPENDENT_POINTS_PER_DAY * known.sum() / DAY - FITTED_PARAMETERS
        expected = min(slope, 1.0) * (1 - (1 - explained) / (points * explained))
        assert result.strength[window, metric] == pytest.approx(max(0.0, expected), rel=1e-3)


def test_without_an_earlier_day_strength_is_zero(random: Draw) -> None:
    seasonal = random_days(random)
    context = seasonal[:, :DAY].copy()
    seasonal[:, :DAY] = np.nan
    for result in (
        seasonal_component(context, seasonal, DAY),
        seasonal_component(context[:, :1] * np.nan, seasonal, DAY),
    ):
        assert not result.strength.any()
        assert not result.component.any()


def test_a_few_comparable_hours_give_no_strength(random: Draw) -> None:
    seasonal = random_days(random)
    context = seasonal[:, :DAY].copy()
    seasonal[:, : DAY - 4 * DAY // 24] = np.nan
    assert not seasonal_component(context, seasonal, DAY).strength.any()


@pytest.mark.parametrize("missing_share", [0.2, 0.5])
def test_gaps_hardly_change_the_strength(random: Draw, missing_share: float) -> None:
    seasonal = random_days(random)
    context = seasonal[:, :DAY] + random.normal(0, 0.3, (4, DAY, 2)).astype(np.float32)
    whole = seasonal_component(context, seasonal, DAY).strength
    context[random.random(context.shape) < missing_share] = np.nan
    np.testing.assert_allclose(seasonal_component(context, seasonal, DAY).strength, whole, atol=0.05)


def test_a_constant_seasonal_mean_has_no_component(random: Draw) -> None:
    context = random_days(random)[:, :DAY]
    assert not seasonal_component(context, np.full((4, DAY + AHEAD, 2), 3.0, np.float32), DAY).component.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-30, 1e20, 1e30])
def test_values_whose_squares_overflow_have_no_component_and_raise_no_warning(random: Draw, size: float) -> None:
    seasonal = random_days(random) * np.float32(size)
    result = seasonal_component(seasonal[:, :DAY], seasonal, DAY)
    assert not result.strength.any()
    assert not result.component.any()


@pytest.mark.parametrize("context_steps", [DAY // 12, DAY // 4, DAY, 2 * DAY])
def test_correlated_noise_has_no_strength_at_any_context_length(random: Draw, context_steps: int) -> None:
    """Noise correlated over hours, unrelated to the seasonal mean."""
    steps = np.arange(2 * DAY + AHEAD)
    correlated = np.exp(-np.abs(steps[:, None] - steps) / 24)  # decays over two hours
    seasonal, values = (
        random.multivariate_normal(np.zeros(len(steps)), correlated, 300)[..., None].astype(np.float32)
        for _ in range(2)
    )
    strength = seasonal_component(values[:, :context_steps], seasonal[:, : context_steps + AHEAD], DAY).strength
    assert (strength > 0).mean() < 0.15
    assert strength.mean() < 0.05
