"""Cold-start prior: learned shrinkage weights and quantiles by length of history (leave-one-server-out).

Each training server in turn is treated as unseen: only the other servers of its profile are known (leave-one-out
cross-validation, Stone 1974) and n of its own steps. For some n, three things are estimated from what followed:

- loc_weight: the weight of the mean of the n steps in a regression, through the others' mean, on the mean of what
  follows. Least absolute deviations, so that a few strongly varying servers do not dominate.
- scale_weight: the same for the deviation, on a log scale, against the deviation of what follows from the expected loc.
- quantiles: of what follows, standardised with the expected loc and scale.

An untrained network thus forecasts the distribution of the profile at every length of history. A weight n / (n + k)
would assume independent steps, but the first step is nearly as informative about a server's level as its first hour.
Nothing is estimated for a whole context, as a day covers the daily pattern: the default prior is used.

A profile with few servers gives unreliable estimates: if four servers happen to be steady, the estimate is that all
servers of the profile are. The estimates of a profile with n servers are therefore shrunk toward those of the fleet,
with the weight k / (n + k) (parametric empirical Bayes, Morris 1983). k is the variance of an estimate from one server
in units of the variance between profiles. Estimates from either half of a profile's servers show the former.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.quantile_map import KNOT_LEVELS, NORMAL_SCORES

LENGTH_RATIO = 4  # between consecutive lengths of history
CONTEXT_PARTS = 4  # what follows, and the longest estimated history, is at most one part of the context
ORIGINS_PER_CONTEXT = 8
FOLLOWING_STEPS_PER_ORIGIN = 4  # sampled for the quantiles
LARGEST_ORIGIN_COUNT = 2**18  # over all servers, approximately
SERVER_STEPS_AT_ONCE = 2**20  # limits the memory of intermediate arrays
PRIOR_STEPS = 3.0  # default shrinkage: weight of the profile, in steps
SCALE_PRIOR_STEPS = 2.0  # weight of the profile's deviation within a window in a measured deviation, in steps
FEWEST_SERVERS_OF_HALVES = 4  # of a profile whose halves are compared: two in each, for the leave-one-out
SMALLEST_SCALE = 1e-3  # in units of the profile's scale: the scale of a constant series


class ColdStartPrior(NamedTuple):
    """By length of history.

    loc_weight, scale_weight: weights of a window's own mean and deviation [length], 0 to 1. quantiles: standardised,
    at quantile_map.KNOT_LEVELS [length, knot].
    """

    loc_weight: np.ndarray
    scale_weight: np.ndarray
    quantiles: np.ndarray


class ServersOfProfile(NamedTuple):
    """One transformed metric of a profile's servers.

    values: float64 [server, step], NaN = not measured. scale, within: total deviation and the typical one inside a
    window.
    """

    values: np.ndarray
    scale: float
    within: float


class _Samples(NamedTuple):
    """Steps before and after some origins, relative to the mean of their server; NaN if under half is measured.

    mean, squares: of each length of history, the mean and the sum of squares around it [length, server, origin].
    following_mean, following_squares: of what follows, its mean and its mean square [server, origin].
    following: some steps of it [step, server, origin].
    """

    mean: np.ndarray
    squares: np.ndarray
    following_mean: np.ndarray
    following_squares: np.ndarray
    following: np.ndarray


def history_lengths(context_steps: int) -> np.ndarray:
    """Lengths of history with estimates: 0, 1, 4, 16, ... measured steps up to a part of the context; the context."""
    found = [1]
    while found[-1] * LENGTH_RATIO <= context_steps // CONTEXT_PARTS:
        found.append(found[-1] * LENGTH_RATIO)
    return np.array(sorted({0, *found, context_steps}))


def length_interpolation(context_steps: int) -> np.ndarray:
    """Interpolation from history_lengths to 0, 1, 2, ... steps, linear in log n: float32 [1 + context, length]."""
    lengths = history_lengths(context_steps)
    log_steps = np.log(np.arange(1, context_steps + 1))
    matrix = np.zeros((context_steps + 1, len(lengths)), dtype=np.float32)
    matrix[0, 0] = 1.0
    for index, at in enumerate(np.eye(len(lengths) - 1)):
        matrix[1:, index + 1] = np.interp(log_steps, np.log(lengths[1:]), at)
    return matrix


def default_prior(context_steps: int) -> ColdStartPrior:
    """Default shrinkage n / (n + PRIOR_STEPS) and normal quantiles, for servers without a learned prior."""
    n = history_lengths(context_steps)
    weight = n / (n + PRIOR_STEPS)
    return ColdStartPrior(weight, weight.copy(), np.tile(NORMAL_SCORES, (len(n), 1)))


def shrunken_deviation(squares: np.ndarray, n: np.ndarray | int, within: np.ndarray | float) -> np.ndarray:
    """Deviation of n steps from their sum of squares, with SCALE_PRIOR_STEPS steps of the deviation `within` added."""
    deviation: np.ndarray = np.sqrt((squares + SCALE_PRIOR_STEPS * within**2) / (n + SCALE_PRIOR_STEPS))
    return deviation


def expected_scale(
    loc_weight: np.ndarray | float, scale_weight: np.ndarray | float, within: np.ndarray | float, own: np.ndarray
) -> np.ndarray:
    """Scale of a window, in units of its profile's scale.

    The prior narrows from 1 to `within`, the typical deviation inside a window, as loc_weight rises from 0 to 1; `own`
    is the window's deviation.
    """
    prior = np.log(np.maximum(np.sqrt(1.0 - loc_weight + loc_weight * within**2), SMALLEST_SCALE))
    expected: np.ndarray = np.exp(prior + scale_weight * (np.log(np.maximum(own, SMALLEST_SCALE)) - prior))
    return expected


def fit_cold_start_priors(
    fleet: ServersOfProfile, profiles: Sequence[ServersOfProfile], context_steps: int
) -> list[ColdStartPrior]:
    """Learned priors of the fleet and of each profile, the latter drawn toward the fleet's."""
    of_fleet = fit_cold_start_prior(fleet, context_steps)
    priors = [fit_cold_start_prior(profile, context_steps) for profile in profiles]
    halves = [_priors_of_halves(profile, context_steps) for profile in profiles]
    servers = np.array([max(len(profile.values), 1) for profile in profiles], dtype=np.float64)
    fields = []
    for index, own in enumerate(zip(*priors, strict=True)):
        compared = [None if pair is None else pair[0][index] - pair[1][index] for pair in halves]
        weight = servers / (servers + _equivalent_servers(np.array(own), compared, servers))
        fields.append([w * part + (1 - w) * of_fleet[index] for w, part in zip(weight, own, strict=True)])
    return [of_fleet, *(ColdStartPrior(*of_profile) for of_profile in zip(*fields, strict=True))]


def _priors_of_halves(profile: ServersOfProfile, context_steps: int) -> tuple[ColdStartPrior, ColdStartPrior] | None:
    """Priors of every other server and of the rest; None if there are too few."""
    if len(profile.values) < FEWEST_SERVERS_OF_HALVES:
        return None
    first, second = (
        fit_cold_start_prior(profile._replace(values=profile.values[at::2]), context_steps) for at in (0, 1)
    )
    return first, second


def _equivalent_servers(own: np.ndarray, differences: Sequence[np.ndarray | None], servers: np.ndarray) -> float:
    """k: the number of servers whose estimates vary as those of different profiles do; 0 if unknown.

    own: estimates [profile, ...]. differences: between the estimates of two halves, None if they were not compared.
    """
    known = [
        (estimate.ravel(), difference.ravel(), n)
        for estimate, difference, n in zip(own, differences, servers, strict=True)
        if difference is not None and np.isfinite(estimate + difference).all()
    ]
    if len(known) < 2:
        return 0.0
    estimates, between_halves, n = (np.array(part) for part in zip(*known, strict=True))
    # The difference of two halves has four times the variance of the estimate from all n servers.
    of_one_server = float((between_halves**2 * (n / 4)[:, None]).mean(axis=0).sum())
    between_profiles = float(estimates.var(axis=0, ddof=1).sum()) - of_one_server * float((1 / n).mean())
    if of_one_server == 0.0:
        return 0.0
    return of_one_server / between_profiles if between_profiles > 0.0 else np.inf


def fit_cold_start_prior(servers: ServersOfProfile, context_steps: int) -> ColdStartPrior:
    """Learned prior of some servers; NaN where too little can be compared, the default for a whole context."""
    values, scale, within = servers
    prior = default_prior(context_steps)
    for field in prior:
        field[:-1] = np.nan
    own = np.nanmean(values, axis=1)
    if len(own) < 2:
        return prior
    others = (own.sum() - own) / (len(own) - 1)
    samples = _samples(values, own, scale, context_steps)
    from_others = ((own - others) / scale)[:, None]
    within /= scale
    prior.loc_weight[0] = prior.scale_weight[0] = 0.0
    prior.quantiles[0] = _quantiles(samples.following + from_others)
    following_mean = samples.following_mean + from_others
    for index, n in enumerate(history_lengths(context_steps)[1:-1], start=1):
        mean = samples.mean[index - 1] + from_others
        loc_weight = least_absolute_deviation_weight(mean, following_mean)
        loc = loc_weight * mean - from_others  # expected, relative to the server's own mean
        following_deviation = np.sqrt(
            np.maximum(
                samples.following_squares - 2 * loc * samples.following_mean + loc**2,
                SMALLEST_SCALE**2,
            )
        )
        deviation = shrunken_deviation(samples.squares[index - 1], n, within)
        prior_only, own_only = (expected_scale(loc_weight, weight, within, deviation) for weight in (0.0, 1.0))
        scale_weight = least_absolute_deviation_weight(
            np.log(own_only / prior_only), np.log(following_deviation / prior_only)
        )
        prior.loc_weight[index], prior.scale_weight[index] = loc_weight, scale_weight
        expected = expected_scale(loc_weight, scale_weight, within, deviation)
        prior.quantiles[index] = _quantiles((samples.following - loc) / expected)
    return prior


def _samples(values: np.ndarray, own: np.ndarray, scale: float, context_steps: int) -> _Samples:
    blocks = min(-(-values.size // SERVER_STEPS_AT_ONCE), len(values))
    every = max(1, context_steps // ORIGINS_PER_CONTEXT, values.size // LARGEST_ORIGIN_COUNT | 1)
    parts = [
        _samples_of_block((values[rows] - own[rows, None]) / scale, context_steps, every)
        for rows in np.array_split(np.arange(len(values)), blocks)
    ]
    return _Samples(*(np.concatenate(field, axis=-2) for field in zip(*parts, strict=True)))


def _samples_of_block(values: np.ndarray, context_steps: int, every: int) -> _Samples:
    measured = ~np.isnan(values)
    count, total, squares = (
        np.pad(np.cumsum(part, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
        for part in (measured, np.where(measured, values, 0.0), np.where(measured, values**2, 0.0))
    )
    following_steps, lengths = max(1, context_steps // CONTEXT_PARTS), history_lengths(context_steps)[1:-1]
    origins = np.arange(max(lengths, default=1), values.shape[1] - following_steps + 1, every)

    def moments(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, ...]:
        """Count, mean and mean square of the steps begin .. end."""
        n, first, second = (part[:, end] - part[:, begin] for part in (count, total, squares))
        n = np.where(2 * n >= end - begin, n, np.nan)
        return n, first / n, second / n

    before = [moments(origins - n, origins) for n in lengths]
    _, following_mean, following_squares = moments(origins, origins + following_steps)
    nothing = np.empty((0, *following_mean.shape))
    offsets = range(0, following_steps, max(1, following_steps // FOLLOWING_STEPS_PER_ORIGIN))
    return _Samples(
        np.stack([mean for _, mean, _ in before]) if before else nothing,
        np.stack([n * np.maximum(square - mean**2, 0.0) for n, mean, square in before]) if before else nothing,
        following_mean,
        following_squares,
        np.stack([values[:, origins + offset] for offset in offsets]),
    )


def least_absolute_deviation_weight(predictor: np.ndarray, target: np.ndarray) -> float:
    """The weight w, 0 to 1, that minimises the mean of |target - w * predictor|: a weighted median of the ratios."""
    usable = np.isfinite(predictor + target) & (predictor != 0)
    if not usable.any():
        return float("nan")
    ratios, weights = target[usable] / predictor[usable], np.abs(predictor[usable])
    order = np.argsort(ratios)
    cumulative = np.cumsum(weights[order])
    return float(np.clip(ratios[order][np.searchsorted(cumulative, cumulative[-1] / 2)], 0.0, 1.0))


def _quantiles(values: np.ndarray) -> np.ndarray:
    """Of the finite values, at KNOT_LEVELS; NaN without any."""
    finite = values[np.isfinite(values)]
    return np.quantile(finite, KNOT_LEVELS) if finite.size else np.full(len(KNOT_LEVELS), np.nan)
