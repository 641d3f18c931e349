"""The fleet on a regular time grid: contract rows in, one dense array [server, step, metric] out.

A cell no sample fell into is NaN ("not measured"); nothing is filled. Samples finer than the step are averaged onto it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


class GridError(ValueError):
    """The rows cannot be laid on a regular grid; the message names the column, the value and the remedy."""


@dataclass(frozen=True)
class FleetGrid:
    """Measurements of a fleet on one time axis.

    values: float32 [server, step, metric] in the contract's units, NaN where nothing was measured.
    start: datetime64[s], UTC, the time of step 0; step t is at ``start + t * step_seconds``.
    """

    servers: tuple[str, ...]
    profiles: tuple[str | None, ...]
    metrics: tuple[str, ...]
    start: np.datetime64
    step_seconds: int
    values: np.ndarray

    @property
    def steps(self) -> int:
        """Number of grid steps."""
        return int(self.values.shape[1])

    def timestamps(self) -> np.ndarray:
        """datetime64[s] [step]."""
        return self.start + np.arange(self.steps) * np.timedelta64(self.step_seconds, "s")

    def step_at(self, timestamp: np.datetime64) -> int:
        """Index of the step that holds `timestamp`; may lie outside the grid."""
        elapsed_seconds = (timestamp.astype("datetime64[s]") - self.start) / np.timedelta64(1, "s")
        return int(np.floor(elapsed_seconds / self.step_seconds))

    def select(self, servers: Sequence[int] | np.ndarray) -> FleetGrid:
        """The grid of some servers, by index."""
        rows = [int(row) for row in servers]
        return FleetGrid(
            tuple(self.servers[row] for row in rows),
            tuple(self.profiles[row] for row in rows),
            self.metrics,
            self.start,
            self.step_seconds,
            self.values[rows],
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, metrics: Sequence[str], step_seconds: int) -> FleetGrid:
        """Lay contract rows (see data_contract.read_metrics) on the grid.

        Raises GridError if there is no row or if a server's rows name two profiles.
        """
        if frame.empty:
            raise GridError("the data has no rows: nothing to lay on a time grid; provide at least one row")
        server_of_row, servers = pd.factorize(frame["server_name"].astype(str).to_numpy(dtype=object), sort=True)
        seconds = frame["timestamp"].to_numpy(dtype="datetime64[s]").astype(np.int64)
        step_of_row = seconds // step_seconds
        first_step = int(step_of_row.min())
        steps = int(step_of_row.max()) - first_step + 1
        cell_of_row = server_of_row * steps + (step_of_row - first_step)
        values = np.empty((len(servers), steps, len(metrics)), dtype=np.float32)
        for index, metric in enumerate(metrics):
            column = frame[metric].to_numpy(dtype=np.float32, na_value=np.nan)
            values[:, :, index] = _cell_means(cell_of_row, column, len(servers) * steps).reshape(len(servers), steps)
        return cls(
            servers=tuple(str(name) for name in servers),
            profiles=_profile_of_each_server(frame, servers, server_of_row),
            metrics=tuple(metrics),
            start=np.datetime64(first_step * step_seconds, "s"),
            step_seconds=step_seconds,
            values=values,
        )


def infer_step_seconds(frame: pd.DataFrame) -> int:
    """The most frequent distance between consecutive rows of a server, in seconds.

    Raises GridError if no server has two rows.
    """
    ordered = frame.sort_values(["server_name", "timestamp"])
    seconds = ordered["timestamp"].to_numpy(dtype="datetime64[s]").astype(np.int64)
    names = ordered["server_name"].astype(str).to_numpy()
    gaps = np.diff(seconds)[names[1:] == names[:-1]]
    gaps = gaps[gaps > 0]
    if gaps.size == 0:
        raise GridError("timestamp: no server has two rows, so the step is unknown; give at least two rows per server")
    distances, counts = np.unique(gaps, return_counts=True)
    return int(distances[np.argmax(counts)])


def _cell_means(cell_of_row: np.ndarray, column: np.ndarray, cells: int) -> np.ndarray:
    """Mean of the measured samples of each cell, NaN where there is none: float32 [cell]."""
    measured = ~np.isnan(column)
    count = np.bincount(cell_of_row[measured], minlength=cells)
    total = np.bincount(cell_of_row[measured], weights=column[measured], minlength=cells)
    means = np.full(cells, np.nan, dtype=np.float32)
    np.divide(total, count, out=means, where=count > 0, casting="unsafe")
    return means


def _profile_of_each_server(
    frame: pd.DataFrame, servers: np.ndarray, server_of_row: np.ndarray
) -> tuple[str | None, ...]:
    """The one profile each server's rows name, None where they name none."""
    if "profile" not in frame.columns:
        return (None,) * len(servers)
    codes, labels = pd.factorize(frame["profile"].astype("object"), use_na_sentinel=True)
    named = codes >= 0
    pairs = np.sort(pd.unique(server_of_row[named] * len(labels) + codes[named]))
    profiles: list[str | None] = [None] * len(servers)
    for server, code in zip(*np.divmod(pairs, len(labels)), strict=True):
        if profiles[server] is not None:
            raise GridError(
                f"profile: server {servers[server]!r} has rows of two profiles, {profiles[server]!r} and "
                f"{str(labels[code])!r}; keep one (a server whose role changed is a new server name)"
            )
        profiles[server] = str(labels[code])
    return tuple(profiles)
