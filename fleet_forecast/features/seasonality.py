"""Daily seasonality: the same time on earlier days, and the seasonal component of a window.

`seasonal_lags` looks up earlier days: for each step of a window the mean over the earlier days at that time of day (the
seasonal mean), and for the horizon the latest complete day (the seasonal lag) and a smoothed seasonal mean.

`seasonal_component` estimates how strongly the context follows the seasonal mean: the least-squares slope of the
context on it, shrunk toward zero (positive-part James & Stein 1961) because a day holds few independent points. The
component is strength * (seasonal mean - its level). Windows are built without it, so the network need not learn the
daily pattern of each server. An unseen server has its own seasonal component.

Daylight saving: when the clock changes, the value 24 hours ago belongs to another local time. For steps after a change
the history before it is shifted first, so that 09:00 is compared with 09:00. Only forecasts do this. In training a day
is always 24 hours; few training windows contain a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import clock_changes
from fleet_forecast.features.masked_statistics import (
    count_over_steps,
    dot_over_steps,
    masked_mean_and_deviations,
    repeat_over_steps,
)

SEASONAL_MEAN_DAYS = 7  # earlier days in the mean
INDEPENDENT_POINTS_PER_DAY = 12.0  # load within two hours counts as about one point
FITTED_PARAMETERS = 2.0  # level and slope
SMALLEST_AMPLITUDE = 1e-5  # of the level (at least 1): a seasonal mean that varies less is constant up to rounding


class LagSteps(NamedTuple):
    """Lengths in steps: encoder, horizon, 24 hours, distance to the latest complete day, smoothing half width."""

    encoder: int
    horizon: int
    day: int
    latest: int
    half_width: int


class SeasonalLags(NamedTuple):
    """Values at the same time on earlier days, float32, NaN = not measured.

    mean: [window, E + H, metric], over the days, at exactly the step's time of day. The others cover the horizon only.
    latest: [window, H, metric], the latest complete day. smoothed_mean: [window, H, metric], over the days and
    `half_width` steps to either side. latest_share, smoothed_mean_share: [window, H, 1], share of values measured.
    """

    mean: np.ndarray
    latest: np.ndarray
    smoothed_mean: np.ndarray
    latest_share: np.ndarray
    smoothed_mean_share: np.ndarray


class SeasonalComponent(NamedTuple):
    """strength: float32 [window, metric], 0 to 1. component: float32 [window, E + H, metric], 0 where unknown."""

    strength: np.ndarray
    component: np.ndarray


class ClockChange(NamedTuple):
    """From `step` (since the epoch) on, local clocks are `ahead_steps` ahead of before."""

    step: int
    ahead_steps: int


def changes_between(first_step: int, last_step: int, step_seconds: int, timezone: str) -> tuple[ClockChange, ...]:
    """Clock changes after the first step and up to the last; changes by a fraction of a step are left out."""
    first, last = (np.datetime64(step * step_seconds, "s") for step in (first_step, last_step))
    found = ((int(at.astype(np.int64)), int(by.astype(np.int64))) for at, by in clock_changes(first, last, timezone))
    return tuple(ClockChange(-(-at // step_seconds), by // step_seconds) for at, by in found if not by % step_seconds)


def seasonal_lags(
    past: np.ndarray, origin_steps: np.ndarray, changes: Sequence[ClockChange], steps: LagSteps
) -> SeasonalLags:
    """Look up earlier days by local time.

    past: float32 [window, step, metric] up to the origin, NaN = not measured, at least E steps; overwritten.
    origin_steps: int64 [window], steps since the epoch. changes: clock changes that the windows may span.
    """
    shifted_pasts = []
    for change in changes:
        at = change.step - (origin_steps - past.shape[1] + 1)  # index in the past of each window
        rows = np.flatnonzero((at > 0) & (change.step <= origin_steps + steps.horizon))
        shifted = np.array([_shift_before(past[row], int(at[row]), change.ahead_steps) for row in rows])
        shifted_pasts.append((change, rows, shifted))
    lags = _lags_of_24_hours(past, steps)
    for change, rows, shifted in shifted_pasts:
        if rows.size:
            local = _lags_of_24_hours(shifted, steps)
            for field, local_field in zip(lags, local, strict=True):
                at_steps = origin_steps[rows, None] + steps.horizon - np.arange(field.shape[1])[::-1]
                after = (at_steps >= change.step)[:, :, None]
                field[rows] = np.where(after, local_field, field[rows])
    return lags


def _shift_before(past: np.ndarray, at: int, ahead_steps: int) -> np.ndarray:
    """The past of one window [step, metric] with the steps before index `at` shifted by the clock change."""
    shifted = np.full_like(past, np.nan)
    before = past[:at]
    if ahead_steps > 0:
        shifted[: max(len(before) - ahead_steps, 0)] = before[ahead_steps:]
    else:
        kept = before[: len(past) + ahead_steps]
        shifted[-ahead_steps : len(kept) - ahead_steps] = kept
    shifted[at:] = past[at:]
    return shifted


def _lags_of_24_hours(past: np.ndarray, lag_steps: LagSteps) -> SeasonalLags:
    """seasonal_lags with days of 24 hours; `past` is overwritten."""
    encoder_steps, horizon_steps, day_steps, latest_steps, half = lag_steps
    steps = encoder_steps + horizon_steps + 2 * half
    first = past.shape[1] - encoder_steps - half - latest_steps  # index in `past` of the latest day's steps
    latest = np.full((len(past), horizon_steps, past.shape[2]), np.nan, dtype=np.float32)
    target, source = overlap(first + half + encoder_steps, horizon_steps, past.shape[1])
    latest[:, target] = past[:, source]
    missing = np.isnan(past)
    measured = ~missing
    np.copyto(past, 0.0, where=missing)
    total = np.zeros((len(past), steps, past.shape[2]), dtype=np.float32)
    count = np.zeros(total.shape, dtype=np.uint8)
    for begin in range(first, first - SEASONAL_MEAN_DAYS * day_steps, -day_steps):
        target, source = overlap(begin, steps, past.shape[1])
        total[:, target] += past[:, source]
        count[:, target] += measured[:, source]
    smoothed = [_moving_sum(part[:, encoder_steps:], 2 * half + 1) for part in (total, count)]
    return SeasonalLags(
        mean=_masked_mean(total, count)[:, half : half + encoder_steps + horizon_steps],
        latest=latest,
        smoothed_mean=_masked_mean(*smoothed),
        latest_share=_mean_over_metrics(~np.isnan(latest)),
        smoothed_mean_share=_mean_over_metrics(smoothed[1]) / ((2 * half + 1) * SEASONAL_MEAN_DAYS),
    )


def overlap(begin: int, steps: int, length: int) -> tuple[slice, slice]:
    """The part of begin .. begin + steps inside 0 .. length: relative to `begin`, and relative to 0."""
    low = min(max(begin, 0), length)
    high = max(low, min(begin + steps, length))
    return slice(low - begin, high - begin), slice(low, high)


def _moving_sum(values: np.ndarray, width: int) -> np.ndarray:
    """Sum over `width` consecutive steps of axis 1: float32, width - 1 steps shorter.

    Composed of sums over 1, 2, 4, ... steps: unlike a cumulative sum it neither cancels nor runs step by step.
    """
    steps = values.shape[1] - width + 1
    total = np.zeros((len(values), steps, *values.shape[2:]), dtype=np.float32)
    summed, size, done = values.astype(np.float32, copy=False), 1, 0
    while True:
        if width & size:
            total += summed[:, done : done + steps]
            done += size
        if done == width:
            return total
        summed = summed[:, :-size] + summed[:, size:]
        size *= 2


def _masked_mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """NaN where the count is 0."""
    with np.errstate(invalid="ignore"):
        return total / count.astype(np.float32, copy=False)


def _mean_over_metrics(values: np.ndarray) -> np.ndarray:
    """float32 [..., metric] -> [..., 1], as a matrix product: ten times as fast as a mean over so short an axis."""
    metrics = values.shape[-1]
    return values.astype(np.float32) @ np.full((metrics, 1), 1.0 / metrics, dtype=np.float32)


def seasonal_component(context: np.ndarray, seasonal_mean: np.ndarray, day_steps: int) -> SeasonalComponent:
    """Strength and seasonal component of windows.

    context: float32 [window, E, metric], transformed, NaN = not measured. seasonal_mean: float32 [window, E + H,
    metric], NaN = unknown. day_steps: steps in 24 hours; with fewer comparable steps the strength is shrunk more.
    """
    mean_of_context = seasonal_mean[:, : context.shape[1]]
    missing = np.isnan(context + mean_of_context)
    compared = context.shape[1] - count_over_steps(missing)  # [window, metric]
    level, seasonal = masked_mean_and_deviations(mean_of_context.copy(), missing, compared)
    _, value = masked_mean_and_deviations(context.copy(), missing, compared)
    cross, seasonal_power, value_power = (
        dot_over_steps(*pair) for pair in ((seasonal, value), (seasonal, seasonal), (value, value))
    )
    least_amplitude = SMALLEST_AMPLITUDE * np.maximum(np.abs(level), 1.0, dtype=np.float64)
    points = INDEPENDENT_POINTS_PER_DAY * compared / day_steps - FITTED_PARAMETERS
    finite = np.isfinite(cross + seasonal_power + value_power)  # squares of extreme values overflow a float32
    is_seasonal = finite & (points > 0) & (cross > 0) & (seasonal_power > compared * least_amplitude**2)
    cross[~is_seasonal] = 0.0
    slope = np.divide(cross, seasonal_power, out=np.zeros_like(cross), where=is_seasonal)
    explained = np.divide(slope * cross, value_power, out=np.zeros_like(cross), where=is_seasonal)
    chance = np.divide(1.0 - explained, points * explained, out=np.ones_like(explained), where=explained > 0)
    strength = np.minimum(slope, 1.0) * np.maximum(1.0 - chance, 0.0)
    steps = seasonal_mean.shape[1]
    component = seasonal_mean - repeat_over_steps(level, steps)
    component *= repeat_over_steps(strength, steps)
    np.copyto(component, 0.0, where=np.isnan(component))
    return SeasonalComponent(strength, component)
