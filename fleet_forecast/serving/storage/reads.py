"""Reads of stored means and samples. All functions run on the store's thread and raise DamagedError."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import numpy as np

from fleet_forecast.serving.storage.integrity import stored_means, stored_server_ids
from fleet_forecast.serving.storage.samples import RawSample, StepMeans

FLOAT32_BYTES = 4


def read_step_means(
    database: sqlite3.Connection, metric_count: int, first_step: int, last_step: int
) -> list[StepMeans]:
    """Means of all servers in the steps from `first_step` to `last_step`."""
    rows = database.execute(
        "SELECT step, server_ids, means FROM steps WHERE step BETWEEN ? AND ? ORDER BY step", (first_step, last_step)
    )
    return [stored_means(row, metric_count) for row in rows]


def read_step_range(database: sqlite3.Connection) -> tuple[int, int]:
    """First and last step with samples or means; (0, -1) if there is none."""
    ends = database.execute(
        "SELECT min(step), max(step) FROM steps UNION ALL SELECT min(step), max(step) FROM samples"
    ).fetchall()
    found = [each for each in ends if each[0] is not None]
    return (min(first for first, _ in found), max(last for _, last in found)) if found else (0, -1)


def read_server_means(
    database: sqlite3.Connection, metric_count: int, server_id: int, first_step: int, last_step: int
) -> dict[int, np.ndarray]:
    """Means of one server: float32 [metric] by step, of the steps in which it was measured.

    Reads the server ids and this server's means only: the means of a large fleet are half a megabyte a step.
    """
    found: dict[int, np.ndarray] = {}
    row_bytes = FLOAT32_BYTES * metric_count
    rows = database.execute(
        "SELECT step, server_ids FROM steps WHERE step BETWEEN ? AND ? ORDER BY step", (first_step, last_step)
    )
    for step, content in rows:
        with database.blobopen("steps", "means", step, readonly=True) as means:
            for row in np.flatnonzero(stored_server_ids(content, len(means), metric_count) == server_id).tolist():
                means.seek(row * row_bytes)
                found[step] = np.frombuffer(means.read(row_bytes), np.float32)
    return found


def read_sample_means(
    database: sqlite3.Connection, select: str, server_id: int, first_step: int, last_step: int
) -> dict[int, np.ndarray]:
    """Means of one server's samples: float32 [metric] by step, of the steps with a sample.

    select: Statements.server_means.
    """
    found: dict[int, np.ndarray] = {}
    for step in range(first_step, last_step + 1):
        samples, *means = database.execute(select, (step, server_id)).fetchone()
        if samples:
            found[step] = np.array(means, dtype=np.float64).astype(np.float32)  # None becomes NaN
    return found


class RawPage(NamedTuple):
    """Which samples of one server to read: those of some steps after a time, up to a number."""

    server_id: int
    first_step: int
    last_step: int
    after_ms: int
    most: int


def read_raw_samples(database: sqlite3.Connection, select: str, page: RawPage) -> list[RawSample]:
    """Samples of one server as received, sorted by time. select: Statements.raw."""
    found: list[RawSample] = []
    for step in range(page.first_step, page.last_step + 1):
        rows = database.execute(select, (step, page.server_id, page.after_ms, page.most - len(found)))
        found += [RawSample(row[0], row[1], row[2:]) for row in rows]
        if len(found) >= page.most:
            break
    return found
