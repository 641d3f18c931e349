"""What a row of a history's file is, and what can be none: damage is found, and the damaged file set aside.

SQLite checks the structure of its file; what stands in the rows is checked here, as nobody else would.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fleet_forecast.contract.specs import METRICS

CHECK_SECONDS = 3.0  # the integrity check at the start takes at most this long
LAST_SERVER_ID = 100_000_000  # what is above it was never given to a server
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# What Python makes of damaged bytes: text that is none, numbers out of bounds, lengths beyond the memory.
UNREADABLE = (ValueError, TypeError, IndexError, OverflowError, MemoryError)


class DamagedError(sqlite3.DatabaseError):
    """The file can be read and holds something else than it should."""


@dataclass(frozen=True)
class StepMeans:
    """Mean of each server's samples in one step.

    server_ids: int32 [server]; means: float32 [server, metric] in the order of METRICS, NaN where nothing was measured.
    """

    step: int
    server_ids: np.ndarray
    means: np.ndarray


@dataclass(frozen=True)
class KnownServer:
    """A server of the store; profile as its samples gave it, None where they did not."""

    server_id: int
    name: str
    profile: str | None


def primary_code(problem: Exception) -> int | None:
    """SQLite's primary error code; None where it gave none."""
    code: int | None = getattr(problem, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def is_damage(problem: Exception) -> bool:
    """Whether the file itself is what is wrong."""
    return isinstance(problem, DamagedError) or primary_code(problem) in _DAMAGE


def says_read_only(path: Path) -> bool:
    """Whether the file's own header keeps SQLite from writing it: damage, as this one wrote it."""
    with path.open("rb") as file:
        return file.read(19)[18:] > b"\x02"  # the format's write version


def known_server(row: tuple[Any, ...]) -> KnownServer:
    """Server of a stored row. Raises DamagedError if it can't be what was written."""
    server_id, name, profile = row
    if not (1 <= server_id <= LAST_SERVER_ID and isinstance(name, str) and isinstance(profile, str | None)):
        raise DamagedError(f"server {row}")
    return KnownServer(server_id, name, profile)


def stored_means(step: int, server_ids: object, means: object) -> StepMeans:
    """Means of a stored row. Raises DamagedError if they can't be what was written."""
    if not isinstance(means, bytes):
        raise DamagedError(f"means of a step: {means!r}")
    return StepMeans(
        step, server_ids_of(server_ids, len(means)), np.frombuffer(means, np.float32).reshape(-1, len(METRICS))
    )


def server_ids_of(content: object, size_of_means: int) -> np.ndarray:
    """Ids of the servers of a stored step. Raises DamagedError if they can't be what was written."""
    if not isinstance(content, bytes) or len(content) % 4 or len(content) * len(METRICS) != size_of_means:
        raise DamagedError(f"servers and means of a step do not match: {size_of_means} bytes of means")
    ids = np.frombuffer(content, np.int32)
    if len(ids) and not (ids[0] >= 1 and ids[-1] <= LAST_SERVER_ID and (ids[:-1] < ids[1:]).all()):
        raise DamagedError("servers of a step out of order or bounds")
    return ids


def check_integrity(database: sqlite3.Connection) -> None:
    """Raise DamagedError if the file is damaged; a large file is checked for a few seconds only."""
    deadline = time.monotonic() + CHECK_SECONDS
    database.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    try:
        findings = database.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.OperationalError as problem:
        if "interrupted" not in str(problem):
            raise
    else:
        if findings != [("ok",)]:
            raise DamagedError(str(findings))
    finally:
        database.set_progress_handler(None, 0)


def files_of(path: Path) -> tuple[Path, ...]:
    """The file and those SQLite keeps beside it."""
    return tuple(path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm"))


def set_aside(path: Path) -> Path:
    """Rename a damaged file and its log; gives the new name."""
    stamp = f".damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.monotonic_ns() % 1_000_000:06d}"
    for part, suffix in zip(files_of(path), ("", "-wal", "-shm"), strict=True):
        if part.exists():
            part.rename(path.with_name(path.name + stamp + suffix))
    return path.with_name(path.name + stamp)
