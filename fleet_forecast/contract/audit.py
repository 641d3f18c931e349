"""Checks that need all rows, batch by batch: servers, their profiles, repeated rows, the step.

Memory does not grow with the number of rows if the rows of each server are in order of time. Otherwise the times of all
rows are read a second time and kept, 12 bytes per row, to find repeated rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from fleet_forecast.contract.checks import Examined, Labels, Violation, examine, violation
from fleet_forecast.contract.specs import METRICS, REQUIRED, TEXT_COLUMNS

NULL_CODE = -1  # of a row without a value
_NEVER = np.iinfo(np.int64).min
_CHECK_ORDER = ("timestamp", *TEXT_COLUMNS, *METRICS)  # order of the listed violations


class Audit:
    """Facts and violations of the rows that were added batch by batch.

    rows: their number. first, last: their first and last time, ns since the epoch. metrics, labels: columns with a
    value. servers, profiles: code of each name, in order of appearance. own_profile: [server] code, NULL_CODE if none.
    """

    def __init__(self, columns: Sequence[str], left_out: Sequence[str] = ()) -> None:
        """columns: the contract's columns of the rows. left_out: the other columns."""
        self.rows = 0
        self.first, self.last = np.iinfo(np.int64).max, _NEVER
        self.metrics: set[str] = set()
        self.labels: set[str] = set()
        self.servers: dict[str, int] = {}
        self.profiles: dict[str, int] = {}
        self.own_profile = np.empty(0, dtype=np.int64)
        self.timeline = Timeline()
        self._columns, self._left_out = tuple(columns), tuple(left_out)
        self._comparable = all(name in columns for name in REQUIRED)
        self._found: dict[tuple[str, str], Violation] = {}
        self._two_profiles: Violation | None = None

    @property
    def broken(self) -> bool:
        """Whether a batch so far has a violation of its own."""
        return bool(self._found)

    def add(self, frame: pd.DataFrame) -> Examined:
        """Add the next rows; their index is the row number, from 0."""
        examined = examine(frame)
        self.rows += len(frame)
        self.metrics |= examined.metrics.keys()
        self.labels |= examined.labels.keys()
        for new in examined.violations:
            before = self._found.get((new.column, new.message))
            self._found[new.column, new.message] = before.and_later(new) if before else new
        if examined.timestamps is None or "server_name" not in examined.labels:
            self._comparable = False
        if self._comparable:
            instants = examined.times().view(np.int64)
            self.first, self.last = min(self.first, int(instants.min())), max(self.last, int(instants.max()))
            servers = coded(examined.labels["server_name"], self.servers)
            named = servers != NULL_CODE
            self.timeline.add(servers[named], instants[named], len(self.servers))
            self._add_profiles(frame, servers, examined.labels.get("profile"))
        return examined

    def _add_profiles(self, frame: pd.DataFrame, servers: npt.NDArray[np.int32], labels: Labels | None) -> None:
        """Store the first profile of each server, and find rows with another one."""
        new_servers = len(self.servers) - len(self.own_profile)
        self.own_profile = np.append(self.own_profile, np.full(new_servers, NULL_CODE))
        if labels is None:
            return
        profiles = coded(labels, self.profiles)
        named = np.flatnonzero((profiles != NULL_CODE) & (servers != NULL_CODE))
        newly = named[self.own_profile[servers[named]] == NULL_CODE]
        self.own_profile[servers[newly[::-1]]] = profiles[newly[::-1]]  # the first row is written last
        differs = np.zeros(len(frame), dtype=bool)
        differs[named] = profiles[named] != self.own_profile[servers[named]]
        if differs.any():
            message, remedy = "the server has another profile in other rows", "keep one profile for each server"
            new = violation(frame, "profile", differs, message, remedy)
            self._two_profiles = self._two_profiles.and_later(new) if self._two_profiles else new

    def violations(self, again: Callable[[], Iterable[pd.DataFrame]]) -> list[Violation]:
        """All violations of the contract. `again` reads times and server names a second time."""
        missing = [name for name in REQUIRED if name not in self._columns]
        if not self.rows and not missing:
            return [Violation("timestamp", 0, "", "there are no rows", "provide at least one row")]
        names = map(str, (*self._columns, *self._left_out))
        present = ", ".join(name if name == name.strip() else repr(name) for name in names) or "none"
        remedy = f"rename or add the column (present: {present})"
        listed = [Violation(name, 0, "", "the column is missing", remedy) for name in missing]
        listed += sorted(self._found.values(), key=lambda found: _CHECK_ORDER.index(found.column))
        if not self.metrics and not any(found.column in METRICS for found in listed):
            given = [name for name in METRICS if name in self._columns]
            message = f"no value in {', '.join(given)}" if given else f"no metric column (present: {present})"
            listed.append(Violation("metrics", 0, "", message, f"provide at least one of {', '.join(METRICS)}"))
        if self._comparable and not self.timeline.in_order:
            listed += self._repeated(again)
        if self._comparable and self._two_profiles:
            listed.append(self._two_profiles)
        return listed

    def _repeated(self, again: Callable[[], Iterable[pd.DataFrame]]) -> list[Violation]:
        """Rows with the server and time of an earlier row; also counts the distances of all rows."""
        servers, instants = np.empty(self.rows, dtype=np.int32), np.empty(self.rows, dtype=np.int64)
        for frame in again():
            examined, at = examine(frame), slice(frame.index[0], frame.index[-1] + 1)
            servers[at] = coded(examined.labels["server_name"], self.servers)
            instants[at] = examined.times().view(np.int64)
        repeated = self.timeline.sort(servers, instants)
        if not repeated.size:
            return []
        row = int(repeated.min())
        frame = next(frame for frame in again() if row in frame.index)
        message, remedy = "the server has another row of the same time", "keep one row for each server and time"
        one = violation(frame, "server_name, timestamp", np.asarray(frame.index == row), message, remedy)
        return [Violation(one.column, repeated.size, one.example, message, remedy)]


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
        self._latest = np.append(self._latest, np.full(count - len(self._latest), _NEVER))
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

    def sort(self, servers: npt.NDArray[np.int32], instants: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """Count all rows at once, in any order; returns the rows with the server and time of another row."""
        order = np.lexsort((instants, servers))
        servers = servers[order]
        same = (servers[1:] == servers[:-1]) & (servers[1:] != NULL_CODE)
        del servers
        instants = instants[order]
        self.distances.clear()
        self._count(np.where(same, instants[:-1], _NEVER), instants[1:])
        same &= instants[1:] == instants[:-1]
        return order[1:][same]

    def _count(self, before: npt.NDArray[np.int64], instants: npt.NDArray[np.int64]) -> None:
        known = before != _NEVER
        seconds = instants[known] // 1_000_000_000 - before[known] // 1_000_000_000
        for distance, rows in zip(*np.unique(seconds[seconds > 0], return_counts=True), strict=True):
            self.distances[int(distance)] += int(rows)


def coded(labels: Labels, codes: dict[str, int]) -> npt.NDArray[np.int32]:
    """[row] code of each row's value, NULL_CODE for null; new values get the next code in `codes`."""
    own = np.array([codes.setdefault(text, len(codes)) for text in labels.values] + [NULL_CODE], dtype=np.int32)
    rows: npt.NDArray[np.int32] = own[labels.codes]
    return rows


def validate(frame: pd.DataFrame) -> list[Violation]:
    """All violations of the contract; an empty list if there are none.

    Columns may have any type that pandas reads. Timestamps may be text with a zone.
    """
    numbered = frame.reset_index(drop=True)
    audit = Audit(list(frame.columns))
    if len(frame):
        audit.add(numbered)
    return audit.violations(lambda: [numbered])
