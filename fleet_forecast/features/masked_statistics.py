"""Sums, counts and means over the steps of windows with missing values.

Arrays are [window, step, metric], NaN = not measured. The metric axis is short and NumPy loops over the last axis, so
sums are written as matrix products and values per window are repeated over the steps before they are combined: both
are several times as fast as broadcasting.
"""

from __future__ import annotations

import numpy as np


def sum_over_steps(values: np.ndarray) -> np.ndarray:
    """Sum of [window, step, metric] over the steps: [window, metric]."""
    return np.ones(values.shape[1], dtype=values.dtype) @ values


def dot_over_steps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of a * b over the steps: [window, metric]; inf where it overflows."""
    with np.errstate(over="ignore"):
        return sum_over_steps(a * b)


def count_over_steps(flags: np.ndarray) -> np.ndarray:
    """Number of true values of boolean [window, step, metric] over the steps: float32 [window, metric]."""
    return sum_over_steps(flags.astype(np.float32))


def repeat_over_steps(values: np.ndarray, steps: int) -> np.ndarray:
    """[window, metric] -> [window, step, metric]."""
    return np.repeat(values[:, None], steps, axis=1)


def masked_mean_and_deviations(
    values: np.ndarray, missing: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Masked mean over the steps [window, metric], and the deviations from it, 0 where missing.

    values: float32 [window, step, metric], overwritten. missing: boolean of the same shape. count: values that are not
    missing [window, metric].
    """
    np.copyto(values, 0.0, where=missing)
    mean = sum_over_steps(values) / np.maximum(count, np.float32(1.0))
    values -= repeat_over_steps(mean, values.shape[1])
    np.copyto(values, 0.0, where=missing)
    return mean, values
