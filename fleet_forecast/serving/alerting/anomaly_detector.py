"""How far servers depart from what was forecast for them an hour before, all metrics taken together.

Trouble shows in how metrics move together before any of them is extreme by itself: latency rises while traffic falls.

1. Each measured value gets a score among the quantiles that the forecast of an hour before gave for it (0: the median,
   2: about the quantile 0.98). The scores of the last quarter of an hour are averaged.
2. What most servers of a profile share is no server's trouble (a maintenance window, a holiday, market news): their
   median is taken off, where it is large.
3. The averages are compared with how those of healthy servers scatter together: T² = s' C⁻¹ s (Hotelling 1947). C
   speaks of ordinary times only and knows no kind of trouble.
4. It is trouble if service suffers: where latency is measured, it has to be above what was forecast. Two numbers turn T
   into the probability that the server is in trouble.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast

LEAD_SECONDS = 3_600
WINDOW_SECONDS = 900
LONGEST_GAP_SECONDS = 900  # after a longer silence a server is judged anew: the forecast before knew nothing of it
NARROWEST_GAP = 0.005  # between two quantiles, as a share of the median: a constant metric is no oracle
FEWEST_PEERS = 5  # servers of a profile whose median says what they share
LARGE_SHARED_SCORE = 1.0
SERVICE = "latency_ms"
NO_STEP = -1

# How averages of healthy servers scatter, in the order of METRICS, with the variances enlarged by two fifths, since a
# forecast may be off in its own way for one server; and how the odds of trouble grow with T. Measured on simulated
# fleets of the seeds 101 and 201; `benchmarks/alerts.py --choose --seeds 101,201` prints such lines for any model.
SCATTER = (
    (1.025, 0.319, 0.316, 0.351, 0.356, 0.276),
    (0.319, 1.131, 0.237, 0.261, 0.265, 0.212),
    (0.316, 0.237, 0.912, 0.276, 0.282, 0.221),
    (0.351, 0.261, 0.276, 0.936, 0.519, 0.248),
    (0.356, 0.265, 0.282, 0.519, 0.942, 0.245),
    (0.276, 0.212, 0.221, 0.248, 0.245, 0.896),
)
INTERCEPT, SLOPE = -15.35, 3.31


class Departure(NamedTuple):
    """One server's departure from its forecast.

    probability: of trouble. shares: float [metric], the part of each in T², NaN where it was not measured; they add up
    to T². low, high: float [metric], the quantiles 0.1 and 0.9 that were forecast for the last values, NaN if none was.
    """

    probability: float
    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray


def scores(values: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Where values lie among forecast quantiles, on the scale of a standard normal.

    values: [...], NaN where not measured; quantiles: [..., quantile], not decreasing. Returns [...]. Linear between the
    quantiles, logarithmic beyond the outermost: the metrics of servers have long tails.
    """
    normal = np.array([statistics.NormalDist().inv_cdf(level) for level in levels])
    narrowest = NARROWEST_GAP * np.abs(quantiles[..., len(levels) // 2, None]) + 1e-3
    gaps = np.maximum(np.diff(quantiles, axis=-1), narrowest)  # [..., quantile - 1]
    below = np.sum(quantiles <= values[..., None], axis=-1)  # quantiles not above the value: 0 .. Q
    anchor = np.maximum(below - 1, 0)[..., None]
    gap = np.minimum(anchor, len(levels) - 2)
    share = (values - np.take_along_axis(quantiles, anchor, -1)[..., 0]) / np.take_along_axis(gaps, gap, -1)[..., 0]
    outside = (below == 0) | (below == len(levels))
    share = np.where(outside, np.sign(share) * np.log1p(np.abs(share)), share)
    return normal[anchor[..., 0]] + share * np.diff(normal)[gap[..., 0]]


def shares_of_distance(averages: np.ndarray, scatter: np.ndarray) -> np.ndarray:
    """Parts of T² by metric: s_i (C⁻¹ s)_i, [server, metric]; NaN where a metric is unknown.

    averages: [server, metric], NaN where unknown, which leaves the metric out of s and C; scatter: C, [metric, metric].
    """
    shares = np.full(averages.shape, np.nan)
    known = ~np.isnan(averages)
    for pattern in np.unique(known, axis=0):
        if pattern.any():
            servers = np.flatnonzero((known == pattern).all(axis=1))
            part = averages[np.ix_(servers, pattern)]
            weighted = np.linalg.solve(scatter[np.ix_(pattern, pattern)], part.T).T
            shares[np.ix_(servers, pattern)] = part * weighted
    return shares


def distance(shares: np.ndarray) -> np.ndarray:
    """T from its parts, [server]; an unknown metric counts as one that scatters as usual: its part is 1 on average."""
    found: np.ndarray = np.sqrt(np.where(np.isnan(shares), 1.0, shares).sum(axis=-1))
    return found


class Departures:
    """Remembers what was forecast for each server for the coming hour, and scores what then came."""

    def __init__(self, model: ModelView) -> None:
        self._model = model
        self._lead = max(1, LEAD_SECONDS // model.step_seconds)
        self._window = max(1, WINDOW_SECONDS // model.step_seconds)
        self._longest_gap = max(1, LONGEST_GAP_SECONDS // model.step_seconds)
        chosen = [METRICS.index(metric) for metric in model.metrics]
        self._scatter = np.array(SCATTER)[np.ix_(chosen, chosen)]
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._profiles: dict[str, int] = {}
        shape = (len(model.metrics), len(model.quantiles))
        self._said = np.zeros((0, self._lead, *shape), np.float32)  # [row, target step modulo lead, metric, quantile]
        self._said_for = np.zeros((0, self._lead), np.int64)  # the target steps
        self._scores = np.zeros((0, self._window, shape[0]), np.float32)  # [row, step modulo window, metric]
        self._scored = np.zeros((0, self._window), np.int64)  # the steps
        self._averages = np.zeros((0, shape[0]), np.float32)
        self._newest = np.zeros(0, np.int64)  # [row] last origin
        self._profile = np.zeros(0, np.int64)  # [row] position in _profiles

    def fits(self, model: ModelView) -> bool:
        """Whether a model's forecasts can be compared with what is remembered."""
        own = self._model
        return (own.metrics, own.quantiles, own.step_seconds) == (model.metrics, model.quantiles, model.step_seconds)

    def take(self, forecasts: Sequence[ServerForecast]) -> list[Departure | None]:
        """Take in a cycle's forecasts, each server's origins in order; None where it is not known what was forecast."""
        if not forecasts:
            return []
        averages, said = self.averages(forecasts)
        shares = shares_of_distance(averages, self._scatter)
        probability = 1 / (1 + np.exp(-(INTERCEPT + SLOPE * distance(shares))))
        if SERVICE in self._model.metrics:
            service = averages[:, self._model.metrics.index(SERVICE)]
            probability[service <= 0] = 0.0  # what is not measured is NaN, and stays
        known = ~np.isnan(shares).all(axis=1)
        levels = self._model.quantiles
        low, high = said[..., levels.index(0.1)], said[..., levels.index(0.9)]
        return [
            Departure(float(probability[row]), shares[row], low[row], high[row]) if known[row] else None
            for row in range(len(forecasts))
        ]

    def averages(self, forecasts: Sequence[ServerForecast]) -> tuple[np.ndarray, np.ndarray]:
        """Take in a cycle's forecasts; gives average scores less what peers share, and what had been forecast.

        Scores: [server, metric], NaN where unknown. Forecast an hour before: [server, metric, quantile], NaN if none.
        """
        rows = np.array([self._row(forecast) for forecast in forecasts], dtype=np.int64)
        steps = np.array([f.origin_seconds // self._model.step_seconds for f in forecasts], dtype=np.int64)
        silent = rows[steps - self._newest[rows] > self._longest_gap]
        self._said_for[silent] = self._scored[silent] = NO_STEP
        self._newest[rows] = steps
        known = self._said_for[rows, steps % self._lead] == steps
        said = np.where(known[:, None, None], self._said[rows, steps % self._lead], np.nan)
        measured = np.array([forecast.current for forecast in forecasts], dtype=np.float64)  # None becomes NaN
        self._score(rows, steps, scores(measured, said, self._model.quantiles))
        self._remember(rows, steps, forecasts)
        return self._averages[rows] - self._shared(rows, steps), said

    def keep_only(self, server_names: Iterable[str]) -> None:
        """Forget all other servers."""
        for name in self._row_of.keys() - set(server_names):
            row = self._row_of.pop(name)
            self._said_for[row] = self._scored[row] = self._newest[row] = NO_STEP
            self._free.append(row)

    def _row(self, forecast: ServerForecast) -> int:
        row = self._row_of.get(forecast.server_name)
        if row is None:
            if not self._free:
                self._grow()
            row = self._row_of[forecast.server_name] = self._free.pop()
        self._profile[row] = self._profiles.setdefault(forecast.profile, len(self._profiles))
        return row

    def _grow(self) -> None:
        """Twice the room."""
        rows = len(self._newest)
        more = max(64, rows)

        def longer(array: np.ndarray, value: float) -> np.ndarray:
            return np.concatenate([array, np.full((more, *array.shape[1:]), value, array.dtype)])

        self._said, self._scores, self._averages = (
            longer(array, np.nan) for array in (self._said, self._scores, self._averages)
        )
        self._said_for, self._scored, self._newest, self._profile = (
            longer(array, NO_STEP) for array in (self._said_for, self._scored, self._newest, self._profile)
        )
        self._free = list(range(rows + more - 1, rows - 1, -1))

    def _score(self, rows: np.ndarray, steps: np.ndarray, fresh: np.ndarray) -> None:
        """Averages over the window; NaN where less than half of it is known."""
        self._scores[rows, steps % self._window] = fresh
        self._scored[rows, steps % self._window] = steps
        within = self._scored[rows] > steps[:, None] - self._window  # (server, slot)
        recent = np.where(within[..., None], self._scores[rows], np.nan)  # (server, slot, metric)
        count = np.sum(~np.isnan(recent), axis=1)
        enough = 2 * count >= self._window
        self._averages[rows] = np.where(enough, np.nansum(recent, axis=1) / np.maximum(count, 1), np.nan)

    def _remember(self, rows: np.ndarray, steps: np.ndarray, forecasts: Sequence[ServerForecast]) -> None:
        """The target step one lead ahead has the slot of the step just scored."""
        reaches = np.array([f.history_steps > 0 and f.horizon_steps >= self._lead for f in forecasts])
        ahead = np.stack([f.quantiles[:, :, min(self._lead, f.horizon_steps) - 1] for f in forecasts])
        self._said[rows, steps % self._lead] = ahead
        self._said_for[rows, steps % self._lead] = np.where(reaches, steps + self._lead, NO_STEP)

    def _shared(self, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The median score of each server's profile at its step where that is large, else 0: [server, metric]."""
        shared = np.zeros((len(rows), len(self._model.metrics)), np.float32)
        kinds = np.stack([self._profile[rows], steps], axis=1)
        for profile, step in np.unique(kinds, axis=0):
            peers = self._averages[(self._profile == profile) & (self._newest == step)]
            enough = np.sum(~np.isnan(peers), axis=0) >= FEWEST_PEERS
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a metric that no peer measures
                median = np.nanmedian(peers, axis=0)
            large = enough & (np.abs(median) > LARGE_SHARED_SCORE)
            shared[(kinds == (profile, step)).all(axis=1)] = np.where(large, median, 0.0)
        return shared
