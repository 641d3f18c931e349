"""Behaviour of a server over one day: the numbers by which the servers of two profiles differ.

For each metric: the level, the width of its distribution, its skewness, its change from step to step, and its course
over the day. All are differences of logarithms (log odds for percentages), so they have no unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleet_forecast.contract.definitions import Kind
from fleet_forecast.contract.forecast_spec import SCORED_LEVELS

SECONDS_OF_DAY = 86_400
PARTS_OF_DAY = 8
MIN_MEASURED = 0.25  # of a day; a metric measured less is missing
SOFTNESS = 0.01  # of the fleet's median, or of 100 %: below it values count as alike
_LEVEL_AND_SHAPE = 4


def softness_of(values: np.ndarray, kinds: Sequence[Kind]) -> np.ndarray:
    """What is added to a value before its logarithm is taken: float64 [metric], in the metric's unit.

    values: [server, step, metric], NaN = not measured. kinds: of the metrics.
    """
    positive = np.where(values != 0, np.abs(values), np.nan).reshape(-1, values.shape[-1])
    measured = ~np.isnan(positive).all(axis=0)
    medians = np.ones(len(kinds))
    medians[measured] = np.nanmedian(positive[:, measured], axis=0)
    return SOFTNESS * np.where(np.array(kinds) == "percent", 100.0, medians)


def behaviour(day: np.ndarray, kinds: Sequence[Kind], softness: np.ndarray) -> np.ndarray:
    """float32 [server, metric * (4 + parts of the day)], NaN where a metric was measured on too few steps.

    day: [server, step, metric], the same day for all servers, NaN = not measured. kinds, softness: [metric].
    """
    parts = min(PARTS_OF_DAY, day.shape[1])
    found = np.full((len(day), _LEVEL_AND_SHAPE + parts, day.shape[2]), np.nan, dtype=np.float32)
    enough = (~np.isnan(day)).mean(axis=1) >= MIN_MEASURED
    for server, of_server in enumerate(day):
        scaled = _log_scale(of_server.astype(np.float64), np.array(kinds), softness)
        for metric in np.flatnonzero(enough[server]):
            found[server, :, metric] = _of_series(scaled[:, metric], parts)
    return found.reshape(len(day), -1)


def _of_series(series: np.ndarray, parts: int) -> np.ndarray:
    measured = series[~np.isnan(series)]
    low, median, high = np.quantile(measured, SCORED_LEVELS)
    steps = np.abs(np.diff(series))
    steps = steps[~np.isnan(steps)]
    change = np.log(SOFTNESS + np.median(steps)) if steps.size else np.nan
    course = [_mean(part) - measured.mean() for part in np.array_split(series, parts)]
    return np.array([median, np.log(SOFTNESS + high - low), high + low - 2 * median, change, *course])


def _mean(part: np.ndarray) -> float:
    measured = part[~np.isnan(part)]
    return float(measured.mean()) if measured.size else np.nan


def _log_scale(values: np.ndarray, kinds: np.ndarray, softness: np.ndarray) -> np.ndarray:
    """Log odds of percentages, logarithms of rates, signed logarithms of values that may be negative."""
    lower = np.log(np.maximum(values, 0) + softness)
    upper = np.log(np.maximum(100 - values, 0) + softness)
    signed = np.arcsinh(values / (2 * softness))
    return np.select([kinds == "percent", kinds == "value"], [lower - upper, signed], lower)
