"""The same time of earlier days across a change of the clock.

People and their timers keep the hours of the clock on the wall. When daylight saving begins or ends, 24 hours ago was
another hour by that clock, and for a week the mean over earlier days mixes both. So for the steps after a change, what
was measured before it is moved by the change first: nine o'clock is compared with nine o'clock.

Forecasts are made so. Training takes days as 24 hours: of its windows few see a change, and those it can do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import clock_changes
from fleet_forecast.features.earlier_days import EarlierDays, Lengths, earlier_days


class ClockChange(NamedTuple):
    """From `step` (since the epoch) on, clocks show `ahead_steps` more than before."""

    step: int
    ahead_steps: int


def changes_between(first_step: int, last_step: int, step_seconds: int, timezone: str) -> tuple[ClockChange, ...]:
    """Changes of the clock after the first step and up to the last; only whole steps can be moved."""
    first, last = (np.datetime64(step * step_seconds, "s") for step in (first_step, last_step))
    found = ((int(at.astype(np.int64)), int(by.astype(np.int64))) for at, by in clock_changes(first, last, timezone))
    return tuple(ClockChange(-(-at // step_seconds), by // step_seconds) for at, by in found if not by % step_seconds)


def earlier_days_by_the_clock(
    past: np.ndarray,
    origin_steps: np.ndarray,
    changes: Sequence[ClockChange],
    lengths: Lengths,
) -> EarlierDays:
    """As earlier_days, for windows with these origins (int64 [window], steps since the epoch)."""
    moved = []
    for change in changes:
        at = change.step - (origin_steps - past.shape[1] + 1)  # where in the past of each window
        rows = np.flatnonzero((at > 0) & (change.step <= origin_steps + lengths.horizon))
        moved.append((change, rows, np.array([_moved(past[row], int(at[row]), change.ahead_steps) for row in rows])))
    days = earlier_days(past, lengths)
    for change, rows, relaid in moved:
        if rows.size:
            by_the_clock = earlier_days(relaid, lengths)
            for field, of_field in zip(days, by_the_clock, strict=True):
                steps = origin_steps[rows, None] + lengths.horizon - np.arange(field.shape[1])[::-1]
                after = (steps >= change.step)[:, :, None]
                field[rows] = np.where(after, of_field, field[rows])
    return days


def _moved(past: np.ndarray, at: int, ahead_steps: int) -> np.ndarray:
    """The past of one window [step, metric] as if clocks had always shown what they do from position `at` on."""
    moved = np.full_like(past, np.nan)
    before = past[:at]
    if ahead_steps > 0:
        moved[: max(len(before) - ahead_steps, 0)] = before[ahead_steps:]
    else:
        kept = before[: len(past) + ahead_steps]
        moved[-ahead_steps : len(kept) - ahead_steps] = kept
    moved[at:] = past[at:]
    return moved
