"""The fleet on a regular time grid: contract rows in, one dense array [server, step, metric] out.

A cell no sample fell into is NaN ("not measured"); nothing is filled. Samples finer than the step are averaged onto it.
Rows are taken in batch by batch, so that the grid may be made of more rows than fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fleet_forecast.contract.reading import Batch, CheckedMetrics
from fleet_forecast.features.step_means import CellMeans

LARGE_CELLS = 20_000_000  # of a server and step: a grid of so many, of which rows ...
SPARSEST = 0.01  # ... fill less than this, is taken for a wrong time in a row, not for a fleet
SUMS_AT_ONCE = 100_000_000  # cells, 12 bytes each: beyond that, metrics are read one after the other

Batches = Callable[[Sequence[str]], Iterable[Batch]]  # all rows, with the values of some metrics


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
    def from_checked(cls, data: CheckedMetrics, step_seconds: int) -> FleetGrid:
        """Lay checked rows on the grid, batch by batch.

        Raises DataFileError if they have changed since, GridError if they are too far apart in time to be one fleet's.
        """
        first, last = (int(time.astype("datetime64[s]").astype(np.int64)) for time in (data.first, data.last))
        return cls._of_batches(
            data.batches, data.servers, data.profiles, data.metrics, step_seconds, data.rows, first, last
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, metrics: Sequence[str], step_seconds: int) -> FleetGrid:
        """Lay contract rows (see data_contract.read_metrics) on the grid.

        Raises GridError if there is no row, if a server's rows name two profiles or if they are too far apart in time.
        """
        if frame.empty:
            raise GridError("the data has no rows: nothing to lay on a time grid; provide at least one row")
        server_of_row, servers = _servers(frame)
        times = frame["timestamp"].to_numpy(dtype="datetime64[ns]")
        seconds = times[[times.argmin(), times.argmax()]].astype("datetime64[s]").astype(np.int64)

        def batches(wanted: Sequence[str]) -> Iterable[Batch]:
            columns = {name: frame[name].to_numpy(dtype=np.float32, na_value=np.nan) for name in wanted}
            yield Batch(server_of_row, times, columns)

        return cls._of_batches(
            batches,
            servers,
            _profile_of_each_server(frame, servers, server_of_row),
            metrics,
            step_seconds,
            len(frame),
            int(seconds[0]),
            int(seconds[1]),
        )

    @classmethod
    def _of_batches(
        cls,
        batches: Batches,
        servers: Sequence[str],
        profiles: Sequence[str | None],
        metrics: Sequence[str],
        step_seconds: int,
        rows: int,
        first_second: int,
        last_second: int,
    ) -> FleetGrid:
        first_step = first_second // step_seconds
        steps = last_second // step_seconds - first_step + 1
        if (cells := len(servers) * steps) > max(LARGE_CELLS, rows / SPARSEST):
            begin, end = (np.datetime64(second, "s") for second in (first_second, last_second))
            raise GridError(
                f"timestamp: from {begin}Z to {end}Z there are {cells:,} times to measure {len(servers)} servers, and "
                f"{rows:,} rows; remove rows of a wrong time, or train on a part of the time"
            )
        values = np.empty((len(servers), steps, len(metrics)), dtype=np.float32)
        at_once = max(1, SUMS_AT_ONCE // (len(servers) * steps))
        for first in range(0, len(metrics), at_once):
            some = metrics[first : first + at_once]
            means = _cell_means(batches, some, len(servers), first_step, steps, step_seconds)
            for index, of_metric in enumerate(means, start=first):
                values[:, :, index] = of_metric.reshape(len(servers), steps)
        start = np.datetime64(first_step * step_seconds, "s")
        return cls(tuple(servers), tuple(profiles), tuple(metrics), start, step_seconds, values)


def infer_step_seconds(frame: pd.DataFrame) -> int:
    """The usual distance between consecutive rows of a server, in seconds (usual_step).

    Raises GridError if no server has two rows.
    """
    servers, _ = _servers(frame)
    seconds = frame["timestamp"].to_numpy(dtype="datetime64[s]").astype(np.int64)
    order = np.lexsort((seconds, servers))
    servers, seconds = servers[order], seconds[order]
    gaps = np.diff(seconds)[servers[1:] == servers[:-1]]
    return usual_step(dict(zip(*np.unique(gaps[gaps > 0], return_counts=True), strict=True)))


def usual_step(distances: Mapping[int, int]) -> int:
    """The median distance in seconds, the shorter of two; by distance, how often it occurs.

    The most frequent one would be chance where rows come a little early or late. Raises GridError if there is none.
    """
    if not distances:
        raise GridError("timestamp: no server has two rows, so the step is unknown; give at least two rows per server")
    seconds = sorted(distances)
    reached = np.cumsum([distances[distance] for distance in seconds])
    return int(seconds[int(np.searchsorted(2 * reached, reached[-1]))])


def _cell_means(
    batches: Batches, metrics: Sequence[str], servers: int, first_step: int, steps: int, step_seconds: int
) -> Iterable[np.ndarray]:
    """For each metric the means of its samples by server and step: float32 [server * step]."""
    means = [CellMeans(servers * steps) for _ in metrics]
    for batch in batches(metrics):
        seconds = batch.timestamps.astype("datetime64[s]").astype(np.int64)
        cell_of_row = batch.servers.astype(np.int64) * steps + (seconds // step_seconds - first_step)
        for name, of_metric in zip(metrics, means, strict=True):
            of_metric.add(cell_of_row, batch.metrics[name])
    for of_metric in means:
        yield of_metric.means()


def _servers(frame: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    """Position of each row's server [row], and the names in alphabetical order."""
    names = frame["server_name"].astype("category").cat.remove_unused_categories()
    names = names.cat.reorder_categories(sorted(names.cat.categories))
    return names.cat.codes.to_numpy(), tuple(str(name) for name in names.cat.categories)


def _profile_of_each_server(
    frame: pd.DataFrame, servers: Sequence[str], server_of_row: np.ndarray
) -> tuple[str | None, ...]:
    """The one profile each server's rows name, None where they name none."""
    if "profile" not in frame.columns:
        return (None,) * len(servers)
    codes, labels = pd.factorize(frame["profile"].astype("category"), use_na_sentinel=True)
    named = codes >= 0
    pairs = np.sort(pd.unique(server_of_row[named].astype(np.int64) * len(labels) + codes[named]))
    profiles: list[str | None] = [None] * len(servers)
    for server, code in zip(*np.divmod(pairs, len(labels)), strict=True):
        if profiles[server] is not None:
            raise GridError(
                f"profile: server {servers[server]!r} has rows of two profiles, {profiles[server]!r} and "
                f"{str(labels[code])!r}; keep one (a server whose role changed is a new server name)"
            )
        profiles[server] = str(labels[code])
    return tuple(profiles)
