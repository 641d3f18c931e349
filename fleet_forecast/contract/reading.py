"""Reads and checks metrics: as one frame, or batch by batch if they do not fit into memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from fleet_forecast.contract.audit import NULL_CODE, Audit, Unwanted, coded
from fleet_forecast.contract.checks import ContractError, Examined, examine
from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.contract.files import Rows, Source, find_source, open_rows
from fleet_forecast.contract.labels import unknown_profiles_notice
from fleet_forecast.contract.metadata import DataFileError, Metadata, read_metadata
from fleet_forecast.contract.specs import COLUMNS, METADATA_FILE, METRICS
from fleet_forecast.wording import counted
from server_profiles import ProfileRules, profile_of


@dataclass(frozen=True)
class ContractData:
    """Validated metrics.

    frame: sorted by server_name and timestamp, index 0..n-1. timestamp datetime64[ns, UTC]; server_name and profile
        categorical (profile never null: a missing one is inferred); the metrics of `metrics` float32, NaN where
        not measured; state and incident categorical, if the data has them.
    metadata: of the folder, None without one.
    metrics: those with at least one value, in the contract's order.
    has_profile_column: whether the data has profiles; otherwise all are inferred from the names.
    notices: cells and rows that were not used, files that were not read, ignored columns, inferred profiles, unknown
        profiles; none of them is an error.
    """

    frame: pd.DataFrame
    metadata: Metadata | None
    metrics: tuple[str, ...]
    has_profile_column: bool
    notices: tuple[str, ...]


class LabelledRow(NamedTuple):
    """One row with an incident label; time in seconds since 1970, UTC."""

    server_name: str
    seconds: float
    label: str


class Batch(NamedTuple):
    """Some rows: position in CheckedMetrics.servers, UTC time in ns, values by metric; arrays [row]."""

    servers: npt.NDArray[np.int32]
    timestamps: npt.NDArray[np.datetime64]
    metrics: Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class CheckedMetrics:
    """Validated metrics on disk, to be read batch by batch.

    rows: their number, without those that are left out. first, last: their first and last time, UTC, ns. servers: names
    in alphabetical order. profiles: [server], inferred if the data has none. distances: seconds from one row of a
    server to the next, and their number.
    The other fields are those of ContractData.
    """

    path: Path
    rows: int
    first: np.datetime64
    last: np.datetime64
    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    distances: Mapping[int, int]
    metadata: Metadata | None
    metrics: tuple[str, ...]
    has_profile_column: bool
    notices: tuple[str, ...]
    _source: Source
    _stamp: Sequence[tuple[int, int]]
    _rows: _AnyRows
    _unwanted: Unwanted
    _input_timezone: str | None

    def batches(self, metrics: Sequence[str]) -> Iterator[Batch]:
        """All rows with the values of some metrics, in the order of the files.

        Raises DataFileError if the files have changed since they were checked.
        """
        codes = {name: code for code, name in enumerate(self.servers)}
        self._refuse_if_changed()
        for frame in self._rows.batches(("timestamp", "server_name", *metrics)):
            self._refuse_if_changed()
            found = examine(frame, self._input_timezone)
            self.drop_unwanted(found)
            nothing = np.full(len(found.rows), np.nan, dtype=np.float32)
            values = {name: found.metrics.get(name, nothing) for name in metrics}
            yield Batch(coded(found.labels["server_name"], codes), found.times(), values)

    def incident_rows(self) -> Iterator[LabelledRow]:
        """Rows with a label in the column `incident`, in the order of the files; none without the column.

        Raises DataFileError if the files have changed since they were checked.
        """
        self._refuse_if_changed()
        if "incident" not in self._rows.columns:
            return
        for frame in self._rows.batches(("timestamp", "server_name", "incident")):
            found = examine(frame[frame["incident"].notna()], self._input_timezone)
            self.drop_unwanted(found)
            if "incident" in found.labels:
                names, labels = found.labels["server_name"], found.labels["incident"]
                seconds = found.times().astype("datetime64[s]").astype(np.int64).tolist()
                for name, second, label in zip(names.codes.tolist(), seconds, labels.codes.tolist(), strict=True):
                    yield LabelledRow(str(names.values[name]), float(second), str(labels.values[label]))

    def drop_unwanted(self, examined: Examined) -> None:
        """Leave out the rows of a batch that are repeats, or far from all others in time."""
        self._unwanted.drop_from(examined)

    def _refuse_if_changed(self) -> None:
        if self._source.stamp() != self._stamp:
            raise DataFileError(f"{self.path}: was changed while it was read; do not change the files and start again")


def check_metrics(path: Path, rules: ProfileRules | None = None, input_timezone: str | None = None) -> CheckedMetrics:
    """Validate metrics in memory that does not grow with the number of rows; otherwise as read_metrics."""
    return _check(_Request(Path(path), rules or fleet_in_use().rules, input_timezone))[0]


def read_metrics(path: Path, rules: ProfileRules | None = None, input_timezone: str | None = None) -> ContractData:
    """Read and validate metrics from a parquet or CSV file, or from a folder.

    A folder contains server_metrics.parquet (a file, or a folder of part files), server_metrics/ or server_metrics.csv,
    or is itself a folder of part files; hive partitions (`date=2026-11-23/`) are read.
    A missing profile is inferred from the server's name by `rules` (those of the fleet in use). input_timezone: of
    times that have no zone.

    Raises DataFileError if there is nothing readable, ContractError if the rows break the contract.
    """
    parts: list[Examined] = []
    checked, audit = _check(_Request(Path(path), rules or fleet_in_use().rules, input_timezone), parts.append)
    frame = _assembled(parts, checked, audit)
    return ContractData(frame, checked.metadata, checked.metrics, checked.has_profile_column, checked.notices)


def check_frame(
    frame: pd.DataFrame, rules: ProfileRules | None = None, input_timezone: str | None = None
) -> ContractData:
    """Validate rows in memory as read_metrics validates those of a file. Raises ContractError."""
    numbered = frame.reset_index(drop=True)
    rows = _FrameRows(
        tuple(name for name in COLUMNS if name in numbered.columns),
        tuple(str(name) for name in numbered.columns if name not in COLUMNS),
        numbered,
    )
    no_files = Source((), Path(), Path(), is_csv=False)
    parts: list[Examined] = []
    request = _Request(Path("the frame"), rules or fleet_in_use().rules, input_timezone)
    checked, audit = _check_rows(request, _Opened(no_files, [], None, rows), parts.append)
    assembled = _assembled(parts, checked, audit)
    return ContractData(assembled, None, checked.metrics, checked.has_profile_column, checked.notices)


class _FrameRows(NamedTuple):
    """The rows of a frame with the interface of Rows."""

    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    frame: pd.DataFrame

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        if len(self.frame):
            yield self.frame[list(self.columns if columns is None else columns)]


_AnyRows = Rows | _FrameRows


class _Request(NamedTuple):
    """What to read and how."""

    path: Path
    rules: ProfileRules
    input_timezone: str | None


class _Opened(NamedTuple):
    """Rows, and the files that they are from with their state before they were opened."""

    source: Source
    stamp: list[tuple[int, int]]
    metadata: Metadata | None
    rows: _AnyRows


_Keep = Callable[[Examined], object]


def _check(request: _Request, keep: _Keep = lambda _part: None) -> tuple[CheckedMetrics, Audit]:
    """Validate all rows of a path; `keep` is called with each batch."""
    source = find_source(request.path)
    metadata = read_metadata(source.folder) if (source.folder / METADATA_FILE).is_file() else None
    return _check_rows(request, _Opened(source, source.stamp(), metadata, open_rows(source)), keep)


def _check_rows(request: _Request, opened: _Opened, keep: _Keep) -> tuple[CheckedMetrics, Audit]:
    source, stamp, metadata, rows = opened
    audit = Audit(rows.columns, rows.left_out, request.input_timezone)
    for frame in rows.batches():
        keep(audit.add(frame))
    violations = audit.violations()
    unwanted = Unwanted(audit, rows.batches) if audit.servers else None
    if unwanted is None or (violations := [*violations, *unwanted.violations]):
        raise ContractError(request.path, violations)
    belongs = metadata is None or metadata.rows == audit.rows
    servers = tuple(sorted(audit.servers if unwanted.servers is None else unwanted.servers))
    given = _given_profiles(audit, servers)
    matches = [profile_of(server, profile, request.rules) for server, profile in zip(servers, given, strict=True)]
    unmatched = [server for server, (_, rule) in zip(servers, matches, strict=True) if rule is None]
    profiles = tuple(profile for profile, _ in matches)
    notices = [*_file_notices(source, metadata, audit), *audit.notices(), *unwanted.notices]
    checked = CheckedMetrics(
        request.path,
        audit.usable - len(unwanted.rows),
        np.datetime64(audit.days.first, "ns"),
        np.datetime64(audit.days.last, "ns"),
        servers,
        profiles,
        dict(audit.timeline.distances),
        metadata if belongs else None,
        tuple(name for name in METRICS if name in audit.metrics),
        "profile" in audit.labels,
        (*notices, *_column_notices(rows, audit), *_profile_notices(given, profiles, unmatched)),
        source,
        stamp,
        rows,
        unwanted,
        request.input_timezone,
    )
    return checked, audit


_SHOWN_FILES = 5


def _file_notices(source: Source, metadata: Metadata | None, audit: Audit) -> Iterator[str]:
    if metadata is not None and metadata.rows != audit.rows:
        yield (
            f"{METADATA_FILE} describes other data ({metadata.rows:,} rows, there are {audit.rows:,}): not used; "
            "remove it"
        )
    if source.not_read:
        names = ", ".join(str(file.relative_to(source.folder)) for file in source.not_read[:_SHOWN_FILES])
        more = f" and {len(source.not_read) - _SHOWN_FILES:,} more" if len(source.not_read) > _SHOWN_FILES else ""
        read = source.files[0].name if len(source.files) == 1 else f"{len(source.files):,} files"
        yield f"{names}{more}: not read; {read} is the data of this folder, give another path to read them"


def _given_profiles(audit: Audit, servers: Sequence[str]) -> list[str | None]:
    """Profile of each server in its rows, None if they have none."""
    names = list(audit.profiles)
    own = [int(audit.own_profile[audit.servers[server]]) for server in servers]
    return [None if code == NULL_CODE else names[code] for code in own]


def _column_notices(rows: Rows | _FrameRows, audit: Audit) -> Iterator[str]:
    for name in rows.left_out:
        if not re.fullmatch(r"__index_level_\d+__", name):  # pandas' row numbers
            yield f"column {name} is not in the contract: left out; a metric needs [metrics.{name}] in the fleet file"
    for name in rows.columns:
        if name not in (*audit.labels, *audit.metrics, "timestamp"):
            yield f"column {name} has no value: counted as absent"


def _profile_notices(given: Sequence[str | None], profiles: Sequence[str], unmatched: Sequence[str]) -> Iterator[str]:
    """unmatched: names of the servers whose profile neither the data nor a rule gives."""
    of_all = f"of {counted(len(given), 'server')}"
    if inferred := sum(profile is None for profile in given) - len(unmatched):
        yield f"profile of {inferred:,} {of_all} inferred from the name"
    if unmatched:
        yield (
            f"profile of {len(unmatched):,} {of_all} is generic: no rule matches names such as {unmatched[0]!r}; add a "
            "column profile, or patterns or [servers] to the fleet file"
        )
    if unknown := unknown_profiles_notice(profiles):
        yield unknown


def _assembled(parts: list[Examined], checked: CheckedMetrics, audit: Audit) -> pd.DataFrame:
    """The rows of all batches in the contract's types and order; empties the parts."""
    codes = {name: code for code, name in enumerate(checked.servers)}
    for part in parts:
        checked.drop_unwanted(part)
    servers = np.concatenate([coded(part.labels["server_name"], codes) for part in parts])
    times = np.concatenate([part.times() for part in parts])
    order = _by_server_and_time(servers, times)
    columns: dict[str, Any] = {"timestamp": pd.DatetimeIndex(times[order]).tz_localize("UTC")}
    del times
    servers = servers[order]
    columns["server_name"] = _labelled(servers, checked.servers)
    kinds, of_server = np.unique(np.array(checked.profiles, dtype=object), return_inverse=True)
    columns["profile"] = _labelled(of_server.astype(np.int16)[servers], kinds)
    for name in COLUMNS[3:]:
        if name in checked.metrics:
            values = [
                part.metrics.pop(name) if name in part.metrics else np.full(_length(part), np.nan, dtype=np.float32)
                for part in parts
            ]
            columns[name] = np.concatenate(values)[order]
        elif name in audit.labels:
            columns[name] = _categorical(name, parts, order)
    return pd.DataFrame(columns, copy=False)


def _by_server_and_time(
    servers: npt.NDArray[np.int32], times: npt.NDArray[np.datetime64]
) -> npt.NDArray[np.intp] | slice[None, None, None]:
    """Positions of the rows in order; a slice of all rows if they are in order."""
    same_server = servers[1:] == servers[:-1]
    if bool(np.all(np.where(same_server, times[1:] > times[:-1], servers[1:] > servers[:-1]))):
        return slice(None)
    return np.lexsort((times, servers))


def _categorical(
    name: str, parts: Sequence[Examined], order: npt.NDArray[np.intp] | slice[None, None, None]
) -> pd.Categorical:
    """A text column of all parts; a part without a value does not have it."""
    values = sorted({str(value) for part in parts if name in part.labels for value in part.labels[name].values})
    codes = {value: code for code, value in enumerate(values)}
    rows = [
        coded(part.labels.pop(name), codes)
        if name in part.labels
        else np.full(_length(part), NULL_CODE, dtype=np.int32)
        for part in parts
    ]
    return _labelled(np.concatenate(rows)[order], values)


def _labelled(codes: Any, values: Any) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, categories=pd.Index(values, dtype=object))


def _length(part: Examined) -> int:
    return len(part.times())
