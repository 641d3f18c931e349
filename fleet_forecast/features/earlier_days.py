"""What a server did at the same time on earlier days.

Of each step of a window, context and horizon, the mean over the days before at exactly its time: what is usual then
(daily_rhythm.py). Of the horizon besides, for the decoder, the latest day that is known over all of it, and a mean
that is wider in time and so less noisy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

DAILY_MEAN_DAYS = 7  # "the same time of earlier days" looks back this many days


class Lengths(NamedTuple):
    """In steps: encoder, horizon and day; how long ago the latest whole day is; what `around` takes to either side."""

    encoder: int
    horizon: int
    day: int
    yesterday: int
    half_width: int


class EarlierDays(NamedTuple):
    """The same time on earlier days, in the units of the past, NaN = not measured.

    usual: float32 [window, E + H, metric], mean over the days at exactly this time. The others are for the horizon:
    yesterday, around: [window, H, metric], the latest day, and the mean over all of them and some steps to either
    side; yesterday_share, around_share: [window, H, 1], how much of it was measured.
    """

    usual: np.ndarray
    yesterday: np.ndarray
    around: np.ndarray
    yesterday_share: np.ndarray
    around_share: np.ndarray


def earlier_days(past: np.ndarray, lengths: Lengths) -> EarlierDays:
    """Look up DAILY_MEAN_DAYS days, the latest of them `lengths.yesterday` (whole days, at least the horizon) ago.

    past: float32 [window, step, metric] up to the origin, NaN = not measured, at least the context's steps;
    overwritten.
    """
    encoder_steps, horizon_steps, day_steps, yesterday_steps, half = lengths
    steps = encoder_steps + horizon_steps + 2 * half
    first = past.shape[1] - encoder_steps - half - yesterday_steps  # of the latest day's steps in `past`
    yesterday = np.full((len(past), horizon_steps, past.shape[2]), np.nan, dtype=np.float32)
    there, here = overlap(first + half + encoder_steps, horizon_steps, past.shape[1])
    yesterday[:, there] = past[:, here]
    unknown = np.isnan(past)
    measured = ~unknown
    np.copyto(past, 0.0, where=unknown)
    total = np.zeros((len(past), steps, past.shape[2]), dtype=np.float32)
    count = np.zeros(total.shape, dtype=np.uint8)
    for begin in range(first, first - DAILY_MEAN_DAYS * day_steps, -day_steps):
        there, here = overlap(begin, steps, past.shape[1])
        total[:, there] += past[:, here]
        count[:, there] += measured[:, here]
    ahead = [_moving_sum(part[:, encoder_steps:], 2 * half + 1) for part in (total, count)]
    return EarlierDays(
        usual=_mean(total, count)[:, half : half + encoder_steps + horizon_steps],
        yesterday=yesterday,
        around=_mean(*ahead),
        yesterday_share=_mean_over_metrics(~np.isnan(yesterday)),
        around_share=_mean_over_metrics(ahead[1]) / ((2 * half + 1) * DAILY_MEAN_DAYS),
    )


def overlap(begin: int, steps: int, length: int) -> tuple[slice, slice]:
    """Where begin .. begin + steps lies within 0 .. length: as part of the former, and of the latter."""
    low = min(max(begin, 0), length)
    high = max(low, min(begin + steps, length))
    return slice(low - begin, high - begin), slice(low, high)


def _moving_sum(values: np.ndarray, width: int) -> np.ndarray:
    """Sum over `width` consecutive steps of axis 1: float32, width - 1 steps shorter.

    Put together from sums over 1, 2, 4, ... steps, which neither cancel nor go step by step, as a cumulative sum does.
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


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """NaN where nothing was counted."""
    with np.errstate(invalid="ignore"):
        return total / count.astype(np.float32, copy=False)


def _mean_over_metrics(values: np.ndarray) -> np.ndarray:
    """float32 [..., metric] -> [..., 1], as a product: a sum over so short an axis takes ten times as long."""
    metrics = values.shape[-1]
    return values.astype(np.float32) @ np.full((metrics, 1), 1.0 / metrics, dtype=np.float32)
