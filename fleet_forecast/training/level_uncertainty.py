"""How far the level of a new server is in doubt beyond how far those of the servers trained on lie apart.

A network that has seen nine servers of a kind learns where these nine lie. Of a tenth, shown without any history, it
then says that it will lie among them, and is too sure: that their mean is not their kind's, nor their deviation, it
cannot know. With normal levels, n servers say of the next one a Student distribution of n - 1 degrees of freedom
(Geisser 1993, Predictive Inference), whose variance exceeds theirs by 4 (n - 1) / (n (n - 3)) of their sample variance.
So much is added in training to the levels of windows that show no history, and less to those that show some.
"""

from __future__ import annotations

import numpy as np

from fleet_forecast.training.sampling import WindowSource

FEWEST_SERVERS = 5  # of fewer the distribution has no variance, or one too large to learn from


def level_doubt(source: WindowSource, rows: np.ndarray, end_step: int) -> np.ndarray:
    """Deviation of what is to be added to levels: link space, float32 [1 + profile, metric], row 0 for all servers.

    rows: the servers trained on (int64); end_step: of the training part. A profile of a single server has that of the
    whole fleet; a fleet of one has none.
    """
    levels = np.stack([_level(source.linked[row, :end_step]) for row in rows])  # [server, metric]
    owner = source.profile_rows[rows]
    fleet = np.nan_to_num(doubt_after(levels))
    of_profiles = [doubt_after(levels[owner == row]) for row in range(1, len(source.scaling.centre))]
    return np.stack([fleet, *(np.where(np.isnan(own), fleet, own) for own in of_profiles)])


def doubt_after(levels: np.ndarray) -> np.ndarray:
    """The same after servers of one kind, float [server, metric]: float32 [metric], NaN after fewer than two."""
    n = (~np.isnan(levels)).sum(axis=0)
    from_mean = levels - np.nansum(levels, axis=0) / np.maximum(n, 1)
    variance = np.nansum(from_mean**2, axis=0) / np.maximum(n - 1, 1)
    counted = np.maximum(n, FEWEST_SERVERS)
    doubt = np.sqrt(variance * 4 * (counted - 1) / (counted * (counted - 3)))
    return np.where(n > 1, doubt, np.nan).astype(np.float32)


def _level(linked: np.ndarray) -> np.ndarray:
    """Mean of each column of [step, metric] over what was measured, NaN if nothing was."""
    measured = ~np.isnan(linked)
    with np.errstate(invalid="ignore"):
        return np.where(measured, linked, 0.0).sum(axis=0, dtype=np.float64) / measured.sum(axis=0)
