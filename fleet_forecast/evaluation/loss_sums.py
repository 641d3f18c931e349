"""Losses of a model and of a running baseline by profile, metric and report horizon, as sums.

The trainer makes them of the test period, the daemon of its own forecasts; both are compared day by day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import BUSINESS_DAY, BusinessCalendar, business_time, kind_of_day
from fleet_forecast.contract.forecast_spec import BAND_80, SCORED_LEVELS, report_horizons
from fleet_forecast.drift.detector import Day, Stream
from fleet_forecast.evaluation.backtest import MODEL, Backtest
from fleet_forecast.evaluation.scores import pinball_loss
from fleet_forecast.evaluation.weight_tables import UNKNOWN_PROFILE
from fleet_forecast.features.grid import FleetGrid

BASELINE = "window_quantiles_24h"
LOW, HIGH = (SCORED_LEVELS.index(level) for level in BAND_80)


class LossKey(NamedTuple):
    """What a sum is of; horizon: a label of REPORT_HORIZONS."""

    profile: str
    metric: str
    horizon: str


class Compared(NamedTuple):
    """Forecasts at one horizon and what was measured then.

    actual: [window, metric], NaN = not measured. model, baseline: [window, metric, level] at SCORED_LEVELS.
    """

    actual: np.ndarray
    model: np.ndarray
    baseline: np.ndarray


@dataclass
class LossSums:
    """Sums by key: float64 [5].

    Number of values, of those within the 80 % band, twice the pinball loss (mean over the levels) of model and of
    baseline, magnitude of the values.
    """

    sums: dict[LossKey, np.ndarray] = field(default_factory=dict)

    def add(self, profiles: Sequence[str], metrics: Sequence[str], horizon: str, compared: Compared) -> None:
        """Add the windows of one horizon. profiles: of each window."""
        known = ~np.isnan(compared.actual)
        for forecast in (compared.model, compared.baseline):
            known &= ~np.isnan(forecast).any(axis=2)
        actual = np.where(known, compared.actual, 0.0).astype(np.float64)
        low, high = compared.model[..., LOW], compared.model[..., HIGH]
        columns = np.stack(  # [window, metric, sum]
            [
                known,
                known & (low <= compared.actual) & (compared.actual <= high),
                *(_loss(actual, forecast, known) for forecast in (compared.model, compared.baseline)),
                np.abs(actual),
            ],
            axis=2,
            dtype=np.float64,
        )
        owners = np.array(profiles, dtype=object)
        for profile in dict.fromkeys(profiles):
            of_profile = columns[owners == profile].sum(axis=0)
            for metric, values in zip(metrics, of_profile, strict=True):
                if values[0]:
                    key = LossKey(profile, metric, horizon)
                    self.sums[key] = self.sums.get(key, 0.0) + values

    def merge(self, other: LossSums) -> None:
        """Add other sums."""
        for key, values in other.sums.items():
            self.sums[key] = self.sums.get(key, 0.0) + values

    def log_ratios(self) -> dict[Stream, float]:
        """log(model loss / baseline loss) over all horizons by profile and metric, where both are positive."""
        totals: dict[Stream, np.ndarray] = {}
        for key, values in self.sums.items():
            stream = Stream(key.profile, key.metric)
            totals[stream] = totals.get(stream, 0.0) + values
        return {
            stream: float(np.log(total[2] / total[3])) for stream, total in totals.items() if total[2] > 0 < total[3]
        }

    def as_day(self, number: int, calendar: BusinessCalendar) -> Day:
        """For the test of change. number: days since 1970; the kind of day is that of noon, UTC."""
        noon = np.array([np.datetime64(number, "D") + np.timedelta64(12, "h")])
        is_off = kind_of_day(business_time(noon, calendar))[0] != BUSINESS_DAY
        return Day(number, self.log_ratios(), bool(is_off))

    def figures(self) -> dict[LossKey, dict[str, float | None]]:
        """Number of values, coverage of the 80 % band in percent, WQL of model and baseline, by key."""
        return {
            key: {
                "scored": int(count),
                "coverage_80": round(100 * inside / count, 2),
                "wql": round(lost / magnitude, 5) if magnitude else None,
                "baseline_wql": round(by_baseline / magnitude, 5) if magnitude else None,
            }
            for key, (count, inside, lost, by_baseline, magnitude) in sorted(self.sums.items())
        }

    def as_fields(self) -> list[list[Any]]:
        """For `restore`, in JSON types."""
        return [[*key, *values.tolist()] for key, values in sorted(self.sums.items())]

    @classmethod
    def restore(cls, fields: Iterable[Sequence[Any]]) -> LossSums:
        """What `as_fields` returned. Raises TypeError or ValueError for something else."""
        found = cls()
        for profile, metric, horizon, *values in fields:
            found.sums[LossKey(str(profile), str(metric), str(horizon))] = np.array(values, np.float64).reshape(5)
        return found


def losses_by_day(backtest: Backtest, grid: FleetGrid) -> dict[int, LossSums]:
    """Sums of a backtest by the UTC day of the origins, in days since 1970; empty without the baseline.

    grid: the one that the backtest's rows and origins are in.
    """
    found: dict[int, LossSums] = {}
    if BASELINE not in backtest.forecasts:
        return found
    levels = [backtest.quantiles.index(level) for level in SCORED_LEVELS]
    days = grid.timestamps()[backtest.origins].astype("datetime64[D]").astype(np.int64)
    profiles = np.array([grid.profiles[row] or UNKNOWN_PROFILE for row in backtest.rows], dtype=object)
    for label, seconds in report_horizons(backtest.actual.shape[1] * grid.step_seconds).items():
        step = max(seconds // grid.step_seconds, 1) - 1
        model, baseline = (backtest.forecasts[name][:, step][..., levels] for name in (MODEL, BASELINE))
        for day in np.unique(days).tolist():
            of_day = days == day
            compared = Compared(backtest.actual[of_day, step], model[of_day], baseline[of_day])
            found.setdefault(day, LossSums()).add(profiles[of_day].tolist(), backtest.metrics, label, compared)
    return found


def _loss(actual: np.ndarray, forecast: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Twice the pinball loss, mean over SCORED_LEVELS, 0 where not known: [window, metric]."""
    loss = 2 * pinball_loss(actual, np.where(known[..., None], forecast, 0.0), SCORED_LEVELS).mean(axis=2)
    return np.where(known, loss, 0.0)
