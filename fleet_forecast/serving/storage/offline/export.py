"""Exports a history file as metrics of the data contract, while a daemon writes to it."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.metadata import DataFileError, Metadata, write_metadata
from fleet_forecast.contract.specs import METRICS, METRICS_FILE, arrow_schema
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.storage.database import HistoryDatabase
from fleet_forecast.serving.storage.errors import HistoryVersionError
from fleet_forecast.serving.storage.integrity import files_of
from fleet_forecast.serving.storage.offline.copying import consistent_copy
from fleet_forecast.serving.storage.reads import read_step_means
from fleet_forecast.serving.storage.samples import StepMeans
from fleet_forecast.serving.storage.schema import Layout
from server_profiles import ProfileRules, profile_of

STEPS_AT_ONCE = 96  # bounds memory
COPY_FILE = "history.sqlite"
GENERATOR = "history of the daemon"
NOT_STORED = ("state", "incident")  # columns of the contract


class Extent(NamedTuple):
    """What was exported: first and last time in seconds since 1970, and the number of rows."""

    first_seconds: int
    last_seconds: int
    rows: int


def export_history(history: Path, folder: Path, rules: ProfileRules, calendar: BusinessCalendar) -> Extent:
    """Write the means of all complete steps of a history file into a folder, as server_metrics.parquet with metadata.

    Profiles are those that the daemon forecasts with: pinned, sent, or of the name. calendar: for the metadata.
    Servers that were deleted are left out.
    Raises DataFileError if the file is missing, damaged, empty, of newer software, or changed too fast to be copied.
    """
    copied_at_seconds = time.time()
    copy = consistent_copy(history, folder / COPY_FILE)
    try:
        database = HistoryDatabase(copy, Layout(1, tuple(METRICS)), max_servers=0)
    except (HistoryVersionError, OSError) as problem:
        raise DataFileError(f"{history}: {problem}") from problem
    try:
        if database.set_aside is not None:
            raise DataFileError(f"{history}: is damaged, or no history; give the daemon's --history file")
        last_step = int(copied_at_seconds // database.step_seconds) - 1
        while database.take_means(last_step, STEPS_AT_ONCE):
            pass
        servers = _Servers.of(database, rules)
        extent = _write(database, last_step, folder, servers)
        if extent is None:
            raise DataFileError(f"{history}: holds no complete step yet; let the daemon receive samples for some days")
        write_metadata(folder, _metadata(extent, database, servers.profiles, calendar))
        return extent
    except sqlite3.Error as problem:
        raise DataFileError(f"{history}: cannot be read ({problem}); check the disk, or export it again") from problem
    finally:
        database.close()
        for part in files_of(copy):
            part.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Servers:
    """The servers of a history in the order of their ids: int64 [server], and dictionaries of names and profiles."""

    ids: np.ndarray
    names: pa.StringArray
    profiles: pa.DictionaryArray

    @classmethod
    def of(cls, database: HistoryDatabase, rules: ProfileRules) -> _Servers:
        servers = sorted(database.servers.by_name.values(), key=lambda server: server.server_id)
        profiles = [profile_of(server.name, server.profile, rules)[0] for server in servers]
        ids = np.array([server.server_id for server in servers], dtype=np.int64)
        return cls(
            ids, pa.array([server.name for server in servers], pa.string()), pa.array(profiles).dictionary_encode()
        )

    def table(self, parts: Sequence[StepMeans], step_seconds: int) -> pa.Table:
        """The rows of some steps, in the contract's columns; without servers that were deleted."""
        ids = np.concatenate([part.server_ids for part in parts])
        seconds = np.concatenate([np.full(len(part.server_ids), part.step * step_seconds) for part in parts])
        known = np.isin(ids, self.ids)
        rows = pa.array(np.searchsorted(self.ids, ids[known]).astype(np.int32))
        means = np.concatenate([part.means for part in parts])[known]
        columns = [
            pa.array(seconds[known].astype("datetime64[s]").astype("datetime64[ns]"), pa.timestamp("ns", tz="UTC")),
            pa.DictionaryArray.from_arrays(rows, self.names),
            self.profiles.take(rows),
            *(pa.array(np.ascontiguousarray(of_metric), pa.float32(), from_pandas=True) for of_metric in means.T),
        ]
        return pa.Table.from_arrays(columns, schema=_schema())


def _schema() -> pa.Schema:
    """The contract's columns that a history has."""
    return pa.schema([field for field in arrow_schema() if field.name not in NOT_STORED])


def _write(database: HistoryDatabase, last_step: int, folder: Path, servers: _Servers) -> Extent | None:
    """Write the parquet file; None if there is no row."""
    found, rows = set[int](), 0
    with pq.ParquetWriter(folder / METRICS_FILE, _schema(), compression="zstd") as writer:
        for parts in _stored_means(database, last_step):
            table = servers.table(parts, database.step_seconds)
            if table.num_rows:
                found.update(table["timestamp"].cast(pa.int64()).unique().to_pylist())
                rows += table.num_rows
                writer.write_table(table)
    return Extent(min(found) // 10**9, max(found) // 10**9, rows) if found else None


def _stored_means(database: HistoryDatabase, last_step: int) -> Iterator[list[StepMeans]]:
    """The stored means, some steps at a time."""
    first, last = database.connection.execute("SELECT min(step), max(step) FROM steps").fetchone()
    for begin in range(first or 0, min(last or -1, last_step) + 1, STEPS_AT_ONCE):
        end = min(begin + STEPS_AT_ONCE - 1, last_step)
        if parts := read_step_means(database.connection, len(METRICS), begin, end):
            yield parts


def _metadata(
    extent: Extent, database: HistoryDatabase, profiles: pa.DictionaryArray, calendar: BusinessCalendar
) -> Metadata:
    return Metadata(
        generator_version=GENERATOR,
        seed=None,
        start=iso(extent.first_seconds),
        hours=(extent.last_seconds - extent.first_seconds + database.step_seconds) / 3600,
        step_seconds=database.step_seconds,
        timezone=calendar.timezone,
        calendar=calendar.as_document(),
        fleet=dict(sorted(Counter(profiles.to_pylist()).items())),
        rows=extent.rows,
    )
