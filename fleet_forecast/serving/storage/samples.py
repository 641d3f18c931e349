"""Input and output of the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Sample(NamedTuple):
    """One accepted record; values are in the order of the store's metrics, None where not measured."""

    server_name: str
    timestamp_ms: int  # UTC, since 1970
    profile: str | None
    state: str | None
    values: tuple[float | None, ...]


class Batch(NamedTuple):
    """Samples of one sender; may_correct: whether they may replace stored values."""

    samples: Sequence[Sample]
    may_correct: bool = True


class Correction(NamedTuple):
    """A sample whose value of one field differs from the stored one of the same server and time."""

    place: int  # of the sample in its batch
    field: str  # the first that differs: a metric, or state
    stored: float | str
    sent: float | str


class RawSample(NamedTuple):
    """One stored sample; values are in the order of the store's metrics."""

    timestamp_ms: int
    state: str | None
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class KnownServer:
    """A server of the store; profile is None where its samples gave none."""

    server_id: int
    name: str
    profile: str | None


@dataclass(frozen=True)
class StepMeans:
    """Mean of each server's samples in one step.

    server_ids: int32 [server]; means: float32 [server, metric] in the order of the store's metrics, NaN where nothing
    was measured.
    """

    step: int
    server_ids: np.ndarray
    means: np.ndarray
