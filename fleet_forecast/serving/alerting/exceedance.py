"""Crossing of a threshold, derived from a forecast's quantiles: its probability by step, and its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.forecast_spec import BAND_80, MEDIAN_LEVEL
from fleet_forecast.serving.alerting.bounds import Bounds, Limit
from fleet_forecast.serving.forecasts.snapshot import ServerForecast

LOWER, UPPER = BAND_80  # levels of the latest and the earliest crossing of an upper bound; expected: the median


class CrossingTimes(NamedTuple):
    """When a forecast crosses a threshold, in seconds after its origin; None if it does not within its horizon.

    expected: the median crosses; earliest, latest: the quantiles 0.9 and 0.1 do, of a lower bound 0.1 and 0.9.
    """

    expected_seconds: int | None
    earliest_seconds: int | None
    latest_seconds: int | None


NEVER_CROSSED = CrossingTimes(None, None, None)


def cumulative_probability(quantiles: np.ndarray, levels: Sequence[float], limits: np.ndarray) -> np.ndarray:
    """Probability of a value below a limit, by linear interpolation between the quantiles.

    quantiles: [..., quantile, step], not decreasing along quantile; limits: [...], NaN gives NaN. Returns [..., step].
    Beyond the outermost quantiles the tails are exponential, with the slope of the last gap.
    """
    limit = limits[..., None]
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
    return np.where(np.isnan(limit), np.nan, cumulative)


def exceedance_probability(quantiles: np.ndarray, levels: Sequence[float], thresholds: np.ndarray) -> np.ndarray:
    """Probability of a value above a threshold: [..., step]; 0 where the threshold is NaN.

    The arguments are those of cumulative_probability.
    """
    return np.nan_to_num(1 - cumulative_probability(quantiles, levels, thresholds), nan=0.0)


def breach_probability(quantiles: np.ndarray, levels: Sequence[float], limits: np.ndarray) -> np.ndarray:
    """Probability of a value above its upper or below its lower bound, which exclude each other: [..., step].

    limits: [..., bound], the upper bound and the lower one, NaN for none. The others as in cumulative_probability.
    """
    upper, lower = limits[..., 0], limits[..., 1]
    above = exceedance_probability(quantiles, levels, upper)
    if np.isnan(lower).all():
        return above
    return above + np.nan_to_num(cumulative_probability(quantiles, levels, lower), nan=0.0)


def likelier_limit(forecast: ServerForecast, metric: str, bounds: Bounds) -> Limit | None:
    """The bound that the forecast is more likely to cross; of a metric with one bound that one, without one None."""
    limits = bounds.limits
    if len(limits) < 2:
        return limits[0] if limits else None
    upper, lower = limits
    rows = forecast.quantiles[forecast.model.metrics.index(metric)]
    levels = forecast.model.quantiles
    above = exceedance_probability(rows, levels, np.array(upper.value)).max()
    below = cumulative_probability(rows, levels, np.array(lower.value)).max()
    return upper if above >= below else lower


def crossing_times(forecast: ServerForecast, metric: str, limit: Limit) -> CrossingTimes:
    """The first steps at which the median and the 80 % band are beyond the bound."""
    rows = forecast.quantiles[forecast.model.metrics.index(metric)]

    def first(level: float) -> int | None:
        crossed = limit.is_crossed_by(rows[nearest_level(forecast.model.quantiles, level)])
        return (int(np.argmax(crossed)) + 1) * forecast.model.step_seconds if crossed.any() else None

    early, late = (LOWER, UPPER) if limit.is_lower else (UPPER, LOWER)
    return CrossingTimes(first(MEDIAN_LEVEL), first(early), first(late))


def nearest_level(levels: Sequence[float], wanted: float) -> int:
    """Position of the wanted quantile level, or of the nearest one that the model has."""
    return min(range(len(levels)), key=lambda position: abs(levels[position] - wanted))
