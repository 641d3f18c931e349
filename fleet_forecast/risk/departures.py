"""Departures: how far a server deviates from what was forecast for it an hour before, in all metrics together.

A failing server has unusual combinations of metrics before a single metric is extreme: latency rises as traffic falls.

1. Each measured value is scored among the quantiles forecast for it an hour before (0: the median, 2: about the
   quantile 0.98). The scores of the last quarter of an hour are averaged.
2. A deviation that most servers of a profile share (a maintenance window, a holiday, market news) is no trouble of one
   server: the median of the profile is subtracted if it is large.
3. The average scores s are compared with their covariance C over healthy servers: T² = s' C⁻¹ s (Hotelling 1947).
4. A logistic curve turns T into the probability that the server is in trouble. It was fitted on simulated fleets, so T
   is first brought to their scale: a T that healthy servers exceed as rarely has the same probability. Beyond a high
   quantile, T is taken to be exponential (peaks over threshold: Pickands 1975, with shape 0).

C, the quantile and the tail are those of the fleet that the model was trained on, in the days that it was not trained
on (training/risk/departures.py). A model without them uses those of the simulator.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

LEAD_SECONDS = 3_600
WINDOW_SECONDS = 900
MIN_QUANTILE_GAP = 0.005  # as a share of the median: bounds the scores of a metric that was constant
MIN_PEERS = 5  # servers of a profile for a median of the profile
LARGE_MEDIAN_SCORE = 1.0
HIGH_LEVEL = 0.98  # quantile of T over healthy servers beyond which its tail begins


@dataclass(frozen=True)
class DepartureStatistics:
    """Average scores of healthy servers.

    covariance: [metric][metric]. high_t: the T that 2 % of them exceed. tail: mean excess of T above it. A missing
    metric has no covariance.
    """

    metrics: tuple[str, ...]
    covariance: tuple[tuple[float, ...], ...]
    high_t: float
    tail: float

    def of_metrics(self, metrics: Sequence[str]) -> tuple[list[int], np.ndarray]:
        """Positions in `metrics` of those with a covariance, and the covariance of these."""
        known = [place for place, metric in enumerate(metrics) if metric in self.metrics]
        rows = [self.metrics.index(metrics[place]) for place in known]
        return known, np.array(self.covariance, dtype=np.float64)[np.ix_(rows, rows)]

    def probability(self, t: np.ndarray) -> np.ndarray:
        """That a server with this T is in trouble."""
        as_simulated = SIMULATED.high_t + (t - self.high_t) * (SIMULATED.tail / self.tail)
        found: np.ndarray = 1 / (1 + np.exp(-(INTERCEPT + SLOPE * as_simulated)))
        return found

    def to_json(self) -> str:
        """The content of a file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DepartureStatistics:
        """Parse `to_json`; raises ValueError if it is not that of usable statistics."""
        try:
            fields = json.loads(text)
            metrics = tuple(str(name) for name in fields["metrics"])
            covariance = np.array(fields["covariance"], dtype=np.float64)
            high_t, tail = float(fields["high_t"]), float(fields["tail"])
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not statistics of departures ({error})") from error
        if covariance.shape != (len(metrics), len(metrics)) or not np.isfinite(covariance).all():
            raise ValueError(f"the covariance is not one of {len(metrics)} metrics")
        if not metrics or np.linalg.eigvalsh((covariance + covariance.T) / 2).min() <= 0:
            raise ValueError("the covariance is not positive definite")
        if not (0 < high_t < np.inf and 0 < tail < np.inf):
            raise ValueError(f"high_t is {high_t:g}, tail {tail:g}; both must be positive")
        return cls(metrics, tuple(map(tuple, covariance.tolist())), high_t, tail)


# Of simulated fleets of the seeds 101 and 201; variances are 40 % larger than measured, because a forecast may have an
# error of its own for each server. `benchmarks/alerts.py --choose --seeds 101,201` prints all of them for any model.
SIMULATED = DepartureStatistics(
    ("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms"),
    (
        (1.025, 0.319, 0.316, 0.351, 0.356, 0.276),
        (0.319, 1.131, 0.237, 0.261, 0.265, 0.212),
        (0.316, 0.237, 0.912, 0.276, 0.282, 0.221),
        (0.351, 0.261, 0.276, 0.936, 0.519, 0.248),
        (0.356, 0.265, 0.282, 0.519, 0.942, 0.245),
        (0.276, 0.212, 0.221, 0.248, 0.245, 0.896),
    ),
    high_t=2.90,
    tail=0.36,
)
INTERCEPT, SLOPE = -15.35, 3.31
INFLATION = 0.4  # added share of the variances


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


def average_scores(scores: np.ndarray) -> np.ndarray:
    """Averages of [server, step of the window, metric]: [server, metric], NaN where less than half is known."""
    count = np.sum(~np.isnan(scores), axis=1)
    enough = 2 * count >= scores.shape[1]
    return np.where(enough, np.nansum(scores, axis=1) / np.maximum(count, 1), np.nan)


def shared_score(averages: np.ndarray) -> np.ndarray:
    """What the servers of a profile at one step share: their median score where it is large, else 0: [metric].

    averages: [server, metric].
    """
    enough = np.sum(~np.isnan(averages), axis=0) >= MIN_PEERS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a metric that no server measures
        median = np.nanmedian(averages, axis=0)
    return np.where(enough & (np.abs(median) > LARGE_MEDIAN_SCORE), median, 0.0)


def t2_contributions(averages: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Parts of T² by metric: s_i (C⁻¹ s)_i, [server, metric]; NaN where a metric is unknown.

    averages: s, [server, metric], NaN where unknown, which leaves the metric out of s and C; covariance: C, [metric,
    metric].
    """
    contributions = np.full(averages.shape, np.nan)
    known = ~np.isnan(averages)
    for pattern in np.unique(known, axis=0):
        if pattern.any():
            servers = np.flatnonzero((known == pattern).all(axis=1))
            part = averages[np.ix_(servers, pattern)]
            weighted = np.linalg.solve(covariance[np.ix_(pattern, pattern)], part.T).T
            contributions[np.ix_(servers, pattern)] = part * weighted
    return contributions


def t_statistic(contributions: np.ndarray) -> np.ndarray:
    """T from its parts, [server]. An unknown metric has the expected contribution of a healthy server, 1."""
    t: np.ndarray = np.sqrt(np.where(np.isnan(contributions), 1.0, contributions).sum(axis=-1))
    return t
