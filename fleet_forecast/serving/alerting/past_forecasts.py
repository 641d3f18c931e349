"""Scores measurements against the forecasts made an hour before, for all servers of one model.

1. Each measured value is scored among the quantiles forecast for it an hour before (0: the median, 2: about the
   quantile 0.98). The scores of the last quarter of an hour are averaged.
2. A deviation that most servers of a profile share (a maintenance window, a holiday, market news) is not a problem of
   one server: the median of the profile is subtracted if it is large.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Sequence

import numpy as np

from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast

LEAD_SECONDS = 3_600
WINDOW_SECONDS = 900
MAX_GAP_SECONDS = 900  # after a longer gap a server starts again: its past forecast did not have the recent values
MIN_QUANTILE_GAP = 0.005  # as a share of the median: bounds the scores of a metric that was constant
MIN_PEERS = 5  # servers of a profile for a median of the profile
LARGE_MEDIAN_SCORE = 1.0
MAX_PROFILES = 64  # clients choose the names; further profiles count as one
NO_STEP = -1


def normal_scores(values: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Standard normal scores of values among forecast quantiles.

    values: [...], NaN where not measured; quantiles: [..., quantile], not decreasing. Returns [...]. Linear between the
    quantiles, logarithmic beyond the outermost, because metrics of servers have long tails.
    """
    normal = np.array([statistics.NormalDist().inv_cdf(level) for level in levels])
    narrowest = MIN_QUANTILE_GAP * np.abs(quantiles[..., len(levels) // 2, None]) + 1e-3
    gaps = np.maximum(np.diff(quantiles, axis=-1), narrowest)  # [..., quantile - 1]
    below = np.sum(quantiles <= values[..., None], axis=-1)  # quantiles not above the value: 0 .. Q
    anchor = np.maximum(below - 1, 0)[..., None]
    gap = np.minimum(anchor, len(levels) - 2)
    share = (values - np.take_along_axis(quantiles, anchor, -1)[..., 0]) / np.take_along_axis(gaps, gap, -1)[..., 0]
    outside = (below == 0) | (below == len(levels))
    share = np.where(outside, np.sign(share) * np.log1p(np.abs(share)), share)
    return normal[anchor[..., 0]] + share * np.diff(normal)[gap[..., 0]]


class PastForecasts:
    """Ring buffers of past forecasts and their scores; a row a server."""

    def __init__(self, model: ModelView) -> None:
        self.model = model
        self._lead = max(1, LEAD_SECONDS // model.step_seconds)
        self._window = max(1, WINDOW_SECONDS // model.step_seconds)
        self._max_gap = max(1, MAX_GAP_SECONDS // model.step_seconds)
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._profile_numbers: dict[str, int] = {}
        shape = (len(model.metrics), len(model.quantiles))
        self._past = np.zeros((0, self._lead, *shape), np.float32)  # [row, target step modulo lead, metric, quantile]
        self._target_steps = np.zeros((0, self._lead), np.int64)
        self._scores = np.zeros((0, self._window, shape[0]), np.float32)  # [row, step modulo window, metric]
        self._scored_steps = np.zeros((0, self._window), np.int64)
        self._averages = np.zeros((0, shape[0]), np.float32)
        self._newest = np.zeros(0, np.int64)  # [row] last origin
        self._profile = np.zeros(0, np.int64)  # [row] number of the profile

    def is_compatible(self, model: ModelView) -> bool:
        """Whether forecasts of a model can be compared with the stored ones."""
        own = self.model
        return (own.metrics, own.quantiles, own.step_seconds) == (model.metrics, model.quantiles, model.step_seconds)

    def update(self, forecasts: Sequence[ServerForecast]) -> tuple[np.ndarray, np.ndarray]:
        """Score the present values of a cycle and store its forecasts, each server's origins in order.

        Returns the average scores less the profile's median [server, metric], NaN where unknown, and the past
        forecasts of the present values [server, metric, quantile], NaN if there are none.
        """
        rows = np.array([self._row(forecast) for forecast in forecasts], dtype=np.int64)
        steps = np.array([f.origin_seconds // self.model.step_seconds for f in forecasts], dtype=np.int64)
        after_gap = rows[steps - self._newest[rows] > self._max_gap]
        self._target_steps[after_gap] = self._scored_steps[after_gap] = NO_STEP
        self._newest[rows] = steps
        known = self._target_steps[rows, steps % self._lead] == steps
        past = np.where(known[:, None, None], self._past[rows, steps % self._lead], np.nan)
        measured = np.array([forecast.current for forecast in forecasts], dtype=np.float64)  # None becomes NaN
        self._average(rows, steps, normal_scores(measured, past, self.model.quantiles))
        self._store(rows, steps, forecasts)
        return self._averages[rows] - self._profile_medians(rows, steps), past

    def keep_only(self, server_names: Iterable[str]) -> None:
        """Discard all other servers."""
        for name in self._row_of.keys() - set(server_names):
            row = self._row_of.pop(name)
            self._target_steps[row] = self._scored_steps[row] = self._newest[row] = NO_STEP
            self._free.append(row)

    def _row(self, forecast: ServerForecast) -> int:
        row = self._row_of.get(forecast.server_name)
        if row is None:
            if not self._free:
                self._grow()
            row = self._row_of[forecast.server_name] = self._free.pop()
        number = min(len(self._profile_numbers), MAX_PROFILES - 1)
        if number < MAX_PROFILES - 1:
            number = self._profile_numbers.setdefault(forecast.profile, number)
        self._profile[row] = self._profile_numbers.get(forecast.profile, number)
        return row

    def _grow(self) -> None:
        """Double the rows."""
        rows = len(self._newest)
        more = max(64, rows)

        def longer(array: np.ndarray, value: float) -> np.ndarray:
            return np.concatenate([array, np.full((more, *array.shape[1:]), value, array.dtype)])

        self._past, self._scores, self._averages = (
            longer(array, np.nan) for array in (self._past, self._scores, self._averages)
        )
        self._target_steps, self._scored_steps, self._newest, self._profile = (
            longer(array, NO_STEP) for array in (self._target_steps, self._scored_steps, self._newest, self._profile)
        )
        self._free = list(range(rows + more - 1, rows - 1, -1))

    def _average(self, rows: np.ndarray, steps: np.ndarray, scores: np.ndarray) -> None:
        """Averages over the window; NaN where less than half of it is known."""
        self._scores[rows, steps % self._window] = scores
        self._scored_steps[rows, steps % self._window] = steps
        within = self._scored_steps[rows] > steps[:, None] - self._window  # (server, position)
        recent = np.where(within[..., None], self._scores[rows], np.nan)  # (server, position, metric)
        count = np.sum(~np.isnan(recent), axis=1)
        enough = 2 * count >= self._window
        self._averages[rows] = np.where(enough, np.nansum(recent, axis=1) / np.maximum(count, 1), np.nan)

    def _store(self, rows: np.ndarray, steps: np.ndarray, forecasts: Sequence[ServerForecast]) -> None:
        """The forecast for one lead ahead replaces the one for the step just scored."""
        long_enough = np.array([f.history_steps > 0 and f.horizon_steps >= self._lead for f in forecasts])
        ahead = np.stack([f.quantiles[:, :, min(self._lead, f.horizon_steps) - 1] for f in forecasts])
        self._past[rows, steps % self._lead] = ahead
        self._target_steps[rows, steps % self._lead] = np.where(long_enough, steps + self._lead, NO_STEP)

    def _profile_medians(self, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The median score of each server's profile at its step where that is large, else 0: [server, metric]."""
        medians = np.zeros((len(rows), len(self.model.metrics)), np.float32)
        groups = np.stack([self._profile[rows], steps], axis=1)
        for profile, step in np.unique(groups, axis=0):
            peers = self._averages[(self._profile == profile) & (self._newest == step)]
            enough = np.sum(~np.isnan(peers), axis=0) >= MIN_PEERS
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a metric that no peer measures
                median = np.nanmedian(peers, axis=0)
            large = enough & (np.abs(median) > LARGE_MEDIAN_SCORE)
            medians[(groups == (profile, step)).all(axis=1)] = np.where(large, median, 0.0)
        return medians
