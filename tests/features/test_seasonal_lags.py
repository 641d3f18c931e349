"""Seasonal lags across a clock change: the same local time, not the same number of hours ago."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fleet_forecast.contract.calendar import local_time
from fleet_forecast.features.seasonality import ClockChange, LagSteps, changes_between, seasonal_lags

ZONE, STEP = "America/New_York", 300
DAY, CONTEXT, HORIZON, HALF = 288, 288, 96, 6
PAST = 7 * DAY + HALF
STEPS = LagSteps(CONTEXT, HORIZON, DAY, DAY, HALF)
SPRING, AUTUMN = "2026-03-08T07:00:00", "2026-11-01T06:00:00"  # UTC, when clocks change


def step_of(time: str) -> int:
    return int(np.datetime64(time, "s").astype(np.int64)) // STEP


def local_minutes(steps: np.ndarray) -> np.ndarray:
    """A metric that is a function of local time: float32 [step, 1]."""
    minutes = local_time((steps * STEP).astype("datetime64[s]"), ZONE).minute_of_day
    return minutes[..., None].astype(np.float32)


@pytest.fixture
def past_of() -> Callable[[np.ndarray], np.ndarray]:
    return lambda origins: local_minutes(origins[:, None] + np.arange(1 - PAST, 1))


@pytest.mark.parametrize(("time", "ahead"), [(SPRING, 12), (AUTUMN, -12)])
def test_clock_changes_are_found_with_their_size(time: str, ahead: int) -> None:
    at = step_of(time)
    assert changes_between(at - 1, at, STEP, ZONE) == (ClockChange(at, ahead),)
    assert changes_between(at, at + 5_000, STEP, ZONE) == ()
    assert changes_between(at - 5_000, at - 1, STEP, ZONE) == ()
    assert changes_between(at - 5_000, at + 5_000, STEP, "UTC") == ()
    assert changes_between(at // 24 - 9, at // 24 + 9, 24 * STEP, ZONE) == ()  # half a step is left out


@pytest.mark.parametrize("time", [SPRING, AUTUMN])
@pytest.mark.parametrize("hours_after", [-7, -1, 0, 1, 5, 13, 24, 50, 120, 167])
def test_a_server_that_follows_local_time_gets_lags_of_the_same_local_time(
    time: str, hours_after: int, past_of: Callable[[np.ndarray], np.ndarray]
) -> None:
    origins = np.array([step_of(time) + 12 * hours_after - 1])
    first = int(origins[0])
    changes = changes_between(first - 9 * DAY, first + HORIZON, STEP, ZONE)
    assert len(changes) == 1
    lags = seasonal_lags(past_of(origins), origins, changes, STEPS)
    target = local_minutes(origins[:, None] + np.arange(1 - CONTEXT, HORIZON + 1))
    there = ~np.isnan(lags.mean)
    assert there.mean() > 0.95
    wrong = np.abs(lags.mean - target)[there] > 0.5
    assert wrong.mean() < 0.05  # the hour that occurs twice, or not at all
    latest = ~np.isnan(lags.latest)
    assert (np.abs(lags.latest - target[:, CONTEXT:])[latest] > 0.5).mean() <= 12 / HORIZON
    by_hours = seasonal_lags(past_of(origins), origins, (), STEPS).mean
    assert (np.abs(by_hours - target) > 0.5).mean() > 0.03  # without the shift


def test_windows_without_a_clock_change_are_unchanged(past_of: Callable[[np.ndarray], np.ndarray]) -> None:
    origins = step_of(SPRING) + np.array([-HORIZON - 1, 12, PAST - 1 + 1])
    changes = changes_between(int(origins.min()) - 9 * DAY, int(origins.max()) + HORIZON, STEP, ZONE)
    together = seasonal_lags(past_of(origins), origins, changes, STEPS)
    without = seasonal_lags(past_of(origins), origins, (), STEPS)
    for ours, plain in zip(together, without, strict=True):
        np.testing.assert_array_equal(ours[[0, 2]], plain[[0, 2]])
    assert not np.array_equal(together.mean[1], without.mean[1], equal_nan=True)
