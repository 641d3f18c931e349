"""Finds damage in a history file, and sets a damaged file aside.

SQLite checks the structure of its file. The values in the rows are checked here.
"""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np

from fleet_forecast.serving.storage.samples import KnownServer, StepMeans

CHECK_SECONDS = 3.0  # upper bound of the integrity check at the start
LAST_SERVER_ID = 100_000_000  # no server gets a higher id
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Errors that Python raises on damaged bytes: invalid text, numbers out of bounds.
UNREADABLE = (ValueError, TypeError, IndexError, OverflowError)
# Codes about the file's surroundings (disk, memory, rights, other processes), which prove nothing about its content.
_SURROUNDINGS = (
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERNAL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_MISUSE,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
)


class DamagedError(sqlite3.DatabaseError):
    """The file can be read and holds values that the store never writes."""


def primary_code(problem: Exception) -> int | None:
    """SQLite's primary error code; None if the error has none."""
    code: int | None = getattr(problem, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_damage(problem: Exception) -> bool:
    """Whether the error means that the file itself is damaged."""
    return isinstance(problem, DamagedError) or primary_code(problem) in _DAMAGE


def is_damage_at_start(path: Path, problem: Exception) -> bool:
    """Whether an error of opening and reading the whole file means that the file itself is damaged.

    Beyond `is_damage`: tables or columns are not those that the store creates, text is not UTF-8, or the header is one
    that the store never writes.
    """
    if not isinstance(problem, sqlite3.DatabaseError):
        return False
    code = primary_code(problem)
    if code == sqlite3.SQLITE_READONLY:
        return has_read_only_header(path)
    return is_damage(problem) or code not in _SURROUNDINGS


def has_read_only_header(path: Path) -> bool:
    """Whether the file's header forbids SQLite to write it; the store never writes such a header."""
    with path.open("rb") as file:
        return file.read(19)[18:] > b"\x02"  # the format's write version


def known_server(row: tuple[Any, ...]) -> KnownServer:
    """The server of a stored row (id, name, profile). Raises DamagedError."""
    server_id, name, profile = row
    if not (1 <= server_id <= LAST_SERVER_ID and isinstance(name, str) and isinstance(profile, str | None)):
        raise DamagedError(f"server {row}")
    return KnownServer(server_id, name, profile)


def stored_means(row: tuple[Any, ...], metric_count: int) -> StepMeans:
    """The means of a stored row (step, server_ids, means). Raises DamagedError."""
    step, server_ids, means = row
    if not isinstance(means, bytes):
        raise DamagedError(f"means of a step: {means!r}")
    ids = stored_server_ids(server_ids, len(means), metric_count)
    return StepMeans(step, ids, np.frombuffer(means, np.float32).reshape(-1, metric_count))


def stored_server_ids(content: object, means_bytes: int, metric_count: int) -> np.ndarray:
    """The server ids of a stored step: int32 [server], ascending. Raises DamagedError.

    means_bytes: the size of the step's means, float32 [server, metric].
    """
    if not isinstance(content, bytes) or len(content) % 4 or len(content) * metric_count != means_bytes:
        raise DamagedError(f"servers and means of a step do not match: {means_bytes} bytes of means")
    ids = np.frombuffer(content, np.int32)
    if len(ids) and not (ids[0] >= 1 and ids[-1] <= LAST_SERVER_ID and (ids[:-1] < ids[1:]).all()):
        raise DamagedError("servers of a step out of order or bounds")
    return ids


def check_integrity(database: sqlite3.Connection) -> None:
    """Raise DamagedError if SQLite finds the file damaged; the check of a large file ends after CHECK_SECONDS."""
    deadline = time.monotonic() + CHECK_SECONDS
    database.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    try:
        findings = database.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.OperationalError as problem:
        if "interrupted" not in str(problem):
            raise
    else:
        if findings != [("ok",)]:
            raise _problem_of(str(findings))
    finally:
        database.set_progress_handler(None, 0)


def _problem_of(findings: str) -> sqlite3.DatabaseError:
    """The error for what the check found: a page that could not be read, for lack of memory say, is not damage."""
    code = re.search(r"error code[= ](\d+)", findings)
    if code is None or int(code[1]) & 0xFF not in _SURROUNDINGS:
        return DamagedError(findings)
    problem = sqlite3.OperationalError(findings)
    problem.sqlite_errorcode = int(code[1])
    return problem


def files_of(path: Path) -> tuple[Path, ...]:
    """The history file and the files that SQLite keeps for it."""
    return tuple(path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm"))


def set_aside(path: Path) -> Path:
    """Rename a damaged file and its write-ahead log; returns the new name."""
    stamp = f".damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.monotonic_ns() % 1_000_000:06d}"
    for part, suffix in zip(files_of(path), ("", "-wal", "-shm"), strict=True):
        if part.exists():
            part.rename(path.with_name(path.name + stamp + suffix))
    return path.with_name(path.name + stamp)
