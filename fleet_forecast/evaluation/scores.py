"""Scores of probabilistic forecasts: one function per named score, and the table of all of them by metric.

Definitions follow the forecasting literature; sums and means are over the measured points that are given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fleet_forecast.contract.forecast_spec import BAND_80, BAND_96, MEDIAN_LEVEL, SCORED_LEVELS

BANDS = {"coverage_80": BAND_80, "coverage_96": BAND_96}  # score -> levels of the central interval
SCORES = ("wql", "mase", "wape", "accuracy", *BANDS)
AMOUNTS = ["points", "total"]  # further columns of score tables: number of points, and sum of |actual|


def pinball_loss(actual: np.ndarray, forecast: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """max(q * error, (q - 1) * error) with error = actual - forecast (Koenker & Bassett 1978).

    actual [...], forecast [..., quantile] -> [..., quantile].
    """
    error = actual[..., None] - forecast
    levels = np.asarray(quantiles, dtype=np.float64)
    return np.maximum(levels * error, (levels - 1.0) * error)


def weighted_quantile_loss(actual: np.ndarray, forecast: np.ndarray, quantiles: Sequence[float]) -> float:
    """WQL: mean over quantiles of 2 * sum(pinball loss) / sum(|actual|) (Salinas et al. 2020; GIFT-Eval).

    actual [point], forecast [point, quantile]. NaN if all actual values are 0.
    """
    loss = pinball_loss(actual, forecast, quantiles)
    return float(np.mean(2 * loss.sum(axis=0) / _total(actual)))


def mean_absolute_scaled_error(actual: np.ndarray, median: np.ndarray, seasonal_error: np.ndarray) -> float:
    """MASE: mean |actual - median| / mean |actual - actual one season before| (Hyndman & Koehler 2006).

    seasonal_error [point]: the denominator of each point's server, see `mean_seasonal_error`. NaN if its mean is 0.
    """
    miss = np.abs(actual - median)
    return float(miss.mean() / seasonal_error.mean()) if seasonal_error.mean() > 0 else np.nan


def weighted_absolute_percentage_error(actual: np.ndarray, median: np.ndarray) -> float:
    """WAPE: sum |actual - median| / sum |actual|. NaN if all actual values are 0."""
    return float(np.abs(actual - median).sum() / _total(actual))


def coverage(actual: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """Percentage of points with lower <= actual <= upper."""
    inside = (actual >= lower) & (actual <= upper)
    return float(100 * inside.mean())


def mean_seasonal_error(values: np.ndarray, day_steps: int) -> np.ndarray:
    """Mean |value - value one day before| (GluonTS: seasonal_error): float32 [server, metric].

    values: [server, step, metric], NaN = not measured. A server without a pair of days gets the mean of the fleet.
    """
    total, count = np.zeros(values[:, 0].shape, np.float32), np.zeros(values[:, 0].shape, np.int64)
    for server, of_server in enumerate(values):  # one server at a time: the differences of a fleet need much memory
        change = np.abs(of_server[day_steps:] - of_server[:-day_steps])
        measured = ~np.isnan(change)
        count[server] = measured.sum(axis=0)
        total[server] = np.where(measured, change, 0.0).sum(axis=0)
    own = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    fleet = total.sum(axis=0) / np.maximum(count.sum(axis=0), 1)
    return np.where(np.isnan(own), fleet, own).astype(np.float32)


def score_table(
    actual: np.ndarray,
    forecast: np.ndarray,
    quantiles: Sequence[float],
    scored: np.ndarray,
    seasonal_error: np.ndarray,
) -> pd.DataFrame:
    """One row per metric with the columns SCORES and AMOUNTS, over the points in `scored`.

    actual [window, horizon, metric], forecast [window, horizon, metric, quantile], scored: boolean like actual,
    seasonal_error [window, metric]. All scores of a metric without a point are NaN.
    """
    records = []
    for metric in range(actual.shape[2]):
        mask = scored[:, :, metric]
        truth = actual[:, :, metric][mask].astype(np.float64)
        predicted = forecast[:, :, metric][mask].astype(np.float64)  # [point, quantile]
        scale = np.broadcast_to(seasonal_error[:, None, metric], mask.shape)[mask]
        records.append(_score_points(truth, predicted, list(quantiles), scale))
    return pd.DataFrame.from_records(records)


def _score_points(
    actual: np.ndarray, forecast: np.ndarray, quantiles: list[float], seasonal_error: np.ndarray
) -> dict[str, float]:
    """SCORES and AMOUNTS of one metric: actual [point], forecast [point, quantile], seasonal_error [point]."""
    if actual.size == 0:
        return {**dict.fromkeys(SCORES, np.nan), "points": 0, "total": 0.0}
    median = forecast[:, quantiles.index(MEDIAN_LEVEL)]
    wape = weighted_absolute_percentage_error(actual, median)
    levels = [quantiles.index(level) for level in SCORED_LEVELS]
    return {
        "wql": weighted_quantile_loss(actual, forecast[:, levels], SCORED_LEVELS),
        "mase": mean_absolute_scaled_error(actual, median, seasonal_error),
        "wape": wape,
        "accuracy": 100 * (1 - wape),
        **{name: _band_coverage(actual, forecast, quantiles, band) for name, band in BANDS.items()},
        "points": actual.size,
        "total": float(np.abs(actual).sum()),
    }


def _band_coverage(
    actual: np.ndarray, forecast: np.ndarray, quantiles: list[float], band: tuple[float, float]
) -> float:
    """Coverage of the interval between two quantile levels, NaN if one of them is not forecast."""
    if not set(band) <= set(quantiles):
        return np.nan
    lower, upper = (forecast[:, quantiles.index(level)] for level in band)
    return coverage(actual, lower, upper)


def _total(actual: np.ndarray) -> float:
    """sum(|actual|), NaN where it is 0 and nothing can be divided by it."""
    return float(np.abs(actual).sum()) or np.nan
