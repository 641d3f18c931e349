"""The newest steps of the fleet in memory: a ring buffer of step means, the input of the forecasts.

A cell in which nothing was measured is NaN. Not safe for several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleet_forecast.serving.storage.samples import StepMeans

NEVER = -1  # the step of a server that was never measured
SPARE_ROWS, SPARE_SHARE = 64, 8  # added when the buffer is full: 64 rows or an eighth; it is most of the memory


class RingBuffer:
    """Ring buffer of float32 [server row, step, metric]; step s is in column s modulo the buffer's length."""

    def __init__(self, steps: int, metrics: int, servers: int = 0) -> None:
        self.steps = steps
        self.newest_step = NEVER  # newest step that was put or advanced to
        self._values = np.full((servers, steps, metrics), np.nan, dtype=np.float32)
        self._row_of: dict[int, int] = {}
        self._free = list(range(servers - 1, -1, -1))

    def put(self, means: StepMeans) -> list[int]:
        """Replace the means of one step; returns the ids of the servers whose means changed.

        Steps older than the buffer are ignored.
        """
        self.advance(means.step)
        if means.step <= self.newest_step - self.steps:
            return []
        rows = [self._row(int(server_id)) for server_id in means.server_ids]
        column = means.step % self.steps
        before = self._values[rows, column]
        self._values[:, column] = np.nan
        self._values[rows, column] = means.means
        changed = ~np.isclose(before, means.means, rtol=0, atol=0, equal_nan=True).all(axis=1)
        return [int(server_id) for server_id in means.server_ids[changed]]

    def advance(self, step: int) -> None:
        """Move the end of the buffer to `step`, never back; the new columns are empty."""
        if step <= self.newest_step:
            return
        entering = min(step - self.newest_step, self.steps) if self.newest_step != NEVER else self.steps
        self._values[:, np.arange(step - entering + 1, step + 1) % self.steps] = np.nan
        self.newest_step = step

    def drop(self, server_ids: Sequence[int]) -> None:
        """Remove servers; new ones use their rows."""
        for server_id in server_ids:
            row = self._row_of.pop(server_id, None)
            if row is not None:
                self._values[row] = np.nan
                self._free.append(row)

    def servers(self) -> list[int]:
        """Ids of the servers that have a row."""
        return list(self._row_of)

    def history(self, server_ids: Sequence[int], last_steps: np.ndarray, length: int) -> np.ndarray:
        """float32 [server, length, metric]: the `length` steps up to each server's last step, included."""
        length = min(length, self.steps)
        rows = np.array([self._row(server_id) for server_id in server_ids], dtype=np.int64)
        values = np.full((len(rows), length, self._values.shape[2]), np.nan, dtype=np.float32)
        for last in np.unique(last_steps).tolist():  # few: most servers of a fleet have the same last step
            these = np.flatnonzero(last_steps == last)
            first = last - length + 1
            step, end = max(first, self.newest_step - self.steps + 1), min(last, self.newest_step) + 1
            while step < end:  # contiguous columns, at most two ranges
                column = step % self.steps
                count = min(end - step, self.steps - column)
                values[these, step - first : step - first + count] = self._values[rows[these], column : column + count]
                step += count
        return values

    def last_measured(self, server_ids: Sequence[int], last_step: int, look_back: int) -> np.ndarray:
        """int64 [server]: the newest of the `look_back` steps up to `last_step` with a measurement, else NEVER."""
        history = self.history(server_ids, np.full(len(server_ids), last_step), look_back)
        measured = ~np.isnan(history).all(axis=2)  # (server, step), newest last
        newest: np.ndarray = last_step - np.argmax(measured[:, ::-1], axis=1)
        return np.where(measured.any(axis=1), newest, NEVER)

    def _row(self, server_id: int) -> int:
        row = self._row_of.get(server_id)
        if row is None:
            if not self._free:
                self._grow()
            row = self._row_of[server_id] = self._free.pop()
        return row

    def _grow(self) -> None:
        rows, steps, metrics = self._values.shape
        added = max(SPARE_ROWS, rows // SPARE_SHARE)
        empty = np.full((added, steps, metrics), np.nan, dtype=np.float32)
        self._values = np.concatenate([self._values, empty])
        self._free.extend(range(rows + added - 1, rows - 1, -1))
