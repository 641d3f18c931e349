"""Opens a history file: creates, checks and migrates it, and reads what the store keeps in memory.

A damaged file is set aside and a new one is created.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fleet_forecast.serving.storage.errors import HistoryLockedError
from fleet_forecast.serving.storage.integrity import (
    UNREADABLE,
    DamagedError,
    check_integrity,
    has_read_only_header,
    is_damage,
    known_server,
    primary_code,
    set_aside,
    stored_server_ids,
)
from fleet_forecast.serving.storage.migrations import prepare_tables
from fleet_forecast.serving.storage.samples import KnownServer
from fleet_forecast.serving.storage.schema import Layout

LOG = logging.getLogger(__name__)
OPEN_ATTEMPTS, OPEN_PAUSE_SECONDS = 5, 0.2
END_SECONDS = 253_402_300_800  # since 1970: the year 10000, later than any date


@dataclass(frozen=True)
class OpenHistory:
    """An open history file and what it holds of servers and steps."""

    database: sqlite3.Connection
    layout: Layout
    servers: tuple[KnownServer, ...]
    next_id: int  # larger than every server id of the file
    last_steps: dict[int, int]  # server id -> newest step with a sample, 0 where there is none
    measured_steps: dict[int, int]  # server id -> number of steps with a sample
    pending: set[int]  # steps with samples that changed since the step's means were computed
    set_aside: Path | None = None  # the new name of a damaged file


def open_history(path: Path, layout: Layout) -> OpenHistory:
    """Open or create a history file.

    layout.step_seconds is used for a new file only.
    Raises HistoryLockedError, HistoryVersionError, and OSError if the file cannot be opened or created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(OPEN_ATTEMPTS):
        try:
            return connect(path, layout)
        except sqlite3.DatabaseError as problem:
            _raise_if_not_damage(path, problem)
            if is_damage(problem):
                break
        time.sleep(OPEN_PAUSE_SECONDS)  # the disk failed; the next attempt may succeed
    aside = put_aside(path)
    return replace(connect(path, layout), set_aside=aside)


def put_aside(path: Path) -> Path:
    """Set a damaged file aside and log it; returns the new name. Raises OSError."""
    aside = set_aside(path)
    LOG.error("history file damaged, set aside", extra={"file": str(path), "aside": str(aside)})
    return aside


def connect(path: Path, layout: Layout) -> OpenHistory:
    """Open the file once. Raises sqlite3.Error, DamagedError among them, and HistoryVersionError."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
    try:
        # Exclusive: a second daemon on the same file is refused, and no shared-memory file is needed.
        for pragma in ("locking_mode=EXCLUSIVE", "auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=FULL"):
            database.execute(f"PRAGMA {pragma}").fetchall()
        database.execute("PRAGMA cache_size=-65536")
        check_integrity(database)
        return _read(database, prepare_tables(database, path, layout))
    except UNREADABLE as problem:
        database.close()
        raise DamagedError(f"{type(problem).__name__}: {problem}") from problem
    except BaseException:
        database.close()
        raise


def _read(database: sqlite3.Connection, layout: Layout) -> OpenHistory:
    servers = tuple(map(known_server, database.execute("SELECT id, name, profile FROM servers")))
    ids = {server.server_id for server in servers}
    next_id = max(ids, default=0) + 1
    newest = np.zeros(next_id, dtype=np.int64)  # [server id], 0 where nothing was measured
    counts = np.zeros(next_id, dtype=np.int64)  # [server id]
    stored = database.execute("SELECT step, server_ids, length(means) FROM steps ORDER BY step")
    for step, content, means_bytes in stored:
        measured = stored_server_ids(content, means_bytes, len(layout.metrics))
        if not 0 <= step < END_SECONDS // layout.step_seconds:
            raise DamagedError(f"step {step}")
        next_id = max(next_id, int(measured.max(initial=0)) + 1)  # means are kept longer than their server
        measured = measured[measured < len(newest)]
        newest[measured] = step
        counts[measured] += 1
    pending = {step for (step,) in database.execute("SELECT step FROM pending")}
    for step in sorted(pending):
        rows = database.execute("SELECT DISTINCT server_id FROM samples WHERE step = ?", (step,))
        found = [server_id for (server_id,) in rows]
        next_id = max(next_id, max(found, default=0) + 1)  # samples are kept longer than a server that gave its place
        sending = [server_id for server_id in found if server_id in ids]
        counts[sending] += 1
        newest[sending] = np.maximum(newest[sending], step)  # a late sample's step is not the newest
    last_steps = {server_id: int(newest[server_id]) for server_id in ids}
    measured_steps = {server_id: int(counts[server_id]) for server_id in ids}
    return OpenHistory(database, layout, servers, next_id, last_steps, measured_steps, pending)


def _raise_if_not_damage(path: Path, problem: sqlite3.DatabaseError) -> None:
    """Raise the errors that the user has to correct; a new file would not help."""
    code = primary_code(problem)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        message = f"history {path}: another process uses it; stop that one or give --history another file"
        raise HistoryLockedError(message) from None
    if code == sqlite3.SQLITE_READONLY and has_read_only_header(path):
        return
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
        remedy = "check the folder's rights and the free space"
        raise OSError(f"history {path}: cannot be opened or created ({problem}); {remedy}") from None
