"""Earlier days across a change of the clock: the same hour on the wall, not the same number of hours ago."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fleet_forecast.contract.calendar import business_time
from fleet_forecast.features.clock_change import ClockChange, changes_between, earlier_days_by_the_clock
from fleet_forecast.features.earlier_days import Lengths, earlier_days

ZONE, STEP = "America/New_York", 300
DAY, CONTEXT, HORIZON, HALF = 288, 288, 96, 6
PAST = 7 * DAY + HALF
LENGTHS = Lengths(CONTEXT, HORIZON, DAY, DAY, HALF)
SPRING, AUTUMN = "2026-03-08T07:00:00", "2026-11-01T06:00:00"  # UTC, when clocks change


def step_of(time: str) -> int:
    return int(np.datetime64(time, "s").astype(np.int64)) // STEP


def by_the_wall(steps: np.ndarray) -> np.ndarray:
    """A metric that is a function of the time on the wall: float32 [step, 1]."""
    minutes = business_time((steps * STEP).astype("datetime64[s]"), ZONE).minute_of_day
    return minutes[..., None].astype(np.float32)


@pytest.fixture
def past_of() -> Callable[[np.ndarray], np.ndarray]:
    return lambda origins: by_the_wall(origins[:, None] + np.arange(1 - PAST, 1))


@pytest.mark.parametrize(("time", "ahead"), [(SPRING, 12), (AUTUMN, -12)])
def test_changes_of_the_clock_are_found_with_their_size(time: str, ahead: int) -> None:
    at = step_of(time)
    assert changes_between(at - 1, at, STEP, ZONE) == (ClockChange(at, ahead),)
    assert changes_between(at, at + 5_000, STEP, ZONE) == ()
    assert changes_between(at - 5_000, at - 1, STEP, ZONE) == ()
    assert changes_between(at - 5_000, at + 5_000, STEP, "UTC") == ()
    assert changes_between(at // 24 - 9, at // 24 + 9, 24 * STEP, ZONE) == ()  # half a step cannot be moved


@pytest.mark.parametrize("time", [SPRING, AUTUMN])
@pytest.mark.parametrize("hours_after", [-7, -1, 0, 1, 5, 13, 24, 50, 120, 167])
def test_a_server_that_keeps_the_hours_of_the_wall_is_told_them(
    time: str, hours_after: int, past_of: Callable[[np.ndarray], np.ndarray]
) -> None:
    origins = np.array([step_of(time) + 12 * hours_after - 1])
    first = int(origins[0])
    changes = changes_between(first - 9 * DAY, first + HORIZON, STEP, ZONE)
    assert len(changes) == 1
    days = earlier_days_by_the_clock(past_of(origins), origins, changes, LENGTHS)
    target = by_the_wall(origins[:, None] + np.arange(1 - CONTEXT, HORIZON + 1))
    there = ~np.isnan(days.usual)
    assert there.mean() > 0.95
    wrong = np.abs(days.usual - target)[there] > 0.5
    assert wrong.mean() < 0.05  # the hour that is there twice, or not at all
    yesterday = ~np.isnan(days.yesterday)
    assert (np.abs(days.yesterday - target[:, CONTEXT:])[yesterday] > 0.5).mean() <= 12 / HORIZON
    by_hours = earlier_days(past_of(origins), LENGTHS).usual
    assert (np.abs(by_hours - target) > 0.5).mean() > 0.03  # what the change would do otherwise


def test_windows_that_see_no_change_are_left_as_they_are(past_of: Callable[[np.ndarray], np.ndarray]) -> None:
    origins = step_of(SPRING) + np.array([-HORIZON - 1, 12, PAST - 1 + 1])
    changes = changes_between(int(origins.min()) - 9 * DAY, int(origins.max()) + HORIZON, STEP, ZONE)
    together = earlier_days_by_the_clock(past_of(origins), origins, changes, LENGTHS)
    without = earlier_days(past_of(origins), LENGTHS)
    for ours, plain in zip(together, without, strict=True):
        np.testing.assert_array_equal(ours[[0, 2]], plain[[0, 2]])
    assert not np.array_equal(together.usual[1], without.usual[1], equal_nan=True)
