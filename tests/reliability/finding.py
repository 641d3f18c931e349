"""What an experiment found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Finding:
    """kept: whether the promise was kept, None where it could not be tried here. shown: the figures in words."""

    kept: bool | None
    shown: str
    figures: dict[str, Any] = field(default_factory=dict)


def not_tried(reason: str) -> Finding:
    """The machine does not allow the experiment."""
    return Finding(None, f"not tried: {reason}")


def milliseconds(seconds: Sequence[float], quantile: float) -> float:
    """A quantile of durations, in milliseconds."""
    return round(float(np.quantile(seconds, quantile)) * 1000, 1)
