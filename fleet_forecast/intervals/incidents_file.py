"""Reads the users' incidents: a CSV or parquet file with the time of each, its servers and its type.

    server_name,pattern,start,end,type
    ppdb003,,2026-11-20T08:10:00Z,2026-11-20T09:00:00Z,disk_full
    ,web-.*,2026-11-21T14:00:00+01:00,2026-11-21T14:45:00+01:00,bad_release

Each row has a server_name or a pattern (RE2, of whole names, case ignored). A missing type is "incident". A pattern
gives one incident for each server that it matches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.iso_time import utc_seconds
from fleet_forecast.name_patterns import compile_whole_name

NAME_COLUMNS = ("server_name", "pattern")
DEFAULT_TYPE = "incident"
LONGEST_VALUE = 100  # characters of a refused value that a message shows


class IncidentRecord(NamedTuple):
    """One incident on one server; start and end in seconds since 1970, UTC, start < end."""

    server_name: str
    start_seconds: float
    end_seconds: float
    type: str


class _RowError(ValueError):
    """A row cannot be used; the message names field, value and remedy."""


def read_incidents(
    path: Path, server_names: Sequence[str], notice: Callable[[str], object] = lambda _text: None
) -> list[IncidentRecord]:
    """Incidents of the given servers, sorted by server and start; equal ones once.

    notice: called with a line on rows that match none of the servers, and on columns that are not read. Raises
    DataFileError naming row, field, value and remedy, also if no row matches a server.
    """
    frame = _frame(Path(path))
    _check_columns(path, frame)
    if left_out := [str(name) for name in frame.columns if name not in (*NAME_COLUMNS, "start", "end", "type")]:
        notice(f"{path}: column {', '.join(left_out)} is not read")
    found: set[IncidentRecord] = set()
    unmatched: list[str] = []
    for number, fields in enumerate(frame.to_dict("records"), start=1):
        try:
            of_row = list(_records(fields, server_names))
        except _RowError as problem:
            raise DataFileError(f"{path}: row {number}: {problem}") from None
        found.update(of_row)
        if not of_row:
            unmatched.append(next(str(fields[name]) for name in NAME_COLUMNS if not _is_empty(fields.get(name))))
    if unmatched:
        example = f"{len(unmatched):,} of {len(frame):,} rows, such as {unmatched[0]!r}, match no server of the data"
        if not found:
            raise DataFileError(f"{path}: {example}; correct the names, or give the data of these servers")
        notice(f"{path}: {example}: left out")
    return sorted(found)


def _frame(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataFileError(f"{path}: no such file; give the path of a CSV or parquet file of incidents")
    is_csv = path.name.endswith((".csv", ".csv.gz"))
    if not is_csv and path.suffix not in (".parquet", ".pq"):
        raise DataFileError(f"{path}: neither .csv nor .parquet; convert it, or rename it if it is one of them")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False) if is_csv else pd.read_parquet(path)
    except (OSError, ValueError) as problem:  # errors of pandas and pyarrow are kinds of ValueError
        kind, reason = "CSV" if is_csv else "parquet", str(problem).splitlines()[0].rstrip(".")
        raise DataFileError(f"{path}: not readable as {kind} ({reason}); write it again") from None


def _check_columns(path: Path, frame: pd.DataFrame) -> None:
    missing = [name for name in ("start", "end") if name not in frame.columns]
    if not set(NAME_COLUMNS) & set(frame.columns):
        missing.insert(0, "server_name (or pattern)")
    if missing:
        has = ", ".join(map(str, frame.columns)) or "no columns"
        raise DataFileError(f"{path}: column {', '.join(missing)} is missing among {has}; add or rename it")
    if frame.empty:
        raise DataFileError(f"{path}: has no rows; write one for each incident")


def _records(fields: dict[Any, Any], server_names: Iterable[str]) -> Iterator[IncidentRecord]:
    start, end = _seconds(fields, "start"), _seconds(fields, "end")
    if end <= start:
        raise _RowError(
            f"end {_shown(fields['end'])} is not after start {_shown(fields['start'])}; correct one of them"
        )
    kind = DEFAULT_TYPE if _is_empty(fields.get("type")) else str(fields["type"]).strip()
    for name in _matching(fields, server_names):
        yield IncidentRecord(name, start, end, kind)


def _matching(fields: dict[Any, Any], server_names: Iterable[str]) -> Iterator[str]:
    given = [name for name in NAME_COLUMNS if not _is_empty(fields.get(name))]
    if len(given) != 1:
        what = "are both given" if given else "are both empty"
        raise _RowError(f"server_name and pattern {what}; give one of the two")
    value = str(fields[given[0]]).strip()
    if given == ["server_name"]:
        yield from (name for name in server_names if name == value)
        return
    try:
        pattern = compile_whole_name(value)
    except ValueError as problem:
        raise _RowError(str(problem)) from None
    yield from (name for name in server_names if pattern.match(name))


def _seconds(fields: dict[Any, Any], name: str) -> float:
    value = fields[name]
    if _is_empty(value):
        raise _RowError(f"{name} is empty; write a time such as 2026-11-20T08:10:00Z")
    text = str(value).strip()  # a typed time too
    try:
        return utc_seconds(text)
    except ValueError as problem:
        raise _RowError(f"{name} {_shown(text)} {problem}") from None


def _is_empty(value: object) -> bool:
    return value is None or value is pd.NaT or value != value or not str(value).strip()  # NaN differs from itself


def _shown(value: object) -> str:
    text = repr(str(value))
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."
