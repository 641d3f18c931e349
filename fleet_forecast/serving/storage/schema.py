"""The tables of a history file, and the statements that depend on its metrics.

    meta      schema_version, step_seconds, metrics (their names in order, separated by commas),
              pulled_until_seconds (samples before this time were pulled from a Prometheus; absent if they never were)
    servers   id, name and profile
    samples   the samples as received, one column per metric, and one named RETIRED + metric per metric that the fleet
              no longer has
    pending   steps with samples that changed since the step's means were computed
    steps     the means of a step: server_ids int32 [server], means float32 [server, metric]

The schema version is stored twice, in meta and as SQLite's user_version: a damaged version differs in one of the two
and is not mistaken for the version of newer software. Version 1 has user_version 0 and no list of metrics.
"""

# ruff: noqa: S608 - the metrics are names of the contract and of the fleet file, which checks them

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PULLED_UNTIL = "pulled_until_seconds"
RETIRED = "retired "  # with a space, so that no metric has such a name
SCHEMA_VERSION = 2  # a new version needs a function in migrations.MIGRATIONS


class Layout(NamedTuple):
    """What the content of a history file depends on."""

    step_seconds: int
    metrics: tuple[str, ...]


class Statements(NamedTuple):
    """SQL for the metrics of a store."""

    add: str  # (step, server_id, timestamp_ms, state, *metrics): leaves a stored row that differs as it is
    correct: str  # the same row: replaces what differs
    cells: str  # (step, server_id, timestamp_ms) -> state, *metrics
    fields: tuple[str, ...]  # the names of these cells
    means: str  # (step) -> server_id, mean of each metric
    raw: str  # (step, server_id, timestamp_ms, most) -> timestamp_ms, state, *metrics of later samples
    server_means: str  # (step, server_id) -> number of samples, mean of each metric


def statements(metrics: Sequence[str]) -> Statements:
    """The statements of a store with these metrics."""
    names = [quoted(metric) for metric in metrics]
    columns = ", ".join(names)
    places = ", ".join("?" * (4 + len(metrics)))
    averages = ", ".join(f"avg({name})" for name in names)
    cells = ("state", *names)
    # Null means "not measured" and keeps the stored value.
    updates = ", ".join(f"{cell} = coalesce(excluded.{cell}, {cell})" for cell in cells)
    equal = " AND ".join(f"coalesce(excluded.{cell} = {cell}, TRUE)" for cell in cells)
    keys = "step, server_id, timestamp_ms, state"
    upsert = f"INSERT INTO samples ({keys}, {columns}) VALUES ({places}) ON CONFLICT DO UPDATE SET {updates}"
    return Statements(
        add=f"{upsert} WHERE {equal}",
        correct=upsert,
        fields=("state", *metrics),
        cells=f"SELECT state, {columns} FROM samples WHERE step = ? AND server_id = ? AND timestamp_ms = ?",
        means=f"SELECT server_id, {averages} FROM samples WHERE step = ? GROUP BY server_id ORDER BY server_id",
        raw=f"SELECT timestamp_ms, state, {columns} FROM samples "
        "WHERE step = ? AND server_id = ? AND timestamp_ms > ? ORDER BY 1 LIMIT ?",
        server_means=f"SELECT count(*), {averages} FROM samples WHERE step = ? AND server_id = ?",
    )


def quoted(metric: str) -> str:
    """The column of a metric; its name may be a word of SQL."""
    return f'"{metric}"'


def create_tables(database: sqlite3.Connection, metrics: Sequence[str]) -> None:
    """Create the tables that do not exist yet."""
    keys = "step INTEGER NOT NULL, server_id INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL, state TEXT"
    columns = ", ".join(f"{quoted(metric)} REAL" for metric in metrics)
    for table in (
        "meta (key TEXT PRIMARY KEY, value NOT NULL)",
        "servers (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, profile TEXT)",
        f"samples ({keys}, {columns}, PRIMARY KEY (step, server_id, timestamp_ms)) WITHOUT ROWID",
        "pending (step INTEGER PRIMARY KEY)",
        "steps (step INTEGER PRIMARY KEY, server_ids BLOB NOT NULL, means BLOB NOT NULL)",
    ):
        database.execute(f"CREATE TABLE IF NOT EXISTS {table}")


def write_layout(database: sqlite3.Connection, layout: Layout) -> None:
    """Record the schema version and the layout."""
    rows = {
        "schema_version": SCHEMA_VERSION,
        "step_seconds": layout.step_seconds,
        "metrics": ",".join(layout.metrics),
    }
    database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(rows.items()))
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block wrote, or nothing of it if the block raises."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
