"""Checks that need all rows, batch by batch: servers, profiles, repeated rows, the step, rows far from all others.

Memory does not grow with the number of rows if the rows of each server are in order of time. Otherwise the times of all
rows are read a second time and kept, 12 bytes per row, to find repeated rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from fleet_forecast.contract.checks import (
    MOSTLY,
    CellCounts,
    Examined,
    Violation,
    doubt,
    examine,
    refusal_of_column,
    violation,
)
from fleet_forecast.contract.labels import Labels
from fleet_forecast.contract.specs import METRIC_SPECS, METRICS, REQUIRED, TEXT_COLUMNS
from fleet_forecast.iso_time import iso
from fleet_forecast.timeline import RowsByDay, Timeline

NULL_CODE = -1  # of a row without a value


def _check_order() -> tuple[str, ...]:
    """Order of the listed violations."""
    return ("timestamp", *TEXT_COLUMNS, *METRICS)


_TIME_NAMES = ("time", "timestamp", "date", "datetime", "ts")

Frames = Iterable[pd.DataFrame]


class Audit:
    """Facts and faults of the rows that were added batch by batch.

    rows: their number. usable: those with a time and a name. metrics, labels: columns with a value. servers, profiles:
    code of each name, in order of appearance. own_profile: [server] code, NULL_CODE if none. timezone: of times without
    a zone.
    """

    def __init__(self, columns: Sequence[str], left_out: Sequence[str] = (), timezone: str | None = None) -> None:
        """columns: the contract's columns of the rows. left_out: the other columns."""
        self.rows = self.usable = 0
        self.metrics: set[str] = set()
        self.labels: set[str] = set()
        self.servers: dict[str, int] = {}
        self.profiles: dict[str, int] = {}
        self.own_profile = np.empty(0, dtype=np.int64)
        self.timeline = Timeline()
        self.days = RowsByDay()
        self.timezone = timezone
        self._columns, self._left_out = tuple(columns), tuple(left_out)
        self._complete = all(name in columns for name in REQUIRED)
        self._faults: dict[tuple[str, str], Violation] = {}
        self._rounded: dict[tuple[str, str], Violation] = {}
        self._counts: dict[str, CellCounts] = {}
        self._present: Counter[str] = Counter()
        self._units: set[str] = set()
        self._two_profiles: Violation | None = None

    def add(self, frame: pd.DataFrame) -> Examined:
        """Add the next rows; their index is the row number, from 0."""
        examined = examine(frame, self.timezone)
        self.rows += len(frame)
        self.usable += len(examined.rows)
        self.metrics |= examined.metrics.keys()
        self.labels |= examined.labels.keys()
        self._units |= examined.units
        self._present.update(examined.present)
        for name, counts in examined.counts.items():
            self._counts.setdefault(name, CellCounts()).add(counts)
        for found, every in ((self._faults, examined.faults), (self._rounded, examined.rounded)):
            for new in every:
                before = found.get((new.column, new.message))
                found[new.column, new.message] = before.and_later(new) if before else new
        if self._complete and len(examined.rows):
            instants = examined.times().view(np.int64)
            self.days.add(instants)
            servers = coded(examined.labels["server_name"], self.servers)
            self.timeline.add(servers, instants, len(self.servers))
            self._add_profiles(frame, examined.rows, servers, examined.labels.get("profile"))
        return examined

    def _add_profiles(
        self,
        frame: pd.DataFrame,
        rows: npt.NDArray[np.int64],
        servers: npt.NDArray[np.int32],
        labels: Labels | None,
    ) -> None:
        """Store the first profile of each server, and find rows with another one."""
        new_servers = len(self.servers) - len(self.own_profile)
        self.own_profile = np.append(self.own_profile, np.full(new_servers, NULL_CODE))
        if labels is None:
            return
        profiles = coded(labels, self.profiles)
        named = np.flatnonzero(profiles != NULL_CODE)
        newly = named[self.own_profile[servers[named]] == NULL_CODE]
        self.own_profile[servers[newly[::-1]]] = profiles[newly[::-1]]  # the first row is written last
        differs = np.zeros(len(rows), dtype=bool)
        differs[named] = profiles[named] != self.own_profile[servers[named]]
        if differs.any():
            message, remedy = "the server has another profile in other rows", "keep one profile for each server"
            new = violation(frame.loc[rows], "profile", differs, message, remedy)
            self._two_profiles = self._two_profiles.and_later(new) if self._two_profiles else new

    def violations(self) -> list[Violation]:
        """Why the rows are refused, apart from rows of one server and time that differ; empty if they are not."""
        missing = [name for name in REQUIRED if name not in self._columns]
        if not self.rows and not missing:
            return [Violation("timestamp", 0, "", "there are no rows", "provide at least one row")]
        names = list(map(str, (*self._columns, *self._left_out)))
        present = ", ".join(name if name == name.strip() else repr(name) for name in names) or "none"
        remedy = f"rename or add the column (present: {present})"
        if "server_name" in missing and self._is_wide(names):
            remedy = (
                f"write one row per server and time, with the columns timestamp, server_name and a metric; {remedy}"
            )
        listed = [Violation(name, 0, "", "the column is missing", remedy) for name in missing]
        refused = self._refused()
        listed += [fault for fault in self._sorted_faults() if fault.column in refused]
        listed += [found for found in refused.values() if found is not None]
        if not self.metrics and not any(name in METRICS for name in refused):
            given = [name for name in METRICS if name in self._columns]
            message = f"no value in {', '.join(given)}" if given else f"no metric column (present: {present})"
            listed.append(Violation("metrics", 0, "", message, f"provide at least one of {', '.join(METRICS)}"))
        if self._two_profiles:
            listed.append(self._two_profiles)
        return listed

    def notices(self) -> Iterator[str]:
        """Cells and rows of accepted data that were not used, or not as they are."""
        if self._units:
            yield f"timestamp: numbers are read as {' and '.join(sorted(self._units))} since 1970"
        for fault in self._sorted_faults():
            is_row = fault.column in REQUIRED
            yield f"{fault.found}; {'the row is left out' if is_row else 'counted as not measured'}"
        for found in self._rounded.values():
            yield f"{found.found}; counted as the limit"
        for name, counts in self._counts.items():
            if likely := doubt(METRIC_SPECS[name], counts):
                yield f"{name}: {likely}"

    def _sorted_faults(self) -> list[Violation]:
        return sorted(self._faults.values(), key=lambda found: _check_order().index(found.column))

    def _refused(self) -> dict[str, Violation | None]:
        """Columns that are refused; for a metric with what is wrong with it as a whole."""
        faulty = Counter[str]()
        for fault in self._faults.values():
            faulty[fault.column] += fault.rows
        refused: dict[str, Violation | None] = {
            name: None for name, rows in faulty.items() if name not in METRICS and rows > MOSTLY * self._present[name]
        }
        for name, counts in self._counts.items():
            if reason := refusal_of_column(METRIC_SPECS[name], counts):
                message, _, remedy = reason.partition("; ")
                refused[name] = Violation(name, 0, f"{counts.highest:,.6g}" if counts.above else "", message, remedy)
        return refused

    def _is_wide(self, names: Sequence[str]) -> bool:
        """Whether the columns look like a time and one column for each server."""
        has_time = any(name.strip().lower() in _TIME_NAMES for name in names)
        return has_time and len(names) > 1 and not any(name in METRICS for name in names)


class Unwanted:
    """Rows that are left out after all rows were read: exact repeats, and single rows far from all others in time.

    rows: their numbers, ascending. servers: names of the rows that stay; None: all names of the audit.
    """

    def __init__(self, audit: Audit, again: Callable[[Sequence[str] | None], Frames]) -> None:
        """again: reads some columns of all rows (all columns) once more."""
        self.rows = np.empty(0, dtype=np.int64)
        self.servers: set[str] | None = None
        self.violations: list[Violation] = []
        self.notices: list[str] = []
        self._audit, self._again = audit, again
        if not audit.timeline.in_order:
            self._find_repeated()
        if audit.days.strays(len(audit.servers)):
            self._find_strays()

    def drop_from(self, examined: Examined) -> None:
        """Leave the rows out of a batch."""
        if len(self.rows):
            examined.select(~np.isin(examined.rows, self.rows, assume_unique=True))

    def _find_repeated(self) -> None:
        """Rows with the server and time of an earlier row; also counts the distances of all rows."""
        audit = self._audit
        servers, instants = np.empty(audit.rows, dtype=np.int32), np.empty(audit.rows, dtype=np.int64)
        numbers, at = np.empty(audit.rows, dtype=np.int64), 0
        for frame in self._again(REQUIRED):
            examined = examine(frame, audit.timezone)
            end = at + len(examined.rows)
            servers[at:end] = coded(examined.labels["server_name"], audit.servers)
            instants[at:end] = examined.times().view(np.int64)
            numbers[at:end] = examined.rows
            at = end
        later, first = audit.timeline.sort(servers[:at], instants[:at])
        if later.size:
            self._compare(numbers[later], numbers[first])

    def _compare(self, later: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> None:
        """Keep one of the rows that repeat an earlier one exactly; those that differ from it are a violation."""
        wanted = np.unique(np.concatenate([later, first]))
        content = np.empty(len(wanted), dtype=np.uint64)
        for frame in self._again(None):
            low, high = np.searchsorted(wanted, [frame.index[0], frame.index[-1] + 1])
            if low < high:
                content[low:high] = _hashed(frame.loc[wanted[low:high]], self._audit.timezone)
        same = content[np.searchsorted(wanted, later)] == content[np.searchsorted(wanted, first)]
        message, remedy = "the server has another row of the same time", "keep one row for each server and time"
        for chosen, rows in ((True, later[same]), (False, later[~same])):
            if not rows.size:
                continue
            row = int(rows.min())
            frame = next(frame for frame in self._again(REQUIRED) if row in frame.index)
            example = violation(frame, "server_name, timestamp", np.asarray(frame.index == row), message, remedy)
            if chosen:
                self.rows = np.union1d(self.rows, rows)
                count = f"{rows.size:,} row{'' if rows.size == 1 else 's'}"
                self.notices.append(f"{count} repeated exactly, for example {example.example}; counted once")
            else:
                self.violations.append(Violation(example.column, rows.size, example.example, message, remedy))

    def _find_strays(self) -> None:
        """Single rows far from all others: their clock was wrong."""
        audit = self._audit
        first, last = audit.days.main_range(len(audit.servers))
        self.servers = set()
        found: list[int] = []
        named: dict[str, str] = {}  # server -> its time
        for frame in self._again(REQUIRED):
            examined = examine(frame, audit.timezone)
            instants, labels = examined.times().view(np.int64), examined.labels["server_name"]
            far = (instants < first) | (instants > last)
            found += examined.rows[far].tolist()
            for code, instant in zip(labels.codes[far].tolist(), instants[far].tolist(), strict=True):
                named.setdefault(str(labels.values[code]), iso(np.datetime64(instant, "ns")))
            self.servers |= set(labels.values[np.unique(labels.codes[~far])])
        self.rows = np.union1d(self.rows, np.array(found, dtype=np.int64))
        shown = ", ".join(f"{name} at {time}" for name, time in list(named.items())[:_SHOWN_STRAYS])
        count = f"{len(found):,} row{'' if len(found) == 1 else 's'}"
        self.notices.append(f"timestamp: {count} far from all others, a wrong time: {shown}; left out")
        audit.days.keep(first, last)


_SHOWN_STRAYS = 5


def _hashed(frame: pd.DataFrame, timezone: str | None) -> npt.NDArray[np.uint64]:
    """A hash of the content of each usable row, beyond its server and time."""
    examined = examine(frame, timezone)
    labels = {name: labels.values for name, labels in examined.labels.items() if name not in REQUIRED}
    columns: dict[str, object] = dict(examined.metrics)
    for name, values in labels.items():
        columns[name] = np.append(values, "")[examined.labels[name].codes]
    if not columns:
        return np.zeros(len(examined.rows), dtype=np.uint64)
    # A metric without any value in this part must hash like one with null values in another part.
    complete = pd.DataFrame(columns).reindex(columns=[*METRICS, *TEXT_COLUMNS[1:]])
    complete = complete.astype(dict.fromkeys(METRICS, np.float32)).fillna(dict.fromkeys(TEXT_COLUMNS[1:], ""))
    hashes: npt.NDArray[np.uint64] = pd.util.hash_pandas_object(complete, index=False).to_numpy().astype(np.uint64)
    return hashes


def coded(labels: Labels, codes: dict[str, int]) -> npt.NDArray[np.int32]:
    """[row] code of each row's value, NULL_CODE for null; new values get the next code in `codes`."""
    own = np.array([codes.setdefault(text, len(codes)) for text in labels.values] + [NULL_CODE], dtype=np.int32)
    rows: npt.NDArray[np.int32] = own[labels.codes]
    return rows


def validate(frame: pd.DataFrame, timezone: str | None = None) -> list[Violation]:
    """All violations of the contract; an empty list if there are none.

    Columns may have any type that pandas reads. Timestamps may be text; timezone: of those without a zone.
    """
    numbered = frame.reset_index(drop=True)
    audit = Audit(list(frame.columns), timezone=timezone)
    if len(frame):
        audit.add(numbered)
    found = audit.violations()
    if audit.servers:
        unwanted = Unwanted(audit, lambda columns: [numbered if columns is None else numbered[list(columns)]])
        found += unwanted.violations
    return found
