"""The durable store of received samples: one SQLite file, one connection, owned by one thread.

A sample is kept as received (`samples`, for the retention), and every complete step's mean of each server beside it
(`steps`, for as long as the model looks back). Steps whose samples changed since their mean was taken stand in
`pending`, written in the same transaction as the samples, so that nothing is forgotten over a kill. Means are taken in
the order of the timestamps from what is stored: late, repeated and out-of-order samples end in the same numbers.

`append` returns a future that is done once the samples are on disk (WAL, synchronous=FULL). Whatever waits when the
thread comes round is written in one commit, so fsync is shared under load and nobody waits when there is none.

A damaged file is set aside and a new one begun, at the start or whenever the damage shows: receiving and forecasting go
on, with what is in memory.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.serving.storage.integrity import (
    UNREADABLE,
    DamagedError,
    KnownServer,
    StepMeans,
    check_integrity,
    files_of,
    is_damage,
    known_server,
    primary_code,
    says_read_only,
    server_ids_of,
    set_aside,
    stored_means,
)
from fleet_forecast.serving.storage.samples import Sample

LOG = logging.getLogger(__name__)
SCHEMA_VERSION = 1
ROWS_PER_COMMIT = 1_000
OPEN_ATTEMPTS, OPEN_PAUSE_SECONDS = 5, 0.2
END_SECONDS = 253_402_300_800  # since 1970: the year 10000, which no date reaches
_COLUMNS = ", ".join(METRICS)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS servers (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, profile TEXT);
CREATE TABLE IF NOT EXISTS samples (
    step INTEGER NOT NULL, server_id INTEGER NOT NULL, timestamp_ms INTEGER NOT NULL, state TEXT,
    {", ".join(f"{metric} REAL" for metric in METRICS)},
    PRIMARY KEY (step, server_id, timestamp_ms)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (step INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS steps (step INTEGER PRIMARY KEY, server_ids BLOB NOT NULL, means BLOB NOT NULL);
"""
# A repeated (server, timestamp) takes the later measurement of each metric; null is "not measured", it erases nothing.
_UPSERT = (
    f"INSERT INTO samples (step, server_id, timestamp_ms, state, {_COLUMNS}) "  # noqa: S608 - our own column names
    f"VALUES ({', '.join('?' * (4 + len(METRICS)))}) ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{column} = coalesce(excluded.{column}, {column})" for column in ("state", *METRICS))
)
_MEANS = (
    f"SELECT server_id, {', '.join(f'avg({metric})' for metric in METRICS)} "  # noqa: S608
    "FROM samples WHERE step = ? GROUP BY server_id ORDER BY server_id"
)
_RAW = (
    f"SELECT timestamp_ms, state, {_COLUMNS} FROM samples "  # noqa: S608
    "WHERE step = ? AND server_id = ? ORDER BY timestamp_ms"
)

Result = TypeVar("Result")


class HistoryBusyError(RuntimeError):
    """More samples wait for the disk than the limit allows; try again shortly."""


class HistoryUnavailableError(RuntimeError):
    """The samples could not be written (disk full, for example); reads go on, writing is tried again each time."""


class HistoryLockedError(RuntimeError):
    """Another process uses the history file."""


@dataclass(frozen=True)
class RawSample:
    """One stored sample; values in the order of METRICS."""

    timestamp_ms: int
    state: str | None
    values: tuple[float | None, ...]


class HistoryStore:
    """Samples on disk and the names of their servers. All methods may be called from any thread."""

    def __init__(self, path: Path, step_seconds: int, max_waiting_records: int = 50_000, max_servers: int = 20_000):
        """Open or create the store and start its thread; a damaged file is set aside and a new one begun.

        step_seconds is the step of a new file; one that exists keeps its own until `use_step`.
        Raises HistoryLockedError if another process has the file, OSError if it cannot be created.
        """
        self.path = path
        self.step_seconds = step_seconds
        self.max_servers = max_servers
        self.set_aside: Path | None = None  # where a damaged file went
        self.failure: str | None = None  # why the last write failed; None after one that succeeded
        self.servers: dict[str, KnownServer] = {}
        self._by_id: dict[int, KnownServer] = {}
        self._max_waiting_records = max_waiting_records
        self._waiting_records = 0
        self._next_id = 1
        self._unsaved: dict[int, KnownServer] = {}  # new names and changed profiles, not yet committed
        self._pending: set[int] = set()
        self._not_stored: set[int] = set()  # of the pending steps, those given since the list was last empty
        self._last_step: dict[int, int] = {}  # server id -> newest step it sent a measurement for
        self._damaged = False  # found while in use; a new file is begun before the next task
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._database = self._open()
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    # --- called from any thread -------------------------------------------------------------------------------------

    def may_add(self, name: str) -> bool:
        """Whether samples of this server can be kept: it is known, or the number of servers allows one more."""
        if name in self.servers:
            return True
        with self._lock:
            if name not in self.servers:
                if len(self.servers) >= self.max_servers:
                    return False
                self._remember(KnownServer(self._next_id, name, None), unsaved=True)
            return True

    def append(self, samples: Sequence[Sample]) -> Future[None]:
        """Store samples; the future is done when they are on disk.

        Raises HistoryBusyError when too many wait. The future raises HistoryUnavailableError if writing failed, and
        then none of these samples is stored.
        """
        with self._lock:
            if self._waiting_records and self._waiting_records + len(samples) > self._max_waiting_records:
                raise HistoryBusyError(f"{self._waiting_records} records wait for the disk")
            self._waiting_records += len(samples)
        task = _Task(None, samples)
        self._queue.put(task)
        return task.future

    def changed_step_means(self, last_step: int, most: int = 12) -> Future[list[StepMeans]]:
        """Take and store the means of up to `most` steps that changed since they were last taken, up to `last_step`.

        Call again until the list is empty. Means that could not be stored (disk full) are given all the same, and
        again after that, until they are stored.
        """
        return self._ask(lambda: self._take_means(last_step, most))

    def stored_step_means(self, first_step: int, last_step: int) -> Future[list[StepMeans]]:
        """Means taken before, of the steps from `first_step` to `last_step`."""
        return self._ask(lambda: self._stored_means(first_step, last_step))

    def server_step_means(self, server_id: int, first_step: int, last_step: int) -> Future[dict[int, np.ndarray]]:
        """One server's means of the same steps: float32 [metric] by step, of those it was measured in."""
        return self._ask(lambda: dict(self._means_of_server(server_id, first_step, last_step)))

    def raw_samples(self, server_id: int, first_step: int, last_step: int) -> Future[list[RawSample]]:
        """Samples of one server as received, sorted by time."""
        return self._ask(lambda: self._raw(server_id, first_step, last_step))

    def last_step(self, server_id: int) -> int | None:
        """Newest step the server sent a measurement for; None where it never did."""
        return self._last_step.get(server_id)

    def expire(self, first_sample_step: int, first_mean_step: int) -> Future[int]:
        """Delete old samples (a dozen steps at a time), old means, and servers that sent nothing since.

        Gives the number of steps whose samples were deleted; call again until it is 0.
        """
        return self._ask(lambda: self._expire(first_sample_step, first_mean_step))

    def use_step(self, step_seconds: int) -> Future[None]:
        """Lay all samples on another step; their means are taken anew."""
        return self._ask(lambda: self._change_step(step_seconds))

    def size_bytes(self) -> int:
        """Size of the file and its write-ahead log."""
        return sum(part.stat().st_size for part in files_of(self.path) if part.exists())

    def waiting_records(self) -> int:
        """Records accepted and not yet on disk."""
        return self._waiting_records

    def close(self) -> None:
        """Write what waits, close the file and end the thread. May be called twice."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    # --- opening ----------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(OPEN_ATTEMPTS):
            try:
                return self._connect()
            except sqlite3.DatabaseError as problem:
                self._forget_all()
                self._raise_if_not_ours_to_mend(problem)
                if is_damage(problem):
                    break
            time.sleep(OPEN_PAUSE_SECONDS)  # the disk failed; perhaps not the next time
        self._put_aside()
        return self._connect()

    def _raise_if_not_ours_to_mend(self, problem: sqlite3.DatabaseError) -> None:
        code = primary_code(problem)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            message = f"history {self.path}: another process uses it; stop that one or give --history another file"
            raise HistoryLockedError(message) from None
        if code == sqlite3.SQLITE_READONLY and says_read_only(self.path):
            return
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY):
            remedy = "check the folder's rights and the free space"
            raise OSError(f"history {self.path}: cannot be opened or created ({problem}); {remedy}") from None

    def _put_aside(self) -> None:
        self.set_aside = set_aside(self.path)
        LOG.error("history file damaged, set aside", extra={"file": str(self.path), "aside": str(self.set_aside)})

    def _connect(self) -> sqlite3.Connection:
        """Open the file, check it and take what it knows of servers and steps into memory."""
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=2.0)
        try:
            # Exclusive: a second daemon on the same file is refused, and no shared-memory file is needed.
            for pragma in ("locking_mode=EXCLUSIVE", "auto_vacuum=INCREMENTAL", "journal_mode=WAL", "synchronous=FULL"):
                database.execute(f"PRAGMA {pragma}").fetchall()
            database.execute("PRAGMA cache_size=-65536")
            check_integrity(database)
            database.executescript(_SCHEMA)
            self._read_meta(database)
            self._read_names(database)
        except UNREADABLE as problem:
            database.close()
            raise DamagedError(f"{type(problem).__name__}: {problem}") from problem
        except BaseException:
            database.close()
            raise
        return database

    def _read_meta(self, database: sqlite3.Connection) -> None:
        meta = dict(database.execute("SELECT key, value FROM meta").fetchall())
        if meta.setdefault("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
            raise DamagedError(f"schema version {meta['schema_version']}")
        step_seconds = meta.setdefault("step_seconds", self.step_seconds)
        if not isinstance(step_seconds, int) or step_seconds < 1:
            raise DamagedError(f"step of {step_seconds!r} seconds")
        self.step_seconds = step_seconds
        with _transaction(database):
            database.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", list(meta.items()))

    def _read_names(self, database: sqlite3.Connection) -> None:
        for server in map(known_server, database.execute("SELECT id, name, profile FROM servers")):
            self._remember(server, unsaved=False)
        self._pending = {step for (step,) in database.execute("SELECT step FROM pending")}
        newest = np.zeros(self._next_id, dtype=np.int64)  # [server id], 0 where nothing was measured
        for step, server_ids, size in database.execute(
            "SELECT step, server_ids, length(means) FROM steps ORDER BY step"
        ):
            ids = server_ids_of(server_ids, size)
            if not 0 <= step < END_SECONDS // self.step_seconds:
                raise DamagedError(f"step {step}")
            self._next_id = max(self._next_id, int(ids.max(initial=0)) + 1)  # means may outlive their server
            newest[ids[ids < len(newest)]] = step
        for step in sorted(self._pending):
            heard = database.execute("SELECT DISTINCT server_id FROM samples WHERE step = ?", (step,))
            known = [server_id for (server_id,) in heard if server_id in self._by_id]
            newest[known] = np.maximum(newest[known], step)  # a late sample's step is not the newest
        self._last_step = {server_id: int(newest[server_id]) for server_id in self._by_id} | self._last_step

    def _remember(self, server: KnownServer, unsaved: bool) -> None:
        self.servers[server.name] = server
        self._by_id[server.server_id] = server
        self._next_id = max(self._next_id, server.server_id + 1)
        if unsaved:
            self._unsaved[server.server_id] = server

    def _forget_all(self) -> None:
        self.servers.clear()
        self._by_id.clear()
        self._pending.clear()
        self._last_step.clear()
        self._next_id = 1

    # --- the thread that owns the connection ------------------------------------------------------------------------

    def _ask(self, work: Callable[[], Result]) -> Future[Result]:
        task = _Task(work, ())
        self._queue.put(task)
        return task.future

    def _run(self) -> None:
        carried: _Task | None = None
        while True:
            task = carried or self._queue.get()
            carried = None
            if task is None:
                break
            if self._damaged:
                self._begin_anew()
            if task.work is not None:
                self._answer(task)
                continue
            group, waiting = [task], len(task.samples)
            while waiting < ROWS_PER_COMMIT:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None or following.work is not None:
                    carried = following
                    if following is None:
                        self._queue.put(None)
                    break
                group.append(following)
                waiting += len(following.samples)
            self._commit(group)
        self._database.close()

    def _begin_anew(self) -> None:
        """Replace a file that showed its damage in use. Servers keep their ids: others know them by these."""
        try:
            self._database.close()
            self._put_aside()
            self._pending.clear()
            with self._lock:
                self._unsaved = dict(self._by_id)
            self._database = self._connect()
        except (sqlite3.Error, OSError) as problem:  # tried again before the next task
            LOG.error("no new history could be begun", extra={"reason": str(problem)})
        else:
            self._damaged = False

    def _answer(self, task: _Task) -> None:
        if not task.future.set_running_or_notify_cancel():
            return
        try:
            task.future.set_result(task.work())  # type: ignore[misc]
        except sqlite3.Error as problem:
            LOG.error("history cannot be read", extra={"reason": str(problem)})
            self._damaged = self._damaged or is_damage(problem)
            task.future.set_exception(HistoryUnavailableError(str(problem)))
        except Exception as problem:
            task.future.set_exception(problem)

    def _commit(self, group: list[_Task]) -> None:
        failure: Exception | None = None
        try:
            rows = [row for task in group for row in self._rows(task.samples)]
            steps = {row[0] for row in rows} - self._pending
            unsaved = dict(self._unsaved)
            with _transaction(self._database):
                self._save_servers(unsaved.values())
                self._database.executemany(_UPSERT, rows)
                self._database.executemany("INSERT OR IGNORE INTO pending VALUES (?)", [(step,) for step in steps])
        except Exception as problem:  # whatever it is, this thread must go on
            self._damaged = self._damaged or is_damage(problem)
            failure = HistoryUnavailableError(str(problem))
            if self.failure is None:
                LOG.error("history cannot be written", extra={"reason": str(problem)})
            self.failure = str(problem)
        else:
            self._pending |= steps
            self._hear(rows)
            with self._lock:
                for server_id, server in unsaved.items():
                    if self._unsaved.get(server_id) == server:
                        del self._unsaved[server_id]
            if self.failure is not None:
                LOG.info("history can be written again")
            self.failure = None
        with self._lock:
            self._waiting_records -= sum(len(task.samples) for task in group)
        for task in group:
            if task.future.set_running_or_notify_cancel():
                task.future.set_exception(failure) if failure else task.future.set_result(None)

    def _rows(self, samples: Sequence[Sample]) -> Iterator[tuple[Any, ...]]:
        """Samples as rows of the table; names and profiles not seen before are remembered."""
        step_ms = self.step_seconds * 1000
        for name, instant_ms, profile, state, values in samples:
            server = self.servers.get(name)
            if server is None or (profile is not None and profile != server.profile):
                server = self._remember_profile(name, profile)
            yield (instant_ms // step_ms, server.server_id, instant_ms, state, *values)

    def _hear(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Keep the newest step of each server of rows that are on disk."""
        for step, server_id, _, _, *values in rows:
            if values.count(None) < len(values) or server_id not in self._last_step:
                self._last_step[server_id] = max(step, self._last_step.get(server_id, step))

    def _remember_profile(self, name: str, profile: str | None) -> KnownServer:
        with self._lock:
            known = self.servers.get(name)
            server = KnownServer(known.server_id if known else self._next_id, name, profile)
            self._remember(server, unsaved=True)
            return server

    def _save_servers(self, servers: Iterable[KnownServer]) -> None:
        self._database.executemany(
            "INSERT INTO servers VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET profile = excluded.profile",
            [(server.server_id, server.name, server.profile) for server in servers],
        )

    def _take_means(self, last_step: int, most: int) -> list[StepMeans]:
        steps = sorted(step for step in self._pending - self._not_stored if step <= last_step)[:most]
        if not steps:
            self._not_stored.clear()
            return []
        taken = [self._means_of(step) for step in steps]
        try:
            self._save_means(taken)
        except sqlite3.Error as problem:  # a full disk keeps nobody from forecasting
            self._damaged = self._damaged or is_damage(problem)
            self._not_stored.update(steps)
        else:
            self._pending.difference_update(steps)
        return taken

    def _save_means(self, taken: list[StepMeans]) -> None:
        with _transaction(self._database):
            self._database.executemany(
                "INSERT OR REPLACE INTO steps VALUES (?, ?, ?)",
                [(means.step, means.server_ids.tobytes(), means.means.tobytes()) for means in taken],
            )
            self._database.executemany("DELETE FROM pending WHERE step = ?", [(means.step,) for means in taken])

    def _means_of(self, step: int) -> StepMeans:
        rows = self._database.execute(_MEANS, (step,)).fetchall()
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 1 + len(METRICS))  # None becomes NaN
        return StepMeans(step, table[:, 0].astype(np.int32), table[:, 1:].astype(np.float32))

    def _stored_means(self, first_step: int, last_step: int) -> list[StepMeans]:
        rows = self._database.execute(
            "SELECT step, server_ids, means FROM steps WHERE step BETWEEN ? AND ? ORDER BY step",
            (first_step, last_step),
        )
        return [stored_means(*row) for row in rows]

    def _means_of_server(self, server_id: int, first_step: int, last_step: int) -> Iterator[tuple[int, np.ndarray]]:
        """Reads of each step the servers and this one's means only: a large fleet's are half a megabyte a step."""
        rows = self._database.execute(
            "SELECT step, server_ids FROM steps WHERE step BETWEEN ? AND ? ORDER BY step", (first_step, last_step)
        )
        row_bytes = 4 * len(METRICS)
        for step, content in rows:
            with self._database.blobopen("steps", "means", step, readonly=True) as means:
                for row in np.flatnonzero(server_ids_of(content, len(means)) == server_id).tolist():
                    means.seek(row * row_bytes)
                    yield step, np.frombuffer(means.read(row_bytes), np.float32)

    def _raw(self, server_id: int, first_step: int, last_step: int) -> list[RawSample]:
        return [
            RawSample(row[0], row[1], row[2:])
            for step in range(first_step, last_step + 1)
            for row in self._database.execute(_RAW, (step, server_id))
        ]

    def _expire(self, first_sample_step: int, first_mean_step: int) -> int:
        old = self._database.execute(
            "SELECT DISTINCT step FROM samples WHERE step < ? ORDER BY step LIMIT 12", (first_sample_step,)
        ).fetchall()
        gone = [server_id for server_id, step in self._last_step.items() if step < first_sample_step]
        with _transaction(self._database):
            self._database.executemany("DELETE FROM samples WHERE step = ?", old)
            self._database.execute("DELETE FROM pending WHERE step < ?", (first_sample_step,))
            self._database.execute("DELETE FROM steps WHERE step < ?", (first_mean_step,))
            self._database.executemany("DELETE FROM servers WHERE id = ?", [(server_id,) for server_id in gone])
        self._pending = {step for step in self._pending if step >= first_sample_step}
        with self._lock:
            for server_id in gone:
                del self._last_step[server_id]
                if server := self._by_id.pop(server_id, None):
                    del self.servers[server.name]
        self._database.executescript("PRAGMA incremental_vacuum(2000)")  # execute() would free one page only
        return len(old)

    def _change_step(self, step_seconds: int) -> None:
        if step_seconds == self.step_seconds:
            return
        LOG.info("history is laid on another step", extra={"from_s": self.step_seconds, "to_s": step_seconds})
        with _transaction(self._database):
            self._database.execute("CREATE TEMP TABLE moved AS SELECT * FROM samples")
            self._database.execute("DELETE FROM samples")
            self._database.execute(
                "INSERT INTO samples SELECT timestamp_ms / ?, server_id, timestamp_ms, state, "  # noqa: S608
                f"{_COLUMNS} FROM moved",
                (step_seconds * 1000,),
            )
            self._database.execute("DROP TABLE moved")
            self._database.execute("DELETE FROM steps")
            self._database.execute("DELETE FROM pending")
            self._database.execute("INSERT INTO pending SELECT DISTINCT step FROM samples")
            self._database.execute("UPDATE meta SET value = ? WHERE key = 'step_seconds'", (step_seconds,))
        # Where the old step began: early by less than that step, and exact again with the server's next sample.
        moved = {server_id: step * self.step_seconds // step_seconds for server_id, step in self._last_step.items()}
        self._last_step = moved
        self.step_seconds = step_seconds
        self._pending = {step for (step,) in self._database.execute("SELECT step FROM pending")}


class _Task:
    """Either samples to write or a question to the database, and the future of its answer."""

    __slots__ = ("future", "samples", "work")

    def __init__(self, work: Callable[[], Any] | None, samples: Sequence[Sample]) -> None:
        self.work, self.samples = work, samples
        self.future: Future[Any] = Future()


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise
