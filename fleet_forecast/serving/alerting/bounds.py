"""Thresholds of a metric: an upper bound, a lower one, or both."""

from __future__ import annotations

from typing import Any, NamedTuple


class Limit(NamedTuple):
    """One bound, in the metric's unit; is_lower: values below it are a breach, otherwise values above it."""

    value: float
    is_lower: bool = False

    def is_crossed_by(self, values: Any) -> Any:
        """Whether a value, or each of an array, is beyond the bound."""
        return values < self.value if self.is_lower else values > self.value


class Bounds(NamedTuple):
    """Upper and lower bound of a metric, None for none."""

    above: float | None = None
    below: float | None = None

    @property
    def limits(self) -> list[Limit]:
        """The bounds that there are, the upper one first."""
        upper = [] if self.above is None else [Limit(self.above)]
        return upper if self.below is None else [*upper, Limit(self.below, is_lower=True)]


NO_BOUNDS = Bounds()
