"""Order and intervals of each server's rows, and rows far from all others in time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

NEVER = np.iinfo(np.int64).min
NANOSECONDS = 1_000_000_000
_DAY = 86_400 * NANOSECONDS
FAR_DAYS = 7  # without any row, before a row is far from the others
STRAY_SHARE = 0.01  # of all rows: more are not an accident


class Timeline:
    """Order and distances of each server's rows.

    distances: seconds from one row of a server to the next, and their number; 0 is not counted.
    """

    def __init__(self) -> None:
        self.in_order = True
        self.distances: Counter[int] = Counter()
        self._latest = np.empty(0, dtype=np.int64)  # [server] ns

    def add(self, servers: npt.NDArray[np.int32], instants: npt.NDArray[np.int64], count: int) -> None:
        """Add rows: [row] code of the server and time; `count` is the number of servers so far."""
        self._latest = np.append(self._latest, np.full(count - len(self._latest), NEVER))
        if not self.in_order or not len(servers):
            return
        if np.any(servers[1:] < servers[:-1]):
            order = np.argsort(servers, kind="stable")
            servers, instants = servers[order], instants[order]
        begins = np.flatnonzero(np.append(True, servers[1:] != servers[:-1]))
        before = np.empty_like(instants)
        before[1:] = instants[:-1]
        before[begins] = self._latest[servers[begins]]
        self.in_order = bool(np.all(instants > before))
        self._count(before, instants)
        self._latest[servers[begins]] = instants[np.append(begins[1:], len(instants)) - 1]

    def sort(
        self, servers: npt.NDArray[np.int32], instants: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Count all rows at once, in any order.

        Returns the rows with the server and time of an earlier row, and for each of them the first such row.
        """
        order = np.lexsort((instants, servers))  # stable: rows of one server and time stay in their order
        servers = servers[order]
        same = servers[1:] == servers[:-1]
        del servers
        instants = instants[order]
        self.distances.clear()
        self._count(np.where(same, instants[:-1], NEVER), instants[1:])
        same &= instants[1:] == instants[:-1]
        begins = np.maximum.accumulate(np.where(np.append(False, same), 0, np.arange(len(order))))
        return order[1:][same], order[begins[1:][same]]

    def _count(self, before: npt.NDArray[np.int64], instants: npt.NDArray[np.int64]) -> None:
        known = before != NEVER
        seconds = instants[known] // NANOSECONDS - before[known] // NANOSECONDS
        for distance, rows in zip(*np.unique(seconds[seconds > 0], return_counts=True), strict=True):
            self.distances[int(distance)] += int(rows)


class RowsByDay:
    """Number of rows, first and last time of each day; first, last: of all rows, ns since the epoch."""

    def __init__(self) -> None:
        self._days: dict[int, tuple[int, int, int]] = {}  # day -> rows, first, last

    @property
    def first(self) -> int:
        return min(first for _, first, _ in self._days.values())

    @property
    def last(self) -> int:
        return max(last for _, _, last in self._days.values())

    def add(self, instants: npt.NDArray[np.int64]) -> None:
        """Add rows, at least one."""
        days = instants // _DAY
        if days.min() == days.max():
            self._put(int(days[0]), instants)
            return
        order = np.argsort(days, kind="stable")
        begins = np.flatnonzero(np.diff(days[order], prepend=days[order[0]] - 1))
        for rows in np.split(order, begins[1:]):
            self._put(int(days[rows[0]]), instants[rows])

    def _put(self, day: int, instants: npt.NDArray[np.int64]) -> None:
        rows, first, last = self._days.get(day, (0, int(instants[0]), int(instants[0])))
        self._days[day] = rows + len(instants), min(first, int(instants.min())), max(last, int(instants.max()))

    def strays(self, servers: int) -> int:
        """Number of rows before or after all others, FAR_DAYS or more away from them: one for each server at most."""
        first, last = self.main_range(servers)
        return sum(rows for rows, begin, end in self._days.values() if begin < first or end > last)

    def main_range(self, servers: int) -> tuple[int, int]:
        """First and last time of the rows without strays, ns since the epoch."""
        most = min(servers, int(STRAY_SHARE * sum(rows for rows, _, _ in self._days.values())))
        parts: list[list[int]] = []  # days without a long gap between them
        for day in sorted(self._days):
            if parts and day - parts[-1][-1] <= FAR_DAYS:
                parts[-1].append(day)
            else:
                parts.append([day])

        def rows_in(part: list[int]) -> int:
            return sum(self._days[day][0] for day in part)

        large = [part for part in parts if rows_in(part) > most]
        if sum(map(rows_in, parts)) - sum(map(rows_in, large)) <= most and large:
            parts = large  # otherwise the rows are far apart throughout, as monthly ones are
        return self._days[parts[0][0]][1], self._days[parts[-1][-1]][2]

    def keep(self, first: int, last: int) -> None:
        """Forget the rows before and after a range of days."""
        self._days = {day: found for day, found in self._days.items() if first <= found[1] and found[2] <= last}
