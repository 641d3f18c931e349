"""The daily rhythm of a server, as far as its last day followed it.

What is usual at a time of day is the mean over earlier days. How much of it to believe is seen in the context: the
least-squares slope of its values on what was usual at their times, shrunk toward zero (the positive part of James &
Stein 1961), as a day holds few independent points. A server that keeps its hours has a share near 1, one that does what
it likes near 0, and so has one that was not known the day before. Share times the usual swing is the *lift* of each
step. Windows are told and asked what remains without it, so that a server never seen before brings its own rhythm
along, and the network need not know it by heart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fleet_forecast.features.masked_statistics import at_each_step, centred, counted, products_summed

INDEPENDENT_POINTS = 12.0  # a day: load within two hours is about one point
FITTED = 2.0  # level and slope
FLAT = 1e-5  # of its level, in link space at least 1: a usual day that varies less varies by rounding


class DailyRhythm(NamedTuple):
    """share: float32 [window, metric], 0 to 1; lift: float32 [window, step, metric], link space, 0 if not known."""

    share: np.ndarray
    lift: np.ndarray


def daily_rhythm(context: np.ndarray, usual: np.ndarray, day_steps: int) -> DailyRhythm:
    """Share and lift of windows.

    context: float32 [window, E, metric], link space, NaN = not measured. usual: float32 [window, step, metric], the
    mean over earlier days at the time of each step, NaN where there is none; its first E steps are the context's.
    day_steps: of 24 hours; if fewer can be compared, fewer points prove the rhythm.
    """
    before = usual[:, : context.shape[1]]
    unknown = np.isnan(context + before)
    compared = context.shape[1] - counted(unknown)  # [window, metric]
    level, swing = centred(before.copy(), unknown, compared)
    _, value = centred(context.copy(), unknown, compared)
    together, of_usual, of_values = (
        products_summed(*pair) for pair in ((swing, value), (swing, swing), (value, value))
    )
    least_swing = FLAT * np.maximum(np.abs(level), 1.0, dtype=np.float64)
    points = INDEPENDENT_POINTS * compared / day_steps - FITTED
    finite = np.isfinite(together + of_usual + of_values)  # squares of absurd values need not fit a float32
    has_rhythm = finite & (points > 0) & (together > 0) & (of_usual > compared * least_swing**2)
    together[~has_rhythm] = 0.0
    slope = np.divide(together, of_usual, out=np.zeros_like(together), where=has_rhythm)
    explained = np.divide(slope * together, of_values, out=np.zeros_like(together), where=has_rhythm)
    chance = np.divide(1.0 - explained, points * explained, out=np.ones_like(explained), where=explained > 0)
    share = np.minimum(slope, 1.0) * np.maximum(1.0 - chance, 0.0)
    steps = usual.shape[1]
    lift = usual - at_each_step(level, steps)
    lift *= at_each_step(share, steps)
    np.copyto(lift, 0.0, where=np.isnan(lift))
    return DailyRhythm(share, lift)
