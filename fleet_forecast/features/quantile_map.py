"""Window quantiles: the empirical distribution of a window's own values, as knots of a quantile map.

Windows of equal loc and scale can have very different distributions: idle with rare bursts, two alternating levels, a
steady oscillation. The network therefore outputs normal scores, and a score is mapped to the window's quantile of the
same probability (normal-score transform). An untrained network forecasts the distribution of the window; training
learns the deviations from it. Beyond the outermost quantiles a score grows as sinh, the inverse of the asinh of the
inputs.

With few measured steps the window quantiles are shrunk toward the prior of cold_start.py, estimated for the server's
profile at that length of history. For a whole context the prior is the normal distribution, because differences between
servers say little about the variation of a single one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from fleet_forecast.features.masked_statistics import count_over_steps

KNOT_LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)  # of the map; the levels of a forecast may differ
_NORMAL = statistics.NormalDist()


def normal_scores(levels: Sequence[float]) -> tuple[float, ...]:
    """Quantiles of the normal distribution."""
    return tuple(_NORMAL.inv_cdf(level) for level in levels)


NORMAL_SCORES = normal_scores(KNOT_LEVELS)
MEDIAN_KNOT = KNOT_LEVELS.index(0.5)
PRIOR_STEPS = 24.0  # weight of the prior, in measured steps
SMALLEST_GAP = 0.03  # between neighbouring quantiles, standardised: keeps the map strictly increasing


def window_quantiles(standardised: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Quantiles of windows at KNOT_LEVELS: float32 [window, metric, knot], standardised, strictly increasing.

    standardised: float32 [window, step, metric], NaN = not measured.
    prior: float32 [window, metric, knot] (FleetScaling.prior_quantiles).
    """
    ascending = np.sort(standardised, axis=1)  # NaN last
    measured = standardised.shape[1] - count_over_steps(np.isnan(standardised)).astype(np.int64)  # [window, metric]
    last = np.maximum(measured - 1, 0)
    position = last[..., None] * np.array(KNOT_LEVELS)
    below = position.astype(np.int64)
    above = np.minimum(below + 1, last[..., None])
    low, high = (np.take_along_axis(ascending, at.swapaxes(1, 2), axis=1).swapaxes(1, 2) for at in (below, above))
    own = np.nan_to_num(low + (high - low) * (position - below))
    weight = (measured / (measured + PRIOR_STEPS))[..., None]
    shrunk = weight * own + (1.0 - weight) * prior
    gaps = np.maximum(np.diff(shrunk, axis=-1), SMALLEST_GAP)
    median = shrunk[..., MEDIAN_KNOT, None]
    upper = median + gaps[..., MEDIAN_KNOT:].cumsum(axis=-1)
    lower = median - gaps[..., MEDIAN_KNOT - 1 :: -1].cumsum(axis=-1)
    return np.concatenate([lower[..., ::-1], median, upper], axis=-1, dtype=np.float32)
