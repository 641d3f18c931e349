"""Bounded transform: physical range of a metric <-> real line.

Increasing, and the identity except near each bound (0, and 100 for percentages), where it becomes logarithmic. Metrics
do sit exactly at a bound (an idle disk writes 0 MB/s): a censored variable (Tobin 1958). The bound maps to a finite
value, and everything beyond a value shortly before it maps back to the bound. So the median of a server that is mostly
idle is exactly zero, although the estimate in transformed units is inexact. The inverse of any real number is within
the physical range by construction.

How far from a bound the logarithmic part reaches, the bound width, is chosen for each metric by likelihood
(bound_width.py). A width of 0 means that the metric has no bounds: it may be any number, and is not transformed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BOUND = 0.05  # in bound widths: distance of the physical bound from the end of the open range
BOUND_MARGIN = 0.1  # in bound widths, transformed: distance of the physical bound from the values that map back to it
VALUES_AT_ONCE = 2**20  # limits the memory of intermediate arrays


@dataclass(frozen=True)
class BoundedTransform:
    """The transform of each metric.

    percent: boolean [metric], True for percentages. bound_width: float32 [metric], physical units, distance from a
    bound within which the transform is not the identity; 0: the metric has no bounds.
    """

    percent: np.ndarray
    bound_width: np.ndarray

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Physical units [..., metric] -> float32 [..., metric]; NaN stays NaN."""
        if not self._bounded.all():
            return self._where_bounded(values, BoundedTransform.transform)
        if values.ndim == 1 or values.size <= VALUES_AT_ONCE:
            return self._transform(values)
        transformed = np.empty(values.shape, dtype=np.float32)
        rows = max(1, len(values) * VALUES_AT_ONCE // values.size)
        for first in range(0, len(values), rows):
            transformed[first : first + rows] = self._transform(values[first : first + rows])
        return transformed

    def _transform(self, values: np.ndarray) -> np.ndarray:
        # Single precision, in place, on long rows, with one log of a quotient: this runs on every step of a history.
        # Both parts of the quotient are at least 1 - exp(-BOUND / 2), so at most two of seven digits cancel.
        rows = values.reshape(len(values), -1) if values.ndim > 1 else values[None]
        scale, hundred, width = (
            np.tile(per_metric.astype(np.float32), rows.shape[1] // len(self.percent))
            for per_metric in (self._inside / self.bound_width, self._hundred, self.bound_width)
        )
        inside = np.multiply(rows, scale, dtype=np.float32)
        inside += np.float32(BOUND)
        from_upper = np.maximum(hundred - inside, BOUND / 2)  # smaller by rounding only; inf for a rate
        transformed = _one_minus_exp_minus(inside.copy())
        transformed /= _one_minus_exp_minus(from_upper)
        np.log(transformed, out=transformed)
        transformed += inside
        np.subtract(transformed, np.float32(BOUND_MARGIN), out=transformed, where=rows <= 0)
        np.add(transformed, np.float32(BOUND_MARGIN), out=transformed, where=rows >= hundred * width)
        transformed *= width
        return transformed.reshape(values.shape)

    def log_derivative(self, values: np.ndarray) -> np.ndarray:
        """Logarithm of the derivative of the transform, in double precision; values: physical units [..., metric]."""
        inside = self._inside * np.asarray(values, dtype=np.float64) / self.bound_width + BOUND
        from_upper = np.maximum(self._hundred - inside, BOUND / 2)
        from_bounds = np.exp(-inside) / -np.expm1(-inside) + np.exp(-from_upper) / -np.expm1(-from_upper)
        return np.log(self._inside * (1.0 + from_bounds))

    def inverse(self, transformed: np.ndarray) -> np.ndarray:
        """Transformed [..., metric] -> physical units [..., metric], within [0, 100] or [0, inf)."""
        if not self._bounded.all():
            return self._where_bounded(transformed, BoundedTransform.inverse)
        in_widths = transformed / self.bound_width
        inside = np.logaddexp(0.0, in_widths) - np.logaddexp(0.0, in_widths - self._hundred)
        values = np.clip((inside - BOUND) / self._inside, 0.0, self._hundred)
        return (self.bound_width * values).astype(np.float32, copy=False)

    @property
    def _bounded(self) -> np.ndarray:
        """Boolean [metric]."""
        return self.bound_width > 0

    def _where_bounded(
        self, values: np.ndarray, change: Callable[[BoundedTransform, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """The values [..., metric], with those of metrics that have bounds changed; float32."""
        changed, bounded = values.astype(np.float32), self._bounded
        if bounded.any():
            part = BoundedTransform(self.percent[bounded], self.bound_width[bounded])
            changed[..., bounded] = change(part, values[..., bounded])
        return changed

    @property
    def _hundred(self) -> np.ndarray:
        """The upper bound in bound widths, inf where there is none: float32 [metric]."""
        return np.where(self.percent, 100.0 / self.bound_width, np.inf).astype(np.float32)

    @property
    def _inside(self) -> np.ndarray:
        """Factor that shrinks the range to leave BOUND at each end: float32 [metric]."""
        return np.where(self.percent, 1.0 - 2.0 * BOUND * self.bound_width / 100.0, 1.0).astype(np.float32)


def _one_minus_exp_minus(values: np.ndarray) -> np.ndarray:
    """1 - exp(-values), in place."""
    np.negative(values, out=values)
    np.exp(values, out=values)
    return np.subtract(1.0, values, out=values)
