"""The probability of crossing a threshold, read off a forecast's quantiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def breach_probability(quantiles: np.ndarray, levels: Sequence[float], thresholds: np.ndarray) -> np.ndarray:
    """Probability of a value above a threshold, by linear interpolation between the quantiles.

    quantiles: [..., quantile, step], not decreasing along quantile; thresholds: [...], NaN gives probability 0.
    Returns [..., step]. Beyond the outermost quantiles the tail falls off exponentially, at the pace of the last gap.
    """
    limit = thresholds[..., None]
    lowest, highest = quantiles[..., 0, :], quantiles[..., -1, :]
    tiny = 1e-6 + 1e-6 * np.abs(highest)
    below_gap = np.maximum(quantiles[..., 1, :] - lowest, tiny)
    above_gap = np.maximum(highest - quantiles[..., -2, :], tiny)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        below = levels[0] * np.exp(np.minimum(limit - lowest, 0) / below_gap)
        above = 1 - (1 - levels[-1]) * np.exp(-np.maximum(limit - highest, 0) / above_gap)
        cumulative = np.where(limit < lowest, below, above)
        for index in range(len(levels) - 1):
            left, right = quantiles[..., index, :], quantiles[..., index + 1, :]
            share = np.clip((limit - left) / np.maximum(right - left, tiny), 0, 1)
            inside = (limit >= left) & (limit < right)
            cumulative = np.where(inside, levels[index] + share * (levels[index + 1] - levels[index]), cumulative)
    return np.where(np.isnan(limit), 0.0, 1 - cumulative)
