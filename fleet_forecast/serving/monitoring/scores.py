"""Online scores of the forecasts: each is stored for an hour at most and compared with the measurement.

Sums since the start, per metric and horizon, in the contract's units; a monitoring system divides their rates:
    coverage of the 80 % band = covered / scored        weighted quantile loss = pinball / absolute
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from fleet_forecast.contract.forecast_spec import BAND_80, REPORT_HORIZONS
from fleet_forecast.evaluation.scores import pinball_loss
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ModelView

LONGEST_SCORED_SECONDS = 3_600  # bounds the memory of past forecasts
SCORED_HORIZONS = {label: seconds for label, seconds in REPORT_HORIZONS.items() if seconds <= LONGEST_SCORED_SECONDS}


@dataclass
class Tally:
    """Sums over all compared values of one metric and horizon."""

    scored: int = 0
    covered_80: int = 0
    pinball: float = 0.0  # twice the loss, mean over the quantiles: its ratio to `absolute` is the WQL
    absolute: float = 0.0


@dataclass(frozen=True)
class _PastForecast:
    """One cycle's forecasts of the fleet at one horizon: float32 [server, metric, quantile]."""

    model: ModelView
    row_of: Mapping[str, int]
    quantiles: np.ndarray


class ForecastScores:
    """Compares each cycle's measurements with the forecasts that earlier cycles made for that time."""

    def __init__(self) -> None:
        self.tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)  # by metric and horizon
        self._past: dict[tuple[str, int], _PastForecast] = {}  # by horizon and target time
        self._last_origin = -1

    def update(self, snapshot: FleetSnapshot, excluded: Collection[str] = ()) -> None:
        """Score the past forecasts of the snapshot's origin, and store its own. Each origin counts once.

        excluded: names of servers whose measurements of the origin are not scored.
        """
        origin = snapshot.origin_seconds
        if origin is None or snapshot.model is None or origin == self._last_origin:
            return
        if origin < self._last_origin:
            if self._last_origin <= (snapshot.made_at_seconds or 0.0):
                return
            self._past.clear()  # the clock was ahead: these forecasts are for a time still to come
        self._last_origin = origin
        fresh = [f for f in snapshot.forecasts.values() if f.origin_seconds == origin and f.model == snapshot.model]
        fresh = [f for f in fresh if f.history_steps > 0 and f.server_name not in excluded]
        if not fresh:
            return
        names = [forecast.server_name for forecast in fresh]
        measured = np.array([forecast.current for forecast in fresh], dtype=np.float64)  # None becomes NaN
        for horizon, seconds in SCORED_HORIZONS.items():
            past = self._past.pop((horizon, origin), None)
            if past is not None and past.model.metrics == snapshot.model.metrics:
                self._score(past, names, measured, horizon)
            step = seconds // snapshot.model.step_seconds
            if 1 <= step <= fresh[0].horizon_steps and seconds % snapshot.model.step_seconds == 0:
                quantiles = np.stack([forecast.quantiles[:, :, step - 1] for forecast in fresh])
                rows = {name: row for row, name in enumerate(names)}
                self._past[horizon, origin + seconds] = _PastForecast(snapshot.model, rows, quantiles)
        for key in [key for key in self._past if key[1] <= origin]:  # a cycle was skipped
            del self._past[key]

    def _score(self, past: _PastForecast, names: list[str], measured: np.ndarray, horizon: str) -> None:
        common = [(past.row_of[name], row) for row, name in enumerate(names) if name in past.row_of]
        if not common:
            return
        then, now = np.array(common).T
        levels = past.model.quantiles
        for index, metric in enumerate(past.model.metrics):
            actual, quantiles = measured[now, index], past.quantiles[then, index].astype(np.float64)
            known = ~np.isnan(actual) & ~np.isnan(quantiles).any(axis=1)  # a metric can be new to a server
            actual, quantiles = actual[known], quantiles[known]
            tally = self.tallies[metric, horizon]
            tally.scored += len(actual)
            tally.absolute += float(np.abs(actual).sum())
            tally.pinball += float(2 * pinball_loss(actual, quantiles, levels).mean(axis=1).sum())
            if set(BAND_80) <= set(levels):
                low, high = (quantiles[:, levels.index(level)] for level in BAND_80)
                tally.covered_80 += int(((low <= actual) & (actual <= high)).sum())
