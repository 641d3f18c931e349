"""The fleet on a regular time grid: contract rows -> one dense array [server, step, metric].

A cell without a sample is NaN ("not measured"); nothing is filled. Samples finer than the step are averaged. Rows are
read batch by batch, so they need not fit into memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fleet_forecast.contract.reading import Batch, CheckedMetrics
from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers
from fleet_forecast.mapped_arrays import IN_MEMORY, ArraysInMemory
from fleet_forecast.step_means import CellMeans
from fleet_forecast.wording import counted

LARGE_GRID = 20_000_000  # cells of a server and step; a larger grid ...
SMALLEST_FILL = 0.01  # ... filled by a smaller share of rows is refused: some row has a wrong time
SUMS_AT_ONCE = 100_000_000  # cells, 12 bytes each; larger grids are averaged one metric after the other

Batches = Callable[[Sequence[str]], Iterable[Batch]]  # metrics -> all rows with their values


@dataclass(frozen=True)
class _Cells:
    """Servers and steps of a grid; first_step: since the epoch."""

    servers: int
    first_step: int
    steps: int
    step_seconds: int

    @classmethod
    def between(cls, servers: int, first_second: int, last_second: int, step_seconds: int) -> _Cells:
        first_step = first_second // step_seconds
        return cls(servers, first_step, last_second // step_seconds - first_step + 1, step_seconds)

    @property
    def start(self) -> np.datetime64:
        return np.datetime64(self.first_step * self.step_seconds, "s")

    def __len__(self) -> int:
        return self.servers * self.steps

    def check(self, rows: int, first_second: int, last_second: int) -> None:
        """Raises GridError if the rows are too few for so many cells."""
        if len(self) > max(LARGE_GRID, rows / SMALLEST_FILL):
            begin, end = (np.datetime64(second, "s") for second in (first_second, last_second))
            raise GridError(
                f"timestamp: from {begin}Z to {end}Z there are {len(self):,} times to measure "
                f"{counted(self.servers, 'server')}, and {counted(rows, 'row')}; remove rows of a wrong time, or train "
                "on a part of the time"
            )


class GridError(ValueError):
    """The rows do not form a regular grid; the message names column, value and remedy."""


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

    @property
    def first_step(self) -> int:
        """Step number of step 0 since the Unix epoch."""
        return int(self.start.astype("datetime64[s]").astype(np.int64)) // self.step_seconds

    def peers(self, observed: np.ndarray | None = None) -> Peers:
        """Peers of all servers.

        observed: int64, rows of the servers that may be peers (all).
        """
        chosen = range(len(self.servers)) if observed is None else {int(row) for row in observed}
        profiles = [profile if row in chosen else None for row, profile in enumerate(self.profiles)]
        members = ProfileMembers.of(self.servers, profiles)
        return Peers(PeerTable.build(self.values, members, self.first_step), members.mask(len(self.servers)))

    def measured_by_profile(self) -> dict[str, tuple[str, ...]]:
        """The metrics that any server of each profile measured, in order; servers of unknown profile do not count."""
        found: dict[str, np.ndarray] = {}
        for profile, values in zip(self.profiles, self.values, strict=True):
            if profile is not None:
                found[profile] = found.get(profile, False) | ~np.isnan(values).all(axis=0)
        return {
            profile: tuple(metric for metric, measured in zip(self.metrics, found[profile], strict=True) if measured)
            for profile in sorted(found)
        }

    def timestamps(self) -> np.ndarray:
        """datetime64[s] [step]."""
        return self.start + np.arange(self.steps) * np.timedelta64(self.step_seconds, "s")

    def step_at(self, timestamp: np.datetime64) -> int:
        """Index of the step that contains `timestamp`; may lie outside the grid."""
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

    def without(self, cells: np.ndarray, arrays: ArraysInMemory = IN_MEMORY) -> FleetGrid:
        """The grid with the values of some cells not measured. cells: boolean [server, step]."""

        def fill(values: np.ndarray) -> None:
            for own, excluded, kept in zip(self.values, cells, values, strict=True):
                kept[:] = np.where(excluded[:, None], np.float32(np.nan), own)

        return replace(self, values=arrays.new(self.values.shape, fill))

    def with_metrics(self, kept: np.ndarray, arrays: ArraysInMemory = IN_MEMORY) -> FleetGrid:
        """The grid of some metrics (boolean [metric])."""

        def fill(values: np.ndarray) -> None:
            for own, of_kept in zip(self.values, values, strict=True):
                of_kept[:] = own[:, kept]

        metrics = tuple(name for name, keep in zip(self.metrics, kept, strict=True) if keep)
        shape = (*self.values.shape[:2], len(metrics))
        return replace(self, metrics=metrics, values=arrays.new(shape, fill))

    @classmethod
    def from_checked(cls, data: CheckedMetrics, step_seconds: int, arrays: ArraysInMemory = IN_MEMORY) -> FleetGrid:
        """The grid of checked rows, read batch by batch. arrays: where the values are.

        Raises DataFileError if they have changed since the check, GridError if a row has a wrong time.
        """
        first, last = (int(time.astype("datetime64[s]").astype(np.int64)) for time in (data.first, data.last))
        cells = _Cells.between(len(data.servers), first, last, step_seconds)
        cells.check(data.rows, first, last)
        values = _mean_values(data.batches, data.metrics, cells, arrays)
        return cls(tuple(data.servers), tuple(data.profiles), tuple(data.metrics), cells.start, step_seconds, values)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, metrics: Sequence[str], step_seconds: int) -> FleetGrid:
        """The grid of contract rows (see data_contract.read_metrics).

        Raises GridError without rows, if a server has two profiles, or if a row has a wrong time.
        """
        if frame.empty:
            raise GridError("the data has no rows: nothing to lay on a time grid; provide at least one row")
        server_of_row, servers = _servers(frame)
        times = frame["timestamp"].to_numpy(dtype="datetime64[ns]")
        seconds = times[[times.argmin(), times.argmax()]].astype("datetime64[s]").astype(np.int64)

        def batches(wanted: Sequence[str]) -> Iterable[Batch]:
            columns = {name: frame[name].to_numpy(dtype=np.float32, na_value=np.nan) for name in wanted}
            yield Batch(server_of_row, times, columns)

        first, last = map(int, seconds)
        cells = _Cells.between(len(servers), first, last, step_seconds)
        cells.check(len(frame), first, last)
        profiles = _profile_of_each_server(frame, servers, server_of_row)
        values = _mean_values(batches, metrics, cells)
        return cls(tuple(servers), profiles, tuple(metrics), cells.start, step_seconds, values)


def infer_step_seconds(frame: pd.DataFrame) -> int:
    """The lower median distance between consecutive rows of a server, in seconds.

    Raises GridError if no server has two rows.
    """
    servers, _ = _servers(frame)
    seconds = frame["timestamp"].to_numpy(dtype="datetime64[s]").astype(np.int64)
    order = np.lexsort((seconds, servers))
    servers, seconds = servers[order], seconds[order]
    gaps = np.diff(seconds)[servers[1:] == servers[:-1]]
    return median_distance(dict(zip(*np.unique(gaps[gaps > 0], return_counts=True), strict=True)))


def median_distance(distances: Mapping[int, int]) -> int:
    """The lower median distance in seconds; distances: count by distance.

    The mode would be arbitrary where rows are irregular. Raises GridError without any distance.
    """
    if not distances:
        raise GridError("timestamp: no server has two rows, so the step is unknown; give at least two rows per server")
    seconds = sorted(distances)
    cumulative = np.cumsum([distances[distance] for distance in seconds])
    return int(seconds[int(np.searchsorted(2 * cumulative, cumulative[-1]))])


def _mean_values(
    batches: Batches, metrics: Sequence[str], cells: _Cells, arrays: ArraysInMemory = IN_MEMORY
) -> np.ndarray:
    """Mean of the samples of each cell: float32 [server, step, metric], NaN without samples."""

    def fill(values: np.ndarray) -> None:
        at_once = max(1, SUMS_AT_ONCE // len(cells))
        for first in range(0, len(metrics), at_once):
            means = _cell_means(batches, metrics[first : first + at_once], cells, arrays)
            for index, of_metric in enumerate(means, start=first):
                for server in range(cells.servers):
                    own = slice(server * cells.steps, (server + 1) * cells.steps)
                    values[server, :, index] = of_metric.means(own)

    return arrays.new((cells.servers, cells.steps, len(metrics)), fill)


def _cell_means(
    batches: Batches, metrics: Sequence[str], cells: _Cells, arrays: ArraysInMemory = IN_MEMORY
) -> list[CellMeans]:
    """For each metric the means of its samples by server and step, [server * step]."""
    means = [CellMeans(len(cells), arrays) for _ in metrics]
    for batch in batches(metrics):
        seconds = batch.timestamps.astype("datetime64[s]").astype(np.int64)
        step_of_row = seconds // cells.step_seconds - cells.first_step
        cell_of_row = batch.servers.astype(np.int64) * cells.steps + step_of_row
        for name, of_metric in zip(metrics, means, strict=True):
            of_metric.add(cell_of_row, batch.metrics[name])
    return means


def _servers(frame: pd.DataFrame) -> tuple[np.ndarray, tuple[str, ...]]:
    """Server index of each row [row], and the names in alphabetical order."""
    names = frame["server_name"].astype("category").cat.remove_unused_categories()
    names = names.cat.reorder_categories(sorted(names.cat.categories))
    return names.cat.codes.to_numpy(), tuple(str(name) for name in names.cat.categories)


def _profile_of_each_server(
    frame: pd.DataFrame, servers: Sequence[str], server_of_row: np.ndarray
) -> tuple[str | None, ...]:
    """The profile of each server, None without one."""
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
