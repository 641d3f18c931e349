"""The thread that owns the history file: runs calls in their order and writes waiting samples in groups.

All samples that wait when the thread is free are written in one commit: under load, many requests share one fsync;
without load, each request is written at once.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from fleet_forecast.serving.storage.database import HistoryDatabase
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryUnavailableError
from fleet_forecast.serving.storage.samples import Batch, Correction

LOG = logging.getLogger(__name__)
ROWS_PER_COMMIT = 1_000
Result = TypeVar("Result")


class HistoryThread:
    """Runs all work on a HistoryDatabase in one thread. All methods may be called from any thread."""

    def __init__(self, database: HistoryDatabase, max_waiting_records: int) -> None:
        self.failure: str | None = None  # why the last write failed; None after one that succeeded
        self.waiting_records = 0  # accepted and not yet on disk
        self._database, self._max_waiting_records = database, max_waiting_records
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Call | _Write | None] = queue.SimpleQueue()  # None: the end
        self._next_call: _Call | None = None  # taken from the queue behind a group of writes
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def ask(self, work: Callable[[], Result]) -> Future[Result]:
        """Run `work` on the thread. The future raises HistoryUnavailableError for an error of SQLite."""
        call = _Call(work)
        self._queue.put(call)
        return call.future

    def append(self, batch: Batch) -> Future[list[Correction]]:
        """Write samples; the future is done when they are on disk, and raises HistoryUnavailableError.

        Raises HistoryBusyError if too many samples wait.
        """
        with self._lock:
            if self.waiting_records and self.waiting_records + len(batch.samples) > self._max_waiting_records:
                raise HistoryBusyError(f"{self.waiting_records} records wait for the disk")
            self.waiting_records += len(batch.samples)
        write = _Write(batch)
        self._queue.put(write)
        return write.future

    def close(self) -> None:
        """Write the waiting samples, close the file and end the thread. May be called twice."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (task := self._next_call or self._queue.get()) is not None:
            self._next_call = None
            self._database.replace_if_damaged()
            if isinstance(task, _Call):
                self._run_call(task)
            else:
                self._commit(self._group(task))
        self._database.close()

    def _group(self, first: _Write) -> list[_Write]:
        """The writes that wait up to the next call, in their order, of about ROWS_PER_COMMIT rows."""
        group, rows = [first], len(first.batch.samples)
        while rows < ROWS_PER_COMMIT:
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                break
            if task is None:
                self._queue.put(None)
                break
            if isinstance(task, _Call):
                self._next_call = task
                break
            group.append(task)
            rows += len(task.batch.samples)
        return group

    def _run_call(self, call: _Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            call.future.set_result(call.work())
        except (sqlite3.Error, MemoryError) as problem:
            LOG.error("history cannot be read", extra={"reason": str(problem)})
            self._database.note_problem(problem)
            call.future.set_exception(HistoryUnavailableError(str(problem) or "not enough memory"))
        except Exception as problem:
            call.future.set_exception(problem)

    def _commit(self, group: list[_Write]) -> None:
        failure: HistoryUnavailableError | None = None
        corrections: list[list[Correction]] = [[] for _ in group]
        try:
            corrections = self._database.write([write.batch for write in group])
        except Exception as problem:  # any: the thread must continue
            self._database.note_problem(problem)
            failure = HistoryUnavailableError(str(problem))
            if self.failure is None:
                LOG.error("history cannot be written", extra={"reason": str(problem)})
            self.failure = str(problem)
        else:
            if self.failure is not None:
                LOG.info("history can be written again")
            self.failure = None
        with self._lock:
            self.waiting_records -= sum(len(write.batch.samples) for write in group)
        for write, found in zip(group, corrections, strict=True):
            if write.future.set_running_or_notify_cancel():
                write.future.set_exception(failure) if failure else write.future.set_result(found)


class _Call:
    """Work on the database and the future of its result."""

    __slots__ = ("future", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()


class _Write:
    """Samples to write and the future of their commit."""

    __slots__ = ("batch", "future")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.future: Future[list[Correction]] = Future()
