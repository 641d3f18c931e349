"""Evidence that the mean of a series has risen on its latest days, from the size of the rise.

Null hypothesis: the values are normal with any variance, their mean is any combination of known regressors (a level, a
difference between business days and days off), and they depend on the day before with one of CORRELATIONS.
Alternative: from one day on, the mean is higher by delta standard deviations.

The evidence for a beginning is the ratio of the marginal likelihoods: under the right Haar prior on coefficients and
variance, an even prior on the correlation, and a normal prior on delta with deviation DEVIATION (Liang et al. 2008,
eq. 7, with one regressor beside the nuisance ones). It depends on invariants only, whose distribution is known under
the null hypothesis. Hence, whatever the coefficients and the variance, its mean over the correlations is 1, and it is a
test martingale as the days go on (Perez-Ortiz, Lardy, de Heide & Grunwald 2022). Of a fall it is set to 0; half of the
prior would be for it, so that this leaves at most what a prior for rises alone would give.

Real series have tails heavier than normal ones. So the evidence of a beginning k days ago is at most LARGEST_OF_A_DAY
to the power of k: one odd day, of however many series, proves nothing. A bound from above keeps the mean below 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CORRELATIONS = (0.0, 0.2, 0.4, 0.6)  # of a day with the day before
DEVIATION = 5.0  # of the prior on delta: rises of that size are found soonest
LARGEST_OF_A_DAY = 500.0
BOUNDED_DAYS = 4  # after which the bound is above any threshold
SMALLEST_SQUARE = 1e-12
SMALLEST_SIZE = 1e-9
LARGEST_EXPONENT = 700.0


class _Likelihoods(NamedTuple):
    """Logarithms of marginal likelihoods at one correlation, up to a constant that all correlations share.

    unchanged: [series]. risen: [beginning, series], -inf for a fall.
    """

    unchanged: np.ndarray
    risen: np.ndarray


def rise(values: np.ndarray, regressors: np.ndarray, beginnings: np.ndarray) -> np.ndarray:
    """Evidence of a rise since each beginning: float64 [beginning, series].

    values: float64 [day, series], without NaN. regressors: float64 [day, regressor], which may depend on each other.
    beginnings: int64, positions of days from 1 on.
    """
    found = [_likelihoods(values, regressors, beginnings, correlation) for correlation in CORRELATIONS]
    unchanged = np.stack([each.unchanged for each in found])  # [correlation, series]
    risen = np.stack([each.risen for each in found])  # [correlation, beginning, series]
    largest = unchanged.max(axis=0)
    evidence = np.exp(np.minimum(risen - largest, LARGEST_EXPONENT)).sum(axis=0) / np.exp(unchanged - largest).sum(
        axis=0
    )
    bound = LARGEST_OF_A_DAY ** np.minimum(len(values) - beginnings, BOUNDED_DAYS)
    return np.asarray(np.minimum(evidence, bound[:, None]))


def _likelihoods(
    values: np.ndarray, regressors: np.ndarray, beginnings: np.ndarray, correlation: float
) -> _Likelihoods:
    days, since = len(values), len(values) - beginnings
    basis, sizes, _ = np.linalg.svd(_whitened(regressors, correlation), full_matrices=False)
    used = sizes > SMALLEST_SIZE * sizes.max(initial=0.0)
    nuisance = basis[:, used]  # [day, rank], orthonormal
    white = _whitened(values - values.mean(axis=0), correlation)
    residuals = white - nuisance @ (nuisance.T @ white)
    squares = np.maximum((residuals**2).sum(axis=0), SMALLEST_SQUARE)
    power = -(days - used.sum()) / 2
    unchanged = power * np.log(squares) - np.log(sizes[used]).sum() + np.log(1 - correlation**2) / 2
    along = _rise_times(residuals, correlation)[beginnings]  # the whitened rise times the residuals
    own = 1 + (since - 1) * (1 - correlation) ** 2 - (_rise_times(nuisance, correlation)[beginnings] ** 2).sum(axis=1)
    prior = 1 + DEVIATION**2 * np.maximum(own, 0.0)
    explained = along**2 / squares * (DEVIATION**2 / prior)[:, None]  # share of the squares
    left = np.maximum(1 - explained, SMALLEST_SQUARE)
    risen = unchanged - np.log(prior)[:, None] / 2 + power * np.log(left)
    return _Likelihoods(unchanged, np.where(along > 0, risen, -np.inf))


def _whitened(values: np.ndarray, correlation: float) -> np.ndarray:
    """Each day less the expectation by the day before; the first one scaled to the same variance: [day, series]."""
    before = np.concatenate([np.zeros((1, values.shape[1])), values[:-1]])
    white = values - correlation * before
    white[0] *= np.sqrt(1 - correlation**2)
    return np.asarray(white)


def _rise_times(white: np.ndarray, correlation: float) -> np.ndarray:
    """For a rise from each day on, its whitened regressor times the columns: [day, series].

    The whitened regressor is 1 on the first day of the rise and 1 - correlation on later ones.
    """
    later = np.cumsum(white[::-1], axis=0)[::-1] - white
    return np.asarray(white + (1 - correlation) * later)
