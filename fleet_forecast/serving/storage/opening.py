"""Opens a history file: creates, checks and migrates it, and reads what the store keeps in memory.

A file that is proven damaged is set aside and a new one is created. Errors of the disk, of memory and of rights prove
nothing about the content: they are retried and then refused, and the file stays where it is.
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
    is_damage_at_start,
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
ATTEMPTS_THAT_PROVE_DAMAGE = 2
MEMORY_OF_A_CHECK_BYTES = 128 * 1024 * 1024  # twice the cache
END_SECONDS = 253_402_300_800  # since 1970: the year 10000, later than any date


@dataclass(frozen=True)
class OpenHistory:
    """An open history file and its servers and steps."""

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
    Raises HistoryLockedError, HistoryVersionError, and OSError if the file cannot be opened, read or created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OSError(_refusal(path, problem)) from None
    try:
        return _connect_with_retries(path, layout)
    except _ProvenDamagedError:
        aside = put_aside(path)
    return replace(connect(path, layout), set_aside=aside)


class _ProvenDamagedError(Exception):
    """Two attempts found the file damaged."""


def _connect_with_retries(path: Path, layout: Layout) -> OpenHistory:
    """Open the file; damage counts when two attempts found it, because a failing disk can return wrong bytes once."""
    found_damaged = 0
    for attempt in range(1, OPEN_ATTEMPTS + 1):
        try:
            return connect(path, layout)
        except (sqlite3.Error, OSError, MemoryError) as problem:
            found_damaged += is_damage_at_start(path, problem)
            if found_damaged and not _memory_is_available():  # SQLite words some failures of memory as damage
                raise OSError(_refusal(path, MemoryError())) from None
            if found_damaged == ATTEMPTS_THAT_PROVE_DAMAGE:
                raise _ProvenDamagedError from problem
            if attempt == OPEN_ATTEMPTS:
                raise OSError(_refusal(path, problem)) from None
            _raise_if_permanent(path, problem)
        time.sleep(OPEN_PAUSE_SECONDS)
    raise AssertionError("unreachable")


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


def _memory_is_available() -> bool:
    """Whether the process may take as much memory as the check of a file needs."""
    try:
        bytes(MEMORY_OF_A_CHECK_BYTES)  # zeros, which take address space and no memory
    except MemoryError:
        return False
    return True


def _raise_if_permanent(path: Path, problem: Exception) -> None:
    """Raise the errors that the user has to correct; a further attempt would not help."""
    code = primary_code(problem)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        message = f"history {path}: another process uses it; stop that one or give --history another file"
        raise HistoryLockedError(message) from None
    user_has_to_act = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM)
    if code in user_has_to_act and not is_damage_at_start(path, problem):
        raise OSError(_refusal(path, problem)) from None


def _refusal(path: Path, problem: Exception) -> str:
    reason = str(problem) or type(problem).__name__
    if isinstance(problem, MemoryError) or primary_code(problem) == sqlite3.SQLITE_NOMEM:
        return f"history {path}: not enough memory to open it; allow the daemon more. The file is unchanged"
    if primary_code(problem) == sqlite3.SQLITE_IOERR:
        return f"history {path}: the disk fails ({reason}); check the disk and start again. The file is unchanged"
    return f"history {path}: cannot be opened or created ({reason}); check the folder's rights and the free space"
