"""What a short history tells of a server, measured on servers taken for strangers.

Of each training server the others of its profile alone are known (leave-one-out cross-validation, Stone 1974), and n of
its own steps are shown. Three things are learned from what followed these steps, for some n:

- the weight of their mean: with it, it comes nearest to the mean of what follows, as a regression through the others'
  mean (least absolute deviations, so that a few servers that swing widely do not speak for all). Servers that lie far
  apart and keep their level are believed after one measurement; of those that differ little and swing a lot an hour
  proves little;
- the weight of their deviation, likewise, on a log scale, from how far off the level expected what follows lies;
- the shape: how what follows is then distributed, in the spreads expected around the level expected.

So a network that has learned nothing says of a stranger what a plain statistician would, at every length of history.
No weight n / (n + k) would: it is right for steps independent of each other, and the first of a server's steps tells
nearly as much of its level as the hour it begins. A whole context, a day over which the swing averages out, speaks for
itself: nothing is estimated there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fleet_forecast.features.quantile_map import LEVELS, NORMAL_SCORES

RATIO = 4  # of a length of history to the one before
PARTS = 4  # of the context: what follows is judged over one of them, and the longest estimated history is one
ORIGINS_PER_CONTEXT = 8  # after which a server's next steps are looked at
STEPS_PER_ORIGIN = 4  # of what follows that shapes are made of
MOST_ORIGINS = 2**18  # of all servers, about
SERVER_STEPS_AT_ONCE = 2**20  # so that what is in between takes little memory
PRIOR_STEPS = 3.0  # the profile counts as many steps beside a whole context, and where servers cannot be compared
PRIOR_STEPS_OF_SPREAD = 2.0  # a deviation measured on few steps is averaged with this many steps of the profile's
SMALLEST_SPREAD = 1e-3  # in profile units: a constant series keeps this scale


class ShortHistory(NamedTuple):
    """What each of `lengths` tells.

    level_weight, spread_weight: of a window's own mean and deviation [length], 0 to 1. shape: of the window until it
    shows its own, quantiles at window_shape.LEVELS [length, level].
    """

    level_weight: np.ndarray
    spread_weight: np.ndarray
    shape: np.ndarray


class _Looks(NamedTuple):
    """Steps before and after some origins, relative to the mean of their server. NaN = not half of it measured.

    mean, squares: of each length of history, the mean and the sum of squares around it [length, server, origin].
    ahead, ahead_squares: of what follows, its mean and the mean of its squares [server, origin]. some: steps of it
    [step, server, origin].
    """

    mean: np.ndarray
    squares: np.ndarray
    ahead: np.ndarray
    ahead_squares: np.ndarray
    some: np.ndarray


def lengths(context_steps: int) -> np.ndarray:
    """Measured steps whose ShortHistory is kept: 0, 1, 4, 16, ... up to a part of the context, and the context."""
    found = [1]
    while found[-1] * RATIO <= context_steps // PARTS:
        found.append(found[-1] * RATIO)
    return np.array(sorted({0, *found, context_steps}))


def between_lengths(context_steps: int) -> np.ndarray:
    """Shares of each length in 0, 1, 2, ... measured steps, linear in log n: float32 [1 + context_steps, length]."""
    kept = lengths(context_steps)
    steps = np.log(np.arange(1, context_steps + 1))
    shares = np.zeros((context_steps + 1, len(kept)), dtype=np.float32)
    shares[0, 0] = 1.0
    for index, at in enumerate(np.eye(len(kept) - 1)):
        shares[1:, index + 1] = np.interp(steps, np.log(kept[1:]), at)
    return shares


def incomparable(context_steps: int) -> ShortHistory:
    """Of servers that nothing can be learned from; a whole context's is that of all servers."""
    n = lengths(context_steps)
    weight = n / (n + PRIOR_STEPS)
    return ShortHistory(weight, weight.copy(), np.tile(NORMAL_SCORES, (len(n), 1)))


def own_deviation(squares: np.ndarray, n: np.ndarray | int, within: np.ndarray | float) -> np.ndarray:
    """Deviation of n steps from their sum of squares, a few steps of the profile's usual deviation added."""
    deviation: np.ndarray = np.sqrt((squares + PRIOR_STEPS_OF_SPREAD * within**2) / (n + PRIOR_STEPS_OF_SPREAD))
    return deviation


def expected_spread(
    level_weight: np.ndarray | float, spread_weight: np.ndarray | float, within: np.ndarray | float, own: np.ndarray
) -> np.ndarray:
    """Spread of a window, in those of its profile.

    That of the profile narrows as the level gets known, from 1 to `within`, the usual one inside a window; `own` is
    the window's deviation.
    """
    usual = np.log(np.maximum(np.sqrt(1.0 - level_weight + level_weight * within**2), SMALLEST_SPREAD))
    expected: np.ndarray = np.exp(usual + spread_weight * (np.log(np.maximum(own, SMALLEST_SPREAD)) - usual))
    return expected


def short_history(column: np.ndarray, spread: float, within: float, context_steps: int) -> ShortHistory:
    """What these servers' steps tell about what follows; NaN where too little can be compared.

    column: float64 [server, step], one metric in link space, NaN = not measured. spread, within: total deviation and
    the usual one inside a window.
    """
    found = incomparable(context_steps)
    for field in found:
        field[:-1] = np.nan
    own = np.nanmean(column, axis=1)
    if len(own) < 2:
        return found
    others = (own.sum() - own) / (len(own) - 1)
    looks = _looks(column, own, spread, context_steps)
    from_others = ((own - others) / spread)[:, None]
    within /= spread
    found.level_weight[0] = found.spread_weight[0] = 0.0
    found.shape[0] = _quantiles(looks.some + from_others)
    ahead = looks.ahead + from_others
    for index, n in enumerate(lengths(context_steps)[1:-1], start=1):
        mean = looks.mean[index - 1] + from_others
        level = _nearest_share(mean, ahead)
        expected = level * mean - from_others  # relative to the server's own mean
        off = np.sqrt(np.maximum(looks.ahead_squares - 2 * expected * looks.ahead + expected**2, SMALLEST_SPREAD**2))
        deviation = own_deviation(looks.squares[index - 1], n, within)
        usual, own_only = (expected_spread(level, weight, within, deviation) for weight in (0.0, 1.0))
        weight = _nearest_share(np.log(own_only / usual), np.log(off / usual))
        found.level_weight[index], found.spread_weight[index] = level, weight
        found.shape[index] = _quantiles((looks.some - expected) / expected_spread(level, weight, within, deviation))
    return found


def _looks(column: np.ndarray, own: np.ndarray, spread: float, context_steps: int) -> _Looks:
    blocks = min(-(-column.size // SERVER_STEPS_AT_ONCE), len(column))
    every = max(1, context_steps // ORIGINS_PER_CONTEXT, column.size // MOST_ORIGINS | 1)
    parts = [
        _looks_at_some((column[rows] - own[rows, None]) / spread, context_steps, every)
        for rows in np.array_split(np.arange(len(column)), blocks)
    ]
    return _Looks(*(np.concatenate(field, axis=-2) for field in zip(*parts, strict=True)))


def _looks_at_some(values: np.ndarray, context_steps: int, every: int) -> _Looks:
    known = ~np.isnan(values)
    count, total, squares = (
        np.pad(np.cumsum(part, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
        for part in (known, np.where(known, values, 0.0), np.where(known, values**2, 0.0))
    )
    following, histories = max(1, context_steps // PARTS), lengths(context_steps)[1:-1]
    origins = np.arange(max(histories, default=1), values.shape[1] - following + 1, every)

    def between(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, ...]:
        n, first, second = (part[:, end] - part[:, begin] for part in (count, total, squares))
        n = np.where(2 * n >= end - begin, n, np.nan)
        return n, first / n, second / n

    before = [between(origins - n, origins) for n in histories]
    _, ahead, ahead_squares = between(origins, origins + following)
    nothing = np.empty((0, *ahead.shape))
    return _Looks(
        np.stack([mean for _, mean, _ in before]) if before else nothing,
        np.stack([n * np.maximum(square - mean**2, 0.0) for n, mean, square in before]) if before else nothing,
        ahead,
        ahead_squares,
        np.stack([values[:, origins + step] for step in range(0, following, max(1, following // STEPS_PER_ORIGIN))]),
    )


def _nearest_share(told: np.ndarray, sought: np.ndarray) -> float:
    """The share of `told`, 0 to 1, that comes nearest to `sought` in the mean of absolute deviations."""
    usable = np.isfinite(told + sought) & (told != 0)
    if not usable.any():
        return float("nan")
    shares, importance = sought[usable] / told[usable], np.abs(told[usable])
    order = np.argsort(shares)
    reached = np.cumsum(importance[order])
    return float(np.clip(shares[order][np.searchsorted(reached, reached[-1] / 2)], 0.0, 1.0))


def _quantiles(values: np.ndarray) -> np.ndarray:
    """At LEVELS, of what was measured."""
    measured = values[np.isfinite(values)]
    return np.quantile(measured, LEVELS) if measured.size else np.full(len(LEVELS), np.nan)
