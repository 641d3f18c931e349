"""The shape of a window: how its own values are distributed, as the scale on which the network's answers are read.

An idle server with rare bursts, one that switches between two levels and one that swings evenly may have windows of one
centre and spread, and little else in common. So a network's quantiles are normal scores, and a score is read at the
window's own quantile of that probability (a normal-score transform): a network that has learned nothing says of every
server what its last day was like, and learns where tomorrow departs from that. Beyond the outermost quantiles a
score grows as the inverse of `compress` does: linearly at first, then ever faster.

With few measured steps the shape is drawn toward that of what followed when its profile's servers had shown as few
(short_history.py), so that of a new server the untrained network says what its kind is like. How servers of a kind
differ says little of how one of them varies: as the history fills the context, a day, that becomes the normal shape.
"""

from __future__ import annotations

import statistics

import numpy as np

from fleet_forecast.features.masked_statistics import counted

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
NORMAL_SCORES = tuple(statistics.NormalDist().inv_cdf(level) for level in LEVELS)
MIDDLE = LEVELS.index(0.5)
PRIOR_STEPS = 24.0  # what the shape is drawn toward counts as many measured steps
NARROWEST_GAP = 0.03  # between neighbours, in spreads: any score can be told from any other


def window_shape(units: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Quantiles of windows at LEVELS: float32 [window, metric, level], in spreads from the centre, increasing.

    units: float32 [window, step, metric], in spreads from the centre, NaN = not measured.
    prior: float32 [window, metric, level], what it is drawn toward (FleetScaling.shape).
    """
    ascending = np.sort(units, axis=1)  # NaN last
    known = units.shape[1] - counted(np.isnan(units)).astype(np.int64)  # [window, metric]
    last = np.maximum(known - 1, 0)
    place = last[..., None] * np.array(LEVELS)
    below = place.astype(np.int64)
    above = np.minimum(below + 1, last[..., None])
    low, high = (np.take_along_axis(ascending, at.swapaxes(1, 2), axis=1).swapaxes(1, 2) for at in (below, above))
    own = np.nan_to_num(low + (high - low) * (place - below))
    weight = (known / (known + PRIOR_STEPS))[..., None]
    shape = weight * own + (1.0 - weight) * prior
    gaps = np.maximum(np.diff(shape, axis=-1), NARROWEST_GAP)
    middle = shape[..., MIDDLE, None]
    upper = middle + gaps[..., MIDDLE:].cumsum(axis=-1)
    lower = middle - gaps[..., MIDDLE - 1 :: -1].cumsum(axis=-1)
    return np.concatenate([lower[..., ::-1], middle, upper], axis=-1, dtype=np.float32)
