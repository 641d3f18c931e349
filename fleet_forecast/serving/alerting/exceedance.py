"""Exceedance of a threshold, derived from a forecast's quantiles: its probability by step, and its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.forecast_spec import BAND_80, MEDIAN_LEVEL
from fleet_forecast.serving.forecasts.snapshot import ServerForecast

LOWER, UPPER = BAND_80  # levels of the latest and the earliest crossing; of the expected one: the median


class CrossingTimes(NamedTuple):
    """When a forecast crosses a threshold, in seconds after its origin; None if it does not within its horizon.

    expected: the median crosses; earliest, latest: the quantiles 0.9 and 0.1 do.
    """

    expected_seconds: int | None
    earliest_seconds: int | None
    latest_seconds: int | None


def exceedance_probability(quantiles: np.ndarray, levels: Sequence[float], thresholds: np.ndarray) -> np.ndarray:
    """Probability of a value above a threshold, by linear interpolation between the quantiles.

    quantiles: [..., quantile, step], not decreasing along quantile; thresholds: [...], NaN gives probability 0.
    Returns [..., step]. Beyond the outermost quantiles the tails are exponential, with the slope of the last gap.
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


def crossing_times(forecast: ServerForecast, metric: str, threshold: float) -> CrossingTimes:
    """The first steps at which the median and the 80 % band are above the threshold."""
    rows = forecast.quantiles[forecast.model.metrics.index(metric)]

    def first(level: float) -> int | None:
        above = rows[nearest_level(forecast.model.quantiles, level)] > threshold
        return (int(np.argmax(above)) + 1) * forecast.model.step_seconds if above.any() else None

    return CrossingTimes(first(MEDIAN_LEVEL), first(UPPER), first(LOWER))


def nearest_level(levels: Sequence[float], wanted: float) -> int:
    """Position of the wanted quantile level, or of the nearest one that the model has."""
    return min(range(len(levels)), key=lambda position: abs(levels[position] - wanted))
