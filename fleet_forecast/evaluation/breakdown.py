"""Errors of a backtest by horizon, hour of the day, profile and metric, and calibration.

Errors are WQL at SCORED_LEVELS as in scores.weighted_quantile_loss, mean over the metrics, of the model and of the best
baseline. They go into evaluation.json as lists and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fleet_forecast.contract.calendar import local_time
from fleet_forecast.contract.forecast_spec import BAND_80, SCORED_LEVELS, report_horizons
from fleet_forecast.evaluation.backtest import MODEL, Backtest
from fleet_forecast.evaluation.scores import pinball_loss
from fleet_forecast.evaluation.weight_tables import UNKNOWN_PROFILE
from fleet_forecast.features.grid import FleetGrid

WINDOWS_AT_ONCE = 512  # bounds memory
ALL_PROFILES = "all"
HOUR_SECONDS = 3_600


def breakdown(backtest: Backtest, baseline: str, grid: FleetGrid, timezone: str) -> dict[str, Any]:
    """The document of one group of servers: baseline, by_horizon, by_hour, by_profile, by_metric, calibration.

    baseline: the method to compare with. grid: the one that the backtest's rows and origins are in. Hours are those of
    the business time zone. All errors are over the points that both methods forecast.
    """
    scored = ~np.isnan(backtest.actual)
    for method in (MODEL, baseline):
        scored &= ~np.isnan(backtest.forecasts[method]).any(axis=3)
    magnitude = np.where(scored, np.abs(backtest.actual), 0.0)
    losses = {"model": _losses(backtest, MODEL, scored), "baseline": _losses(backtest, baseline, scored)}
    profiles = _profiles(backtest, grid)
    first_hours, hours = _hours_of_the_horizon(backtest, grid.step_seconds)

    def errors(masks: Sequence[Any]) -> dict[str, list[float | None]]:
        """Errors of model and baseline over the points of each mask."""
        return {name: [_number(_ratio(loss, magnitude, mask)) for mask in masks] for name, loss in losses.items()}

    of_day = _hours_of_the_day(backtest, grid, timezone)
    inside = _inside(backtest, scored)
    return {
        "baseline": baseline,
        "by_horizon": {"hours": hours, **errors([np.s_[:, first:last] for first, last in first_hours])},
        "by_hour": {"hours": list(range(24)), **errors([of_day == hour for hour in range(24)])},
        "by_profile": [
            {
                "profile": name,
                "windows": int(mask.sum()),
                "model": _number(_ratio(losses["model"], magnitude, mask)),
                "baseline_wql": _number(_ratio(losses["baseline"], magnitude, mask)),
                "coverage_80": _percentage(inside[mask].sum(), scored[mask].sum()),
            }
            for name, mask in profiles.items()
        ],
        "by_metric_horizon": _by_metric_horizon(backtest, grid.step_seconds, scored, inside),
        "calibration": _calibration(backtest, scored, profiles),
    }


def _losses(backtest: Backtest, method: str, scored: np.ndarray) -> np.ndarray:
    """Twice the pinball loss, mean over SCORED_LEVELS, 0 where not scored: float32 [window, horizon, metric]."""
    columns = [backtest.quantiles.index(level) for level in SCORED_LEVELS]
    forecast, found = backtest.forecasts[method], np.zeros(scored.shape, dtype=np.float32)
    for first in range(0, len(found), WINDOWS_AT_ONCE):
        part = slice(first, first + WINDOWS_AT_ONCE)
        loss = 2 * pinball_loss(backtest.actual[part], forecast[part][..., columns], SCORED_LEVELS).mean(axis=-1)
        found[part] = np.where(scored[part], loss, 0.0)
    return found


def _ratio(loss: np.ndarray, magnitude: np.ndarray, points: Any) -> float:
    """WQL over some points of [window, horizon], mean over the metrics; NaN without any."""
    lost, total = (
        part[points].reshape(-1, part.shape[-1]).astype(np.float64).sum(axis=0) for part in (loss, magnitude)
    )
    measured = total > 0
    return float((lost[measured] / total[measured]).mean()) if measured.any() else np.nan


def _profiles(backtest: Backtest, grid: FleetGrid) -> dict[str, np.ndarray]:
    """Boolean [window] by profile."""
    owner = np.array([grid.profiles[row] or UNKNOWN_PROFILE for row in backtest.rows])
    return {str(name): owner == name for name in np.unique(owner)}


def _hours_of_the_horizon(backtest: Backtest, step_seconds: int) -> tuple[list[tuple[int, int]], list[float]]:
    """First and last step (excluded) of each hour of the horizon, and the hour at which it ends."""
    steps = backtest.actual.shape[1]
    length = max(1, HOUR_SECONDS // step_seconds)
    ranges = [(first, min(first + length, steps)) for first in range(0, steps, length)]
    return ranges, [round(last * step_seconds / HOUR_SECONDS, 2) for _, last in ranges]


def _hours_of_the_day(backtest: Backtest, grid: FleetGrid, timezone: str) -> np.ndarray:
    """Hour of each forecast step in the business time zone: int [window, horizon]."""
    steps = np.arange(1, backtest.actual.shape[1] + 1)
    origins = grid.timestamps()[backtest.origins].astype("datetime64[s]")
    moments = origins[:, None] + (steps * grid.step_seconds).astype("timedelta64[s]")
    return local_time(moments, timezone).minute_of_day // 60


def _inside(backtest: Backtest, scored: np.ndarray) -> np.ndarray:
    """Whether the 80 % band of the model has the value: boolean [window, horizon, metric], False where not scored."""
    low, high = (backtest.forecasts[MODEL][..., backtest.quantiles.index(level)] for level in BAND_80)
    return scored & (low <= backtest.actual) & (backtest.actual <= high)


def _by_metric_horizon(
    backtest: Backtest, step_seconds: int, scored: np.ndarray, inside: np.ndarray
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Metric -> report horizon -> WQL over all quantiles and coverage, as the daemon scores its own forecasts."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    horizons = report_horizons(backtest.actual.shape[1] * step_seconds)
    for column, metric in enumerate(backtest.metrics):
        for label, seconds in horizons.items():
            step = max(seconds // step_seconds, 1) - 1
            known = scored[:, step, column]
            actual = backtest.actual[known, step, column].astype(np.float64)
            forecast = backtest.forecasts[MODEL][known, step, column].astype(np.float64)
            loss, total = 2 * pinball_loss(actual, forecast, backtest.quantiles).sum(), np.abs(actual).sum()
            found.setdefault(metric, {})[label] = {
                "wql": _number(loss / len(backtest.quantiles) / total) if total else None,
                "coverage_80": _percentage(inside[:, step, column].sum(), known.sum()),
            }
    return found


def _calibration(backtest: Backtest, scored: np.ndarray, profiles: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Percentage of values at or below each quantile, over all profiles and by profile; ideal is the level."""
    forecast = backtest.forecasts[MODEL]
    everywhere = np.ones(len(backtest.rows), dtype=bool)
    below = np.zeros((len(backtest.rows), len(backtest.quantiles)), dtype=np.int64)  # (window, quantile)
    for level in range(len(backtest.quantiles)):
        below[:, level] = (scored & (backtest.actual <= forecast[..., level])).sum(axis=(1, 2))
    points = scored.sum(axis=(1, 2))
    return [
        {
            "profile": name,
            "levels": list(backtest.quantiles),
            "below": [_percentage(count, points[mask].sum()) for count in below[mask].sum(axis=0)],
        }
        for name, mask in {ALL_PROFILES: everywhere, **profiles}.items()
    ]


def _percentage(part: float, whole: float) -> float | None:
    return round(100 * float(part) / float(whole), 2) if whole else None


def _number(value: float) -> float | None:
    return None if not np.isfinite(value) else round(float(value), 5)
