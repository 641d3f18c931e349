"""Values before and after forecast origins, cut from an array of a whole fleet; coarsely measured servers.

The rows of some servers are farther apart than the model's step: 10, 15 or 60 minutes on a grid of 5 minutes. On the
grid most of their cells are empty, so the same time yesterday would mostly be unknown. Within a
window, the steps between two consecutive rows are therefore interpolated linearly. Only rows up to the window's origin
are used, a longer gap stays empty, and targets are never interpolated. A server that is measured at most steps is left
as it is.
"""

from __future__ import annotations

import numpy as np

LARGEST_SHARE_OF_DAY = 1 / 8  # of the distance between rows: beyond, a line between two of them is not an estimate
FEWEST_ROWS = 4  # that show a distance
_SERVERS_AT_ONCE = 256  # bounds memory


def past_values(values: np.ndarray, rows: np.ndarray, origins: np.ndarray, steps: int) -> np.ndarray:
    """The last `steps` steps up to and including each origin: float32 [window, step, metric].

    values: float32 [server, step, metric]. rows, origins: int64 [window]. NaN before the first step of `values`.
    """
    index = origins[:, None] + np.arange(1 - steps, 1)
    taken = values[rows[:, None], np.maximum(index, 0)]
    taken[index < 0] = np.nan
    return taken


def future_values(values: np.ndarray, rows: np.ndarray, origins: np.ndarray, horizon_steps: int) -> np.ndarray:
    """The steps after each origin: float32 [window, horizon, metric], NaN after the last step of `values`."""
    index = origins[:, None] + np.arange(1, horizon_steps + 1)
    taken = values[rows[:, None], np.minimum(index, values.shape[1] - 1)]
    taken[index >= values.shape[1]] = np.nan
    return taken


def row_distances(values: np.ndarray, day_steps: int) -> np.ndarray | None:
    """Usual distance between measured steps where it is more than one: int64 [server, metric], else 1; None: nowhere.

    values: float32 [server, step, metric], NaN = not measured. A distance is usual if it is the median and at least
    two thirds of the distances are within a third of it; randomly missing steps do not have one.
    """
    found = np.ones((len(values), values.shape[2]), dtype=np.int64)
    for first in range(0, len(values), _SERVERS_AT_ONCE):
        measured = ~np.isnan(values[first : first + _SERVERS_AT_ONCE])
        neighbours = np.count_nonzero(measured[:, 1:] & measured[:, :-1], axis=1)
        count = np.count_nonzero(measured, axis=1)
        for server, metric in np.argwhere((count >= FEWEST_ROWS) & (2 * neighbours < count)):
            distances = np.diff(np.flatnonzero(measured[server, :, metric]))
            usual = int(np.median(distances))
            is_usual = np.abs(distances - usual) <= usual // 3
            if 1 < usual <= LARGEST_SHARE_OF_DAY * day_steps and 3 * np.count_nonzero(is_usual) >= 2 * len(distances):
                found[first + server, metric] = usual
    return found if (found > 1).any() else None


def interpolate_between_rows(past: np.ndarray, distances: np.ndarray) -> None:
    """Fills the steps between two rows that are about the usual distance apart, in place.

    past: float32 [window, step, metric], NaN = not measured. distances: [window, metric], 1 = nothing is filled.
    """
    for window, metric in np.argwhere(distances > 1):
        series, usual = past[window, :, metric], distances[window, metric]
        known = np.flatnonzero(~np.isnan(series))
        if len(known) < 2:
            continue
        gaps = np.diff(known)
        steps = np.arange(known[0], known[-1])
        near = np.repeat(gaps <= usual + usual // 2, gaps)
        filled = np.interp(steps, known, series[known])
        series[steps[near]] = filled[near]
