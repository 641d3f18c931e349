"""A consistent copy of a history file, while a daemon writes to it; and the backup made of it.

The daemon holds the file exclusively, so no second connection can read it. It is copied instead, with its write-ahead
log (WAL), and the copy is opened. SQLite changes the file only at checkpoints, with pages that are also in the WAL: a
file copied before its WAL gives, with the WAL's pages over it, the state of the WAL's last commit. That holds unless
the WAL was begun anew in between. Its header then has other salt values (sqlite.org/walformat.html), and the copy is
repeated.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from fleet_forecast.atomic_write import new_file
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.serving.storage.integrity import files_of

COPY_ATTEMPTS = 10
WAL_HEADER_BYTES = 32
HISTORY_TABLES = {"meta", "servers", "samples"}  # of every version


def back_up(history: Path, target: Path) -> None:
    """Write the history's state to a new file, checked and flushed to disk; a daemon may write meanwhile.

    The file is complete, and needs no log beside it: started with --history of it, the daemon continues from there.
    Raises DataFileError if the target exists or cannot be written, or if the history is missing or damaged.
    """
    if target.exists():
        raise DataFileError(f"{target}: exists; give the name of a new file")
    try:
        with new_file(target) as copy:
            try:
                _check_and_close_log(history, consistent_copy(history, copy))
            finally:
                for log in files_of(copy)[1:]:
                    log.unlink(missing_ok=True)
    except OSError as problem:
        raise DataFileError(f"{target}: cannot be written ({problem.strerror or problem}); check the folder") from None


def _check_and_close_log(history: Path, copy: Path) -> None:
    """Bring the log into the copied file, and check the whole."""
    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as database:
            (mode,) = database.execute("PRAGMA journal_mode = DELETE").fetchone()
            findings = database.execute("PRAGMA integrity_check(1)").fetchall()
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as problem:
        raise DataFileError(f"{history}: is damaged ({problem}); the daemon replaces it at its next start") from None
    if not tables >= HISTORY_TABLES:
        raise DataFileError(
            f"{history}: is not a history of a daemon; give the file that --history of the daemon names"
        )
    if findings != [("ok",)] or mode != "delete":
        raise DataFileError(f"{history}: is damaged ({findings[0][0]}); the daemon replaces it at its next start")


def consistent_copy(history: Path, copy: Path) -> Path:
    """Copy a history file and its log; returns the copy. Raises DataFileError."""
    file, wal, _ = files_of(history)
    copied_file, copied_wal, _ = files_of(copy)
    for _attempt in range(COPY_ATTEMPTS):
        try:
            before = _wal_header(wal)
            shutil.copyfile(file, copied_file)
            copied_wal.write_bytes(b"")
            if wal.exists():
                shutil.copyfile(wal, copied_wal)
            if _wal_header(wal) == before == _wal_header(copied_wal):
                return copy
        except FileNotFoundError:
            if not file.exists():
                raise DataFileError(f"{history}: no such file; give the daemon's --history file") from None
        except OSError as problem:
            raise DataFileError(f"{history}: cannot be copied ({problem}); check rights and free space") from problem
    raise DataFileError(f"{history}: was changed in each of {COPY_ATTEMPTS} copies; repeat when fewer samples come in")


def _wal_header(wal: Path) -> bytes:
    """The header with the salt values; no bytes without a WAL."""
    try:
        with wal.open("rb") as file:
            return file.read(WAL_HEADER_BYTES)
    except FileNotFoundError:
        return b""
