"""The result of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Finding:
    """kept: whether the promise was kept, None if the experiment was skipped. shown: the figures as text."""

    kept: bool | None
    shown: str
    figures: dict[str, Any] = field(default_factory=dict)


def not_tried(reason: str) -> Finding:
    """The finding of an experiment that this machine does not permit."""
    return Finding(None, f"skipped: {reason}")


def milliseconds(seconds: Sequence[float], quantile: float) -> float:
    """A quantile of durations, in milliseconds."""
    return round(float(np.quantile(seconds, quantile)) * 1000, 1)


def growth_mib_per_hour(memory: Sequence[tuple[float, float]]) -> float:
    """Slope of [(seconds, MiB)]. The first third is left out: page cache and arenas of the interpreter fill up."""
    later = np.array([entry for entry in memory if entry[0] >= memory[-1][0] / 3])
    return float(np.polyfit(later[:, 0], later[:, 1], 1)[0]) * 3600
