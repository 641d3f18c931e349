"""The newest steps of the fleet in memory: a ring buffer of step means, the input of the forecasts.

A cell in which nothing was measured is NaN. Memory follows measured history: a server has a block of BLOCK_STEPS steps
only for the times in which it was measured. Not safe for several threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleet_forecast.serving.storage.samples import StepMeans

NEVER = -1  # the step of a server that was never measured
BLOCK_STEPS = 24
EMPTY = 0  # the block of times without a measurement, all NaN
SPARE, SPARE_SHARE = 64, 8  # rows or blocks added when all are used: 64 or an eighth


class RingBuffer:
    """Ring buffer of float32 [server row, step, metric] in blocks; step s is in column s modulo the columns.

    There is one block more than `steps` need, so that the oldest block is outside when the next step needs its place.
    """

    def __init__(self, steps: int, metrics: int) -> None:
        self.steps = steps
        self.newest_step = NEVER  # newest step that was put or advanced to
        ring = -(-steps // BLOCK_STEPS) + 1
        self._columns = ring * BLOCK_STEPS
        self._blocks = np.full((1, BLOCK_STEPS, metrics), np.nan, dtype=np.float32)  # [block, step, metric]
        self._block_of = np.zeros((0, ring), dtype=np.int32)  # [server row, place in the ring] -> block, or EMPTY
        self._row_of: dict[int, int] = {}
        self._free_rows: list[int] = []
        self._free_blocks: list[int] = []

    def put(self, means: StepMeans) -> list[int]:
        """Replace the means of one step; returns the ids of the servers whose means changed.

        Steps older than the buffer are ignored.
        """
        self.advance(means.step)
        if means.step <= self.newest_step - self.steps:
            return []
        rows = np.array([self._row(int(server_id)) for server_id in means.server_ids], dtype=np.int64)
        place, column = divmod(means.step % self._columns, BLOCK_STEPS)
        before = self._blocks[self._block_of[rows, place], column]
        self._blocks[self._block_of[:, place], column] = np.nan
        measured = ~np.isnan(means.means).all(axis=1)
        self._allocate(rows[measured], place)
        self._blocks[self._block_of[rows[measured], place], column] = means.means[measured]
        changed = ~np.isclose(before, means.means, rtol=0, atol=0, equal_nan=True).all(axis=1)
        return [int(server_id) for server_id in means.server_ids[changed]]

    def advance(self, step: int) -> None:
        """Move the end of the buffer to `step`, never back; the new columns are empty."""
        if step <= self.newest_step:
            return
        first = max(self.newest_step + 1, step - self._columns + 1)
        if self.newest_step == NEVER:
            first = step - self._columns + 1
        for entering in range(first, step + 1):
            if entering % BLOCK_STEPS == 0 or entering == first:
                self._enter(entering)
        self.newest_step = step

    def _enter(self, step: int) -> None:
        """Empty the columns of a step and of those after it in its block; free the block if it begins with the step."""
        place, column = divmod(step % self._columns, BLOCK_STEPS)
        if column:
            self._blocks[self._block_of[:, place], column:] = np.nan
            return
        used = self._block_of[:, place]
        self._free(used[used != EMPTY])
        self._block_of[:, place] = EMPTY

    def drop(self, server_ids: Sequence[int]) -> None:
        """Remove servers; new ones use their rows and blocks."""
        for server_id in server_ids:
            row = self._row_of.pop(server_id, None)
            if row is not None:
                used = self._block_of[row]
                self._free(used[used != EMPTY])
                self._block_of[row] = EMPTY
                self._free_rows.append(row)

    def servers(self) -> list[int]:
        """Ids of the servers that have a row."""
        return list(self._row_of)

    def history(self, server_ids: Sequence[int], last_steps: np.ndarray, length: int) -> np.ndarray:
        """float32 [server, length, metric]: the `length` steps up to each server's last step, included."""
        length = min(length, self.steps)
        known = np.array([server_id in self._row_of for server_id in server_ids], dtype=bool)
        rows = np.array([self._row_of.get(server_id, 0) for server_id in server_ids], dtype=np.int64)
        values = np.full((len(rows), length, self._blocks.shape[2]), np.nan, dtype=np.float32)
        for last in np.unique(last_steps).tolist():  # few: most servers of a fleet have the same last step
            these = np.flatnonzero((last_steps == last) & known)
            first = last - length + 1
            step, end = max(first, self.newest_step - self.steps + 1), min(last, self.newest_step) + 1
            while step < end:  # contiguous columns of one block
                place, column = divmod(step % self._columns, BLOCK_STEPS)
                count = min(end - step, BLOCK_STEPS - column)
                blocks = self._block_of[rows[these], place]
                values[these, step - first : step - first + count] = self._blocks[blocks, column : column + count]
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
            if not self._free_rows:
                rows = len(self._block_of)
                added = _added(rows)
                self._block_of = np.concatenate([self._block_of, np.zeros((added, self._block_of.shape[1]), np.int32)])
                self._free_rows = list(range(rows + added - 1, rows - 1, -1))
            row = self._row_of[server_id] = self._free_rows.pop()
        return row

    def _allocate(self, rows: np.ndarray, place: int) -> None:
        """Give each row a block at a place of the ring."""
        rows = rows[self._block_of[rows, place] == EMPTY]
        missing = len(rows) - len(self._free_blocks)
        if missing > 0:
            blocks = len(self._blocks)
            added = max(missing, _added(blocks))
            empty = np.full((added, *self._blocks.shape[1:]), np.nan, dtype=np.float32)
            self._blocks = np.concatenate([self._blocks, empty])
            self._free_blocks += range(blocks + added - 1, blocks - 1, -1)
        self._block_of[rows, place] = [self._free_blocks.pop() for _ in rows]

    def _free(self, blocks: np.ndarray) -> None:
        self._blocks[blocks] = np.nan
        self._free_blocks += blocks.tolist()


def _added(used: int) -> int:
    return max(SPARE, used // SPARE_SHARE)
