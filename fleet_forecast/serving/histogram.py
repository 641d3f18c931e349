"""A histogram of durations in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

BUCKET_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)


@dataclass
class Histogram:
    """Durations in cumulative buckets."""

    bounds: tuple[float, ...] = BUCKET_SECONDS
    counts: list[int] = field(default_factory=list)
    total: float = 0.0
    observations: int = 0

    def __post_init__(self) -> None:
        self.counts = [0] * len(self.bounds)

    def observe(self, value: float) -> None:
        """Count one duration."""
        self.total += value
        self.observations += 1
        for index, bound in enumerate(self.bounds):
            if value <= bound:
                self.counts[index] += 1

    def samples(self, name: str) -> Iterator[str]:
        """Lines of the text format."""
        for bound, count in zip(self.bounds, self.counts, strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.observations}'
        yield f"{name}_sum {self.total!r}"
        yield f"{name}_count {self.observations}"
