"""The daily rhythm: equal to a plain regression, believed as far as the last day followed it, and no further."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.features.daily_rhythm import FITTED, INDEPENDENT_POINTS, daily_rhythm

DAY, AHEAD = 288, 96
Draw = np.random.Generator


@pytest.fixture
def random() -> Draw:
    return np.random.default_rng(3)


def usual_day(random: Draw, windows: int = 4) -> np.ndarray:
    return random.normal(size=(windows, DAY + AHEAD, 2)).cumsum(axis=1).astype(np.float32)


def test_a_server_that_keeps_its_hours_is_lifted_by_all_of_them(random: Draw) -> None:
    usual = usual_day(random)
    rhythm = daily_rhythm(usual[:, :DAY] + 7.0, usual, DAY)  # on another level today
    np.testing.assert_allclose(rhythm.share, 1.0, atol=1e-3)
    np.testing.assert_allclose(rhythm.lift, usual - usual[:, :DAY].mean(axis=1, keepdims=True), atol=1e-2)


def test_a_server_that_does_the_opposite_or_what_it_likes_is_not_lifted(random: Draw) -> None:
    usual = random.normal(size=(200, DAY + AHEAD, 2)).astype(np.float32)
    assert not daily_rhythm(-usual[:, :DAY], usual, DAY).lift.any()
    by_chance = daily_rhythm(random.normal(size=(200, DAY, 2)).astype(np.float32), usual, DAY)
    assert (by_chance.share == 0).mean() > 0.99


def test_the_share_is_the_shrunken_slope_of_a_regression(random: Draw) -> None:
    usual = usual_day(random)
    context = 0.6 * usual[:, :DAY] + random.normal(size=(4, DAY, 2)).astype(np.float32)
    context[:, 40:90] = np.nan
    usual[:, 200:210] = np.nan
    rhythm = daily_rhythm(context, usual, DAY)
    for window, metric in np.ndindex(4, 2):
        x, y = usual[window, :DAY, metric].astype(float), context[window, :, metric].astype(float)
        known = ~np.isnan(x + y)
        slope = np.polyfit(x[known], y[known], 1)[0]
        explained = np.corrcoef(x[known], y[known])[0, 1] ** 2
        points = INDEPENDENT_POINTS * known.sum() / DAY - FITTED
        expected = min(slope, 1.0) * (1 - (1 - explained) / (points * explained))
        assert rhythm.share[window, metric] == pytest.approx(max(0.0, expected), rel=1e-3)


def test_without_a_day_before_there_is_no_rhythm(random: Draw) -> None:
    usual = usual_day(random)
    context = usual[:, :DAY].copy()
    usual[:, :DAY] = np.nan
    for rhythm in (daily_rhythm(context, usual, DAY), daily_rhythm(context[:, :1] * np.nan, usual, DAY)):
        assert not rhythm.share.any()
        assert not rhythm.lift.any()


def test_the_first_hours_of_a_second_day_prove_no_rhythm(random: Draw) -> None:
    usual = usual_day(random)
    context = usual[:, :DAY].copy()
    usual[:, : DAY - 4 * DAY // 24] = np.nan
    assert not daily_rhythm(context, usual, DAY).share.any()


@pytest.mark.parametrize("missing_share", [0.2, 0.5])
def test_gaps_hardly_change_the_share_of_a_server_that_keeps_its_hours(random: Draw, missing_share: float) -> None:
    usual = usual_day(random)
    context = usual[:, :DAY] + random.normal(0, 0.3, (4, DAY, 2)).astype(np.float32)
    whole = daily_rhythm(context, usual, DAY).share
    context[random.random(context.shape) < missing_share] = np.nan
    np.testing.assert_allclose(daily_rhythm(context, usual, DAY).share, whole, atol=0.05)


def test_a_flat_usual_day_lifts_nothing(random: Draw) -> None:
    context = usual_day(random)[:, :DAY]
    assert not daily_rhythm(context, np.full((4, DAY + AHEAD, 2), 3.0, np.float32), DAY).lift.any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-30, 1e20, 1e30])
def test_values_whose_squares_do_not_fit_are_no_rhythm_and_no_trouble(random: Draw, size: float) -> None:
    usual = usual_day(random) * np.float32(size)
    rhythm = daily_rhythm(usual[:, :DAY], usual, DAY)
    assert not rhythm.share.any()
    assert not rhythm.lift.any()


@pytest.mark.parametrize("context_steps", [DAY // 12, DAY // 4, DAY, 2 * DAY])
def test_a_rhythm_is_proven_by_hours_however_long_the_context_is(random: Draw, context_steps: int) -> None:
    """Noise that lasts for hours, unrelated to the usual day."""
    steps = np.arange(2 * DAY + AHEAD)
    lasting = np.exp(-np.abs(steps[:, None] - steps) / 24)  # decays over two hours
    usual, values = (
        random.multivariate_normal(np.zeros(len(steps)), lasting, 300)[..., None].astype(np.float32) for _ in range(2)
    )
    share = daily_rhythm(values[:, :context_steps], usual[:, : context_steps + AHEAD], DAY).share
    assert (share > 0).mean() < 0.15
    assert share.mean() < 0.05
