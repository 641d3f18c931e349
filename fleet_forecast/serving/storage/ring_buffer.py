"""The newest steps of the fleet in memory: a rolling window of step means, the forecasts' input.

Filled from the store's step means; a cell nothing was measured in is NaN. Not safe for several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleet_forecast.serving.storage.samples import StepMeans

NEVER = -1  # the step of a server that was never measured


class RingBuffer:
    """Rolling window of float32 [server row, step, metric]; step s lies in column s modulo the window's length."""

    def __init__(self, steps: int, metrics: int, servers: int = 0) -> None:
        self.steps = steps
        self.newest_step = NEVER  # newest step that was laid down or advanced to
        self._values = np.full((servers, steps, metrics), np.nan, dtype=np.float32)
        self._row_of: dict[int, int] = {}
        self._free = list(range(servers - 1, -1, -1))

    def put(self, means: StepMeans) -> list[int]:
        """Lay down the means of one step, replacing what stood there; gives the ids of the servers that changed.

        Steps older than the window are ignored.
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
        """Move the window's end to `step` (never back); columns that enter it are empty."""
        if step <= self.newest_step:
            return
        entering = min(step - self.newest_step, self.steps) if self.newest_step != NEVER else self.steps
        self._values[:, np.arange(step - entering + 1, step + 1) % self.steps] = np.nan
        self.newest_step = step

    def drop(self, server_ids: Sequence[int]) -> None:
        """Forget servers; their memory serves the next ones."""
        for server_id in server_ids:
            row = self._row_of.pop(server_id, None)
            if row is not None:
                self._values[row] = np.nan
                self._free.append(row)

    def servers(self) -> list[int]:
        """Ids of the servers that have a row."""
        return list(self._row_of)

    def history(self, server_ids: Sequence[int], last_steps: np.ndarray, length: int) -> np.ndarray:
        """float32 [server, length, metric]: the `length` steps up to and with each server's last step."""
        length = min(length, self.steps)
        rows = np.array([self._row(server_id) for server_id in server_ids], dtype=np.int64)
        values = np.full((len(rows), length, self._values.shape[2]), np.nan, dtype=np.float32)
        for last in np.unique(last_steps).tolist():  # few: most servers of a fleet end at the same step
            these = np.flatnonzero(last_steps == last)
            first = last - length + 1
            step, end = max(first, self.newest_step - self.steps + 1), min(last, self.newest_step) + 1
            while step < end:  # whole stretches of memory, at most two of them
                column = step % self.steps
                count = min(end - step, self.steps - column)
                values[these, step - first : step - first + count] = self._values[rows[these], column : column + count]
                step += count
        return values

    def last_measured(self, server_ids: Sequence[int], last_step: int, look_back: int) -> np.ndarray:
        """int64 [server]: newest of the `look_back` steps up to `last_step` with any metric measured, else NEVER."""
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
        added = max(64, rows // 8)  # little more than is needed: this is most of the process's memory
        empty = np.full((added, steps, metrics), np.nan, dtype=np.float32)
        self._values = np.concatenate([self._values, empty])
        self._free.extend(range(rows + added - 1, rows - 1, -1))
