"""Writes to the history file: samples, step means, expiry.

A step whose samples changed since its means were computed is in `pending`, which is written in the same transaction as
the samples, so that a kill loses no change. Means are computed from the stored samples in the order of their
timestamps: late, repeated and out-of-order samples give the same numbers as sorted ones.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fleet_forecast.serving.storage.corrections import Row, add_rows, without_refused
from fleet_forecast.serving.storage.integrity import is_damage
from fleet_forecast.serving.storage.migrations import move_to_step
from fleet_forecast.serving.storage.opening import connect, open_history, put_aside
from fleet_forecast.serving.storage.samples import Batch, Correction, Sample, StepMeans
from fleet_forecast.serving.storage.schema import Layout, pulled_until_key, statements, transaction
from fleet_forecast.serving.storage.servers import ServerDraft, ServerRegistry

LOG = logging.getLogger(__name__)
STEPS_PER_EXPIRY = 12  # whose samples are deleted in one transaction
VACUUM_PAGES = 2000


class HistoryDatabase:
    """The tables of an open history file. Used by one thread; `servers` and the plain attributes by any."""

    def __init__(self, path: Path, layout: Layout, max_servers: int) -> None:
        """Raises what opening.open_history raises."""
        opened = open_history(path, layout)
        self.path = path
        self.set_aside = opened.set_aside  # the new name of a damaged file
        self.metrics, self.step_seconds = opened.layout.metrics, opened.layout.step_seconds
        self.sql = statements(self.metrics)
        self.connection = opened.database
        self.servers = ServerRegistry(max_servers, opened.servers, opened.next_id)
        self.servers.last_steps.update(opened.last_steps)
        self.servers.measured_steps.update(opened.measured_steps)
        self._damaged = False  # found in use; the file is to be replaced before the next task
        self._replacing = False  # the damaged file is set aside, and there is no new one yet
        self._pending = opened.pending
        self._not_stored: set[int] = set()  # of the pending steps, those returned since the list was last empty

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def note_problem(self, problem: Exception) -> None:
        """Record whether an error means that the file is damaged."""
        self._damaged = self._damaged or is_damage(problem)

    def replace_if_damaged(self) -> None:
        """Replace a file whose damage was found in use. Servers keep their ids, which other parts hold."""
        if not self._damaged:
            return
        try:
            if not self._replacing:
                self.connection.close()
                self.set_aside = put_aside(self.path)
                self._replacing = True
            opened = connect(self.path, Layout(self.step_seconds, self.metrics))
        except (sqlite3.Error, OSError) as problem:  # tried again before the next task
            self._replacing = self._replacing and not is_damage(problem)
            LOG.error("no new history could be begun", extra={"reason": str(problem)})
        else:
            self._pending.clear()
            self.servers.mark_all_unsaved()
            self.connection, self._damaged, self._replacing = opened.database, False, False

    def write(self, batches: Sequence[Batch]) -> list[list[Correction]]:
        """Write samples in one transaction; returns the corrections of each batch, which it stores or refuses.

        Raises sqlite3.Error; then nothing was written.
        """
        rows, draft = self._drafted(sample for batch in batches for sample in batch.samples)
        unsaved, replaced = self.servers.unsaved(), self.servers.replaced()
        with transaction(self.connection):
            corrections = add_rows(self.connection, self.sql, rows, batches)
            if any(corrections):  # what is refused changes no profile
                rows, draft = self._drafted(without_refused(batches, corrections))
            steps = {row[0] for row in rows} - self._pending
            self.connection.executemany("DELETE FROM servers WHERE id = ?", [(each,) for each in replaced])
            self.connection.executemany(
                "INSERT INTO servers VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET profile = excluded.profile",
                [(server.server_id, server.name, server.profile) for server in (*unsaved, *draft.changed.values())],
            )
            self.connection.executemany("INSERT OR IGNORE INTO pending VALUES (?)", [(step,) for step in steps])
        self._pending |= steps
        self.servers.mark_saved(unsaved)
        self.servers.commit(draft)
        self.servers.note_rows(rows)
        self.servers.mark_deleted(replaced)
        return corrections

    def _drafted(self, samples: Iterable[Sample]) -> tuple[list[Row], ServerDraft]:
        """The rows of samples, and the servers that they add or change."""
        step_ms, draft = self.step_seconds * 1000, self.servers.draft()
        rows = []
        for name, instant_ms, profile, state, values in samples:
            server = draft.of_sample(name, profile)
            rows.append((instant_ms // step_ms, server.server_id, instant_ms, state, *values))
        return rows, draft

    def take_means(self, last_step: int, most: int) -> list[StepMeans]:
        """Compute and store the means of up to `most` pending steps up to `last_step`; empty at the end of a round.

        Means that cannot be stored (disk full) are nevertheless returned, once a round.
        """
        steps = sorted(step for step in self._pending - self._not_stored if step <= last_step)[:most]
        if not steps:
            self._not_stored.clear()
            return []
        taken = [self._means_of(step) for step in steps]
        try:
            self._store_means(taken)
        except sqlite3.Error as problem:  # forecasting goes on while the disk is full
            self.note_problem(problem)
            self._not_stored.update(steps)
        else:
            self._pending.difference_update(steps)
        return taken

    def _means_of(self, step: int) -> StepMeans:
        rows = self.connection.execute(self.sql.means, (step,)).fetchall()
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 1 + len(self.metrics))  # None becomes NaN
        return StepMeans(step, table[:, 0].astype(np.int32), table[:, 1:].astype(np.float32))

    def _store_means(self, taken: list[StepMeans]) -> None:
        with transaction(self.connection):
            self.connection.executemany(
                "INSERT OR REPLACE INTO steps VALUES (?, ?, ?)",
                [(means.step, means.server_ids.tobytes(), means.means.tobytes()) for means in taken],
            )
            self.connection.executemany("DELETE FROM pending WHERE step = ?", [(means.step,) for means in taken])

    def delete_server(self, name: str) -> bool:
        """Delete a server and its samples; returns whether it was known. Its means expire without a name."""
        server = self.servers.by_name.get(name) or self.servers.leaving.get(name)
        if server is None:
            return False
        steps = self.connection.execute("SELECT DISTINCT step FROM samples").fetchall()
        with transaction(self.connection):
            self.connection.executemany(
                "DELETE FROM samples WHERE step = ? AND server_id = ?", [(step, server.server_id) for (step,) in steps]
            )
            self.connection.execute("DELETE FROM servers WHERE id = ?", (server.server_id,))
        self.servers.remove([server.server_id])
        return True

    def expire(self, first_sample_step: int, first_mean_step: int, first_step_of_new: int = 0) -> int:
        """Delete old samples (STEPS_PER_EXPIRY steps of them), old means, and servers without a sample since.

        first_step_of_new: servers with few measured steps are deleted without a sample from this step on.

        Returns the number of steps whose samples were deleted.
        """
        old = self.connection.execute(
            "SELECT DISTINCT step FROM samples WHERE step < ? ORDER BY step LIMIT ?",
            (first_sample_step, STEPS_PER_EXPIRY),
        ).fetchall()
        silent = self.servers.silent_since(first_sample_step, first_step_of_new)
        with transaction(self.connection):
            self.connection.executemany("DELETE FROM samples WHERE step = ?", old)
            self.connection.execute("DELETE FROM pending WHERE step < ?", (first_sample_step,))
            self.connection.execute("DELETE FROM steps WHERE step < ?", (first_mean_step,))
            self.connection.executemany("DELETE FROM servers WHERE id = ?", [(server_id,) for server_id in silent])
        self._pending = {step for step in self._pending if step >= first_sample_step}
        self.servers.remove(silent)
        # executescript, because execute frees one page only.
        self.connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        return len(old)

    def pulled_until(self, prometheus: str) -> int | None:
        """Seconds since 1970 up to which samples were pulled from a Prometheus; None if they never were."""
        row = self.connection.execute(
            "SELECT value FROM meta WHERE key = ?", (pulled_until_key(prometheus),)
        ).fetchone()
        return row[0] if row and isinstance(row[0], int) else None

    def set_pulled_until(self, prometheus: str, seconds: int) -> None:
        """Store up to which time samples were pulled from a Prometheus. Raises sqlite3.Error."""
        with transaction(self.connection):
            row = pulled_until_key(prometheus), seconds
            self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)

    def use_step(self, step_seconds: int) -> None:
        """Assign all samples to steps of another length; their means are pending again."""
        if step_seconds == self.step_seconds:
            return
        LOG.info("step of the history changed", extra={"from_s": self.step_seconds, "to_s": step_seconds})
        move_to_step(self.connection, step_seconds)
        # The start of the old step: too early by less than one old step, and exact again with the next sample.
        last_steps = self.servers.last_steps.items()
        self.servers.last_steps = {each: step * self.step_seconds // step_seconds for each, step in last_steps}
        self.step_seconds = step_seconds
        self._pending = {step for (step,) in self.connection.execute("SELECT step FROM pending")}
