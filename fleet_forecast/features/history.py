"""Values before and after forecast origins, cut from an array of a whole fleet."""

from __future__ import annotations

import numpy as np


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
