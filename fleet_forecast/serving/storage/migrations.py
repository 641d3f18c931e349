"""Brings a history file to the present schema and to the metrics of the contract.

Everything happens in one transaction: a process killed in between leaves the old file.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fleet_forecast.serving.storage.errors import HistoryVersionError
from fleet_forecast.serving.storage.integrity import DamagedError, stored_means
from fleet_forecast.serving.storage.schema import (
    RETIRED,
    SCHEMA_VERSION,
    Layout,
    create_tables,
    quoted,
    transaction,
    write_layout,
)

LOG = logging.getLogger(__name__)
METRICS_OF_VERSION_1 = ("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms")
_KEY_COLUMNS = {"step", "server_id", "timestamp_ms", "state"}


def prepare_tables(database: sqlite3.Connection, path: Path, wanted: Layout) -> Layout:
    """Create or migrate the tables; returns the layout, with the step of the file if it has one.

    An added metric is "not measured" so far. Samples of a metric that is no longer wanted are kept aside. If it is
    wanted again they are back, and its means are computed from them.
    Raises HistoryVersionError if newer software wrote the file, DamagedError if its version or metrics are invalid.
    """
    started = time.perf_counter()
    with transaction(database):
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchall():
            create_tables(database, wanted.metrics)
            write_layout(database, wanted)
            return wanted
        version = _stored_version(database, path)
        for step in range(version, SCHEMA_VERSION):
            MIGRATIONS[step](database)
        stored = _stored_layout(database, wanted.step_seconds)
        if stored.metrics != wanted.metrics:
            _change_metrics(database, stored.metrics, wanted.metrics)
        layout = Layout(stored.step_seconds, wanted.metrics)
        if version != SCHEMA_VERSION or stored != layout:
            write_layout(database, layout)
    if version != SCHEMA_VERSION or stored != layout:
        fields = {"from_version": version, "to_version": SCHEMA_VERSION, "seconds": time.perf_counter() - started}
        LOG.info("history migrated", extra={**fields, "from_metrics": stored.metrics, "to_metrics": layout.metrics})
    return layout


def _stored_version(database: sqlite3.Connection, path: Path) -> int:
    row = database.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    (user_version,) = database.execute("PRAGMA user_version").fetchone()
    version = 1 if row is None else row[0]  # version 1 recorded it last: without it, the file has no samples yet
    if not isinstance(version, int) or version < 1 or user_version != (0 if version == 1 else version):
        raise DamagedError(f"schema version {version!r}, user version {user_version}")
    if version > SCHEMA_VERSION:
        raise HistoryVersionError(
            f"history {path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest that this software "
            "reads; start the newer software, or give --history another file"
        )
    return version


def _stored_layout(database: sqlite3.Connection, default_step_seconds: int) -> Layout:
    meta = dict(database.execute("SELECT key, value FROM meta").fetchall())
    step_seconds, names = meta.get("step_seconds", default_step_seconds), meta.get("metrics")
    if not isinstance(step_seconds, int) or step_seconds < 1:
        raise DamagedError(f"step of {step_seconds!r} seconds")
    metrics = tuple(names.split(",")) if isinstance(names, str) else ()
    if not metrics or sorted(metrics) != sorted(_metric_columns(database)):
        raise DamagedError(f"metrics {names!r}")
    return Layout(step_seconds, metrics)


def _metric_columns(database: sqlite3.Connection) -> list[str]:
    columns = [name for _, name, *_ in database.execute("PRAGMA table_info(samples)")]
    return [name for name in columns if name not in _KEY_COLUMNS and not name.startswith(RETIRED)]


def _from_version_1(database: sqlite3.Connection) -> None:
    """Version 2 records the metrics, which were the columns of samples; meta holds text as well as numbers."""
    database.execute("ALTER TABLE meta RENAME TO meta_1")
    create_tables(database, METRICS_OF_VERSION_1)  # also tables that are missing: version 1 created them one by one
    database.execute("INSERT INTO meta SELECT key, value FROM meta_1")
    database.execute("DROP TABLE meta_1")
    database.execute("INSERT INTO meta VALUES ('metrics', ?)", (",".join(_metric_columns(database)),))


# By the version of the file: makes it the next version.
MIGRATIONS: Mapping[int, Callable[[sqlite3.Connection], None]] = {1: _from_version_1}


def _change_metrics(database: sqlite3.Connection, old: Sequence[str], new: Sequence[str]) -> None:
    columns = [name for _, name, *_ in database.execute("PRAGMA table_info(samples)")]
    for metric in new:
        if metric in old:
            continue
        if RETIRED + metric in columns:
            database.execute(f"ALTER TABLE samples RENAME COLUMN {quoted(RETIRED + metric)} TO {quoted(metric)}")
            database.execute("INSERT OR IGNORE INTO pending SELECT DISTINCT step FROM samples")
        else:
            database.execute(f"ALTER TABLE samples ADD COLUMN {quoted(metric)} REAL")
    for metric in old:
        if metric not in new:
            database.execute(f"ALTER TABLE samples RENAME COLUMN {quoted(metric)} TO {quoted(RETIRED + metric)}")
    _rearrange_means(database, old, new)


def _rearrange_means(database: sqlite3.Connection, old: Sequence[str], new: Sequence[str]) -> None:
    """Rewrite the means of each step, float32 [server, old metric], as float32 [server, new metric]."""
    source = [old.index(metric) if metric in old else len(old) for metric in new]  # len(old): a column of NaN
    for (step,) in database.execute("SELECT step FROM steps").fetchall():
        row = database.execute("SELECT step, server_ids, means FROM steps WHERE step = ?", (step,)).fetchone()
        means = stored_means(row, len(old)).means
        padded = np.column_stack([means, np.full(len(means), np.nan, dtype=np.float32)])
        content = np.ascontiguousarray(padded[:, source]).tobytes()
        database.execute("UPDATE steps SET means = ? WHERE step = ?", (content, step))


def move_to_step(database: sqlite3.Connection, step_seconds: int) -> None:
    """Assign all samples to steps of another length; their means are to be computed again."""
    with transaction(database):
        names = [name for _, name, *_ in database.execute("PRAGMA table_info(samples)") if name != "step"]
        columns = ", ".join(map(quoted, names))
        database.execute("CREATE TEMP TABLE moved AS SELECT * FROM samples")
        database.execute("DELETE FROM samples")
        move = f"INSERT INTO samples (step, {columns}) SELECT timestamp_ms / ?, {columns} FROM moved"  # noqa: S608
        database.execute(move, (step_seconds * 1000,))
        database.execute("DROP TABLE moved")
        database.execute("DELETE FROM steps")
        database.execute("DELETE FROM pending")
        database.execute("INSERT INTO pending SELECT DISTINCT step FROM samples")
        database.execute("UPDATE meta SET value = ? WHERE key = 'step_seconds'", (step_seconds,))
