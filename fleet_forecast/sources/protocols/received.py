"""The result of decoding one request: rows of the contract, and counts of samples that are in no row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from fleet_forecast.contract.specs import METRICS


class MalformedBodyError(ValueError):
    """A received body cannot be used as a whole; the message names the reason and the remedy."""


class RefusedSamples(NamedTuple):
    """Samples of a used metric that are not a measurement of one server, metric and time."""

    field: str
    value: str | float
    reason: str
    samples: int


@dataclass
class ReceivedSamples:
    """The content of one request.

    rows: by server name and time (ms since 1970, UTC): values in the order of METRICS, None where not measured.
    samples: number of samples or data points behind each value of a row, where it is not one each.
    not_measured: samples whose value is NaN (a stale marker too) or infinite. left_out: samples by the name of their
    metric, which is not used. notices: other samples that were not used, by reason. on_stored: to be called when the
    rows are on disk, with the servers that were refused. width: number of metrics.
    """

    rows: dict[tuple[str, int], list[float | None]] = field(default_factory=dict)
    samples: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    refused: list[RefusedSamples] = field(default_factory=list)
    not_measured: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)
    on_stored: Callable[[Collection[str]], None] = lambda _refused: None
    width: int = field(default_factory=lambda: len(METRICS))

    def row(self, server_name: str, timestamp_ms: int) -> list[float | None]:
        """The row of a server and time, a new one without values if there is none."""
        key = (server_name, timestamp_ms)
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = [None] * self.width
        return row

    def samples_behind(self, key: tuple[str, int], metric_index: int) -> int:
        """Number of samples behind one value."""
        counts = self.samples.get(key)
        return 1 if counts is None else counts[metric_index]
