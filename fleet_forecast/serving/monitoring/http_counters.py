"""Counts of refused requests and closed connections, for /metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class HttpCounters:
    """Counts since the start."""

    refused: Counter[str] = field(default_factory=Counter)  # requests that a check refused, by status
    wrong_tokens: int = 0
    closed: Counter[str] = field(default_factory=Counter)  # connections closed by a limit, by limit
