"""Counts, sums and means over what was measured: arrays [window, step, metric], NaN = not measured.

Metrics, the last axis, are few, and numpy works along it: an operator that must look up something per metric, or sum
over the steps, takes several times as long as one that runs along all of a window. So sums are products, and what is
known per window is laid out for each of its steps first.
"""

from __future__ import annotations

import numpy as np


def summed(values: np.ndarray) -> np.ndarray:
    """Sum of [window, step, metric] over the steps: [window, metric]."""
    return np.ones(values.shape[1], dtype=values.dtype) @ values


def products_summed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same of a * b; inf where it does not fit."""
    with np.errstate(over="ignore"):
        return summed(a * b)


def counted(flags: np.ndarray) -> np.ndarray:
    """How many of boolean [window, step, metric] are true: float32 [window, metric]."""
    return summed(flags.astype(np.float32))


def at_each_step(of_window: np.ndarray, steps: int) -> np.ndarray:
    """[window, metric] laid out as [window, step, metric]."""
    return np.repeat(of_window[:, None], steps, axis=1)


def centred(values: np.ndarray, unknown: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [window, metric] over axis 1 but for the `unknown`, and what remains of the values, 0 where unknown.

    values: float32 [window, step, metric], overwritten; unknown: boolean like them; known: how many are not.
    """
    np.copyto(values, 0.0, where=unknown)
    mean = summed(values) / np.maximum(known, np.float32(1.0))
    values -= at_each_step(mean, values.shape[1])
    np.copyto(values, 0.0, where=unknown)
    return mean, values
