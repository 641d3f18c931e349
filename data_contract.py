r"""What server metrics must look like, version 1.0.0; DATA_CONTRACT.md says the same in prose.

Check a file or a folder (parquet or CSV); every violation is listed with its remedy:

    python data_contract.py training/
    python data_contract.py my_servers.csv --profiles my_profiles.toml
    python data_contract.py --document          # the tables of DATA_CONTRACT.md

Exits 0 if the data keeps the contract, 1 if not, 2 for wrong usage. In Python:

    from data_contract import read_metrics
    data = read_metrics(Path("training"))       # raises ContractError or DataFileError
    data.frame, data.metrics, data.notices

Data is validated here once; what read_metrics returns is trusted by everything after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset
import pyarrow.fs as pa_fs

from server_profiles import (
    BUILT_IN_RULES,
    ProfileFileError,
    ProfileRules,
    ServerProfile,
    infer_profile_from_name,
    load_profile_rules,
)

CONTRACT_VERSION = "1.0.0"
METRICS_FILE = "server_metrics.parquet"
METRICS_FOLDER = "server_metrics"  # instead of METRICS_FILE: a folder of part files
METADATA_FILE = "metrics_metadata.json"

SERVER_NAME_PATTERN = r"[A-Za-z0-9._:-]{1,253}"
FIRST_TIMESTAMP = np.datetime64("1970-01-01T00:00:00", "s")
END_OF_TIMESTAMPS = np.datetime64("2200-01-01T00:00:00", "s")

STATES = (
    "healthy",
    "heavy_load",
    "morning_spike",
    "critical_issue",
    "idle",
    "maintenance",
    "recovery",
    "offline",
)


@dataclass(frozen=True)
class MetricSpec:
    """One metric column: float32, null where not measured. `upper` None means no upper limit."""

    name: str
    unit: str
    lower: float
    upper: float | None
    description: str

    @property
    def range_text(self) -> str:
        """The range in words."""
        return f"{self.lower:g} or more" if self.upper is None else f"{self.lower:g} to {self.upper:g}"


@dataclass(frozen=True)
class ColumnSpec:
    """One column that is not a metric."""

    name: str
    content: str
    required: bool
    description: str


METRIC_SPECS: Mapping[str, MetricSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            MetricSpec("cpu_pct", "%", 0, 100, "CPU in use, all cores together"),
            MetricSpec("mem_pct", "%", 0, 100, "memory in use"),
            MetricSpec("disk_io_mb_s", "MB/s", 0, None, "disk reads and writes together"),
            MetricSpec("net_in_mb_s", "MB/s", 0, None, "network traffic received"),
            MetricSpec("net_out_mb_s", "MB/s", 0, None, "network traffic sent"),
            MetricSpec("latency_ms", "ms", 0, None, "time to answer a request or to serve an I/O"),
        )
    }
)
METRICS: tuple[str, ...] = tuple(METRIC_SPECS)

COLUMN_SPECS: Mapping[str, ColumnSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            ColumnSpec(
                "timestamp",
                "UTC time, or text in ISO 8601 with its zone (`2026-11-23T10:00:00Z`)",
                True,
                "when the values were measured; 1970 to 2199, unique for each server",
            ),
            ColumnSpec(
                "server_name", f"text, `{SERVER_NAME_PATTERN}`", True, "name of the server, bare or full domain name"
            ),
            ColumnSpec(
                "profile",
                "text or null",
                False,
                "what the server is for: " + ", ".join(f"`{p}`" for p in ServerProfile) + "; one for each server",
            ),
            ColumnSpec("state", "text or null", False, "one of " + ", ".join(f"`{s}`" for s in STATES)),
            ColumnSpec("incident", "text or null", False, "label of the incident the row belongs to"),
        )
    }
)
REQUIRED = tuple(spec.name for spec in COLUMN_SPECS.values() if spec.required)
COLUMNS: tuple[str, ...] = ("timestamp", "server_name", "profile", "state", *METRICS, "incident")

_TEXT_COLUMNS = ("server_name", "profile", "state", "incident")
_CSV_NULLS = ["", "null", "NULL", "None", "NaN", "nan", "NA", "N/A"]
_ZONED_TEXT = re.compile(r"[T ]\d\d.*(Z|[+-]\d\d(:?\d\d)?)$")


class DataFileError(ValueError):
    """A file or folder cannot be read as metrics at all; the message names it and the remedy."""


@dataclass(frozen=True)
class Violation:
    """One way in which data breaks the contract: how many rows, one of them, and what to do."""

    column: str
    rows: int
    example: str
    message: str
    remedy: str

    def __str__(self) -> str:
        rows = f"{self.rows:,} row{'' if self.rows == 1 else 's'}: " if self.rows else ""
        example = f", for example {self.example}" if self.example else ""
        return f"{self.column}: {rows}{self.message}{example}; {self.remedy}"


class ContractError(ValueError):
    """Data breaks the contract; `violations` has every way in which it does, str() lists them."""

    def __init__(self, source: Path, violations: Sequence[Violation]) -> None:
        self.source = source
        self.violations = tuple(violations)
        listed = "\n".join(f"  - {violation}" for violation in violations)
        super().__init__(f"{source} breaks the data contract {CONTRACT_VERSION}:\n{listed}")


@dataclass(frozen=True)
class Metadata:
    """What stands in metrics_metadata.json beside the metrics."""

    generator_version: str
    seed: int | None  # None where the data is measured, not simulated
    start: str  # ISO 8601 with zone
    hours: float
    step_seconds: int
    timezone: str  # business time zone of the fleet
    fleet: dict[str, int]  # servers by profile
    rows: int
    state_counts: dict[str, int] = field(default_factory=dict)
    incident_counts: dict[str, int] = field(default_factory=dict)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    contract_version: str = CONTRACT_VERSION


@dataclass(frozen=True)
class ContractData:
    """Validated metrics.

    frame: sorted by server_name and timestamp, index 0..n-1. timestamp datetime64[ns, UTC]; server_name and profile
        categorical (profile never null: inferred where it was missing); the metrics of `metrics` float32, NaN where
        not measured; state and incident categorical, where given.
    metadata: of the folder, None where there is none.
    metrics: those with at least one value, in the contract's order.
    has_profile_column: whether profiles were given rather than inferred from the names.
    notices: what was left out, inferred or not known; nothing of it is an error.
    """

    frame: pd.DataFrame
    metadata: Metadata | None
    metrics: tuple[str, ...]
    has_profile_column: bool
    notices: tuple[str, ...]


def arrow_schema(metrics: Sequence[str] = METRICS) -> pa.Schema:
    """Arrow schema of a metrics file, for writers."""
    label = pa.dictionary(pa.int32(), pa.string())
    types = {
        "timestamp": pa.timestamp("ns", tz="UTC"),
        **dict.fromkeys(_TEXT_COLUMNS, label),
        **dict.fromkeys(METRICS, pa.float32()),
    }
    names = [name for name in COLUMNS if name not in METRICS or name in metrics]
    return pa.schema([pa.field(name, types[name], nullable=name not in REQUIRED) for name in names])


def validate(frame: pd.DataFrame) -> list[Violation]:
    """Every way in which rows break the contract; an empty list if they keep it.

    Columns may have any type pandas reads; text timestamps are understood if they carry their zone.
    """
    return _examine(frame).violations


def read_metrics(path: Path, rules: ProfileRules = BUILT_IN_RULES) -> ContractData:
    """Read and validate metrics from a parquet or CSV file, or from a folder.

    A folder holds server_metrics.parquet (a file, or a folder of part files), server_metrics/, server_metrics.csv, or
    is itself a folder of part files; hive partitions (`date=2026-11-23/`) are followed.
    A missing profile is inferred from the server's name by `rules`.

    Raises DataFileError if nothing readable is there, ContractError if the rows break the contract.
    """
    path = Path(path)
    source = _find_source(path)
    metadata = read_metadata(source.folder) if (source.folder / METADATA_FILE).is_file() else None
    frame, left_out = _read_csv_files(source.files) if source.is_csv else _read_parquet(source)
    examined = _examine(frame)
    if examined.violations:
        raise ContractError(path, examined.violations)
    others = [name for name in left_out if not re.fullmatch(r"__index_level_\d+__", name)]  # pandas' row numbers
    notices = [f"column {name} is not in the contract: left out" for name in others]
    return _assemble(frame, examined, rules, metadata, notices)


# --- metadata -------------------------------------------------------------------------------------------------------


def read_metadata(folder: Path) -> Metadata:
    """Read metrics_metadata.json of a folder.

    Raises DataFileError if it is missing, damaged, of another contract version, or lacks a field.
    """
    path = Path(folder) / METADATA_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataFileError(f"{path}: no such file; metrics_generator.py writes it beside the metrics") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise DataFileError(
            f"{path}: not readable as JSON ({problem}); remove it, or generate the data again"
        ) from None
    if not isinstance(document, dict):
        raise DataFileError(f"{path}: not a JSON object; remove it, or generate the data again")
    version = document.get("contract_version")
    if not isinstance(version, str) or version.partition(".")[0] != CONTRACT_VERSION.partition(".")[0]:
        raise DataFileError(
            f"{path}: contract_version is {version!r}, this program reads {CONTRACT_VERSION}; generate the data again"
        )
    values = {}
    for spec in dataclasses.fields(Metadata):
        if spec.name in document:
            values[spec.name] = _checked_metadata(path, spec.name, document[spec.name])
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise DataFileError(f"{path}: {spec.name} is missing; add it, or generate the data again")
    return Metadata(**values)


_METADATA_TYPES: Mapping[str, tuple[type, ...]] = {
    "contract_version": (str,),
    "generator_version": (str,),
    "seed": (int, type(None)),
    "start": (str,),
    "hours": (int, float),
    "step_seconds": (int,),
    "timezone": (str,),
    "fleet": (dict,),
    "rows": (int,),
    "state_counts": (dict,),
    "incident_counts": (dict,),
    "incidents": (list,),
}


def _checked_metadata(path: Path, name: str, value: Any) -> Any:
    expected: Any = _METADATA_TYPES[name]
    if isinstance(value, bool) or not isinstance(value, expected):
        words = " or ".join("null" if kind is type(None) else kind.__name__ for kind in expected)
        raise DataFileError(f"{path}: {name} is {value!r}, which is no {words}; generate the data again")
    if name in ("hours", "step_seconds") and not (math.isfinite(value) and value > 0):
        raise DataFileError(f"{path}: {name} is {value!r}, must be above 0; generate the data again")
    return value


def write_metadata(folder: Path, metadata: Metadata) -> Path:
    """Write metrics_metadata.json so that a reader sees the old or the new one, never half of one; returns its path."""
    path = Path(folder) / METADATA_FILE
    text = json.dumps(dataclasses.asdict(metadata), indent=2, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(prefix=f".{METADATA_FILE}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where the rows are: the files, their common root (for hive partitions) and the folder of the metadata."""

    files: tuple[Path, ...]
    root: Path
    folder: Path
    is_csv: bool


def _find_source(path: Path) -> _Source:
    if path.is_file():
        return _Source((path,), path.parent, path.parent, _is_csv(path))
    if not path.exists():
        raise DataFileError(f"{path}: no such file or folder; give the path of a parquet or CSV file, or of a folder")
    for name in (METRICS_FILE, METRICS_FOLDER, f"{METRICS_FOLDER}.csv", f"{METRICS_FOLDER}.csv.gz"):
        if (path / name).is_file():
            return _Source((path / name,), path, path, _is_csv(path / name))
        if (path / name).is_dir():
            return _part_files(path / name, path)
    return _part_files(path, path)


def _part_files(root: Path, folder: Path) -> _Source:
    visible = [
        file
        for file in sorted(root.rglob("*"))
        if file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(root).parts)
    ]
    parquet = tuple(file for file in visible if file.suffix == ".parquet")
    csv = tuple(file for file in visible if file.name.endswith((".csv", ".csv.gz")))
    if parquet and csv:
        raise DataFileError(
            f"{root}: holds parquet files ({parquet[0].name}) and CSV files ({csv[0].name}); keep one kind"
        )
    if not parquet and not csv:
        msg = (
            f"{root}: holds no metrics; generate some with metrics_generator.py --out_dir, or put {METRICS_FILE} there"
        )
        raise DataFileError(msg)
    return _Source(parquet or csv, root, folder, bool(csv))


def _is_csv(path: Path) -> bool:
    if path.name.endswith((".csv", ".csv.gz")):
        return True
    if path.suffix in (".parquet", ".pq"):
        return False
    raise DataFileError(f"{path}: neither .parquet nor .csv; convert it, or rename it if it is one of them")


def _read_csv_files(files: Sequence[Path]) -> tuple[pd.DataFrame, list[str]]:
    """The contract's columns of all files, and the names of the columns left out."""
    tables, left_out = [], dict[str, None]()
    for file in files:
        table, others = _read_csv(file)
        tables.append(table)
        left_out.update(dict.fromkeys(others))
    whole = pa.concat_tables(tables, promote_options="permissive")
    return pd.DataFrame({name: _to_pandas(whole, name) for name in whole.column_names}, copy=False), list(left_out)


def _read_parquet(source: _Source) -> tuple[pd.DataFrame, list[str]]:
    """The contract's columns of all files, and the names of the columns left out.

    Read column by column, so that the peak of memory is the result and one column.
    """
    options = pa_dataset.ParquetReadOptions(dictionary_columns=set(_TEXT_COLUMNS))
    file_format = pa_dataset.ParquetFileFormat(read_options=options)
    schemas = []
    for file in source.files:
        try:
            schemas.append(file_format.inspect(str(file), filesystem=pa_fs.LocalFileSystem()))
        except (pa.ArrowException, OSError) as problem:
            raise DataFileError(
                f"{file}: not readable as parquet ({_first_line(problem)}); write it again, or remove it"
            ) from None
    try:
        paths = [str(file) for file in source.files]
        partitions = pa_dataset.partitioning(flavor="hive")
        dataset = pa_dataset.dataset(
            paths, format=file_format, partitioning=partitions, partition_base_dir=str(source.root)
        )
        schema = pa.unify_schemas([*schemas, dataset.schema], promote_options="permissive")
        names = schema.names
        _refuse_repeated(source.root, names)
        dataset = dataset.replace_schema(schema)
        columns = {
            name: _to_pandas(dataset.to_table(columns=[name], memory_pool=_pool()), name)
            for name in COLUMNS
            if name in names
        }
    except (pa.ArrowException, OSError) as problem:
        where = source.files[0] if len(source.files) == 1 else source.root
        raise DataFileError(
            f"{where}: not readable as parquet ({_first_line(problem)}); write it again with one schema"
        ) from None
    return pd.DataFrame(columns, copy=False), [name for name in names if name not in COLUMNS]


def _read_csv(path: Path) -> tuple[pa.Table, list[str]]:
    try:
        with pa_csv.open_csv(path) as reader:
            names = reader.schema.names
        _refuse_repeated(path, names)
        if len(names) == 1 and ";" in names[0]:
            raise DataFileError(f"{path}: columns are separated by semicolons; separate them by commas")
        kept = [name for name in COLUMNS if name in names]
        try:
            table = _parse_csv(path, kept, pa.float32())
        except pa.ArrowInvalid:  # text among the numbers: read as text, so that validation can count it
            table = _parse_csv(path, kept, pa.string())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise DataFileError(f"{path}: not readable as CSV ({_first_line(problem)}); write it again") from None
    return table, [name for name in names if name not in COLUMNS]


def _parse_csv(path: Path, columns: list[str], metric_type: pa.DataType) -> pa.Table:
    label = pa.dictionary(pa.int32(), pa.string())  # few distinct values: parsed once each
    types = {name: metric_type if name in METRICS else label for name in columns}
    options = pa_csv.ConvertOptions(
        column_types=types, include_columns=columns, null_values=_CSV_NULLS, strings_can_be_null=True
    )
    if not columns:  # nothing of the contract is there; validation says so
        return pa.table({})
    return pa_csv.read_csv(path, convert_options=options)


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataFileError(f"{path}: column {name} occurs {names.count(name)} times; keep one")


def _first_line(problem: Exception) -> str:
    return str(problem).splitlines()[0].rstrip(".") if str(problem) else type(problem).__name__


def _to_pandas(table: pa.Table, name: str) -> pd.Series[Any]:
    """One column; numbers of a metric as float32."""
    column = table.select([name]).unify_dictionaries(memory_pool=_pool()).column(0)
    kind = column.type
    number = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    if name in METRICS and number and kind != pa.float32():
        column = column.cast(pa.float32(), safe=False)
    series: pd.Series[Any] = column.to_pandas(memory_pool=_pool())
    return series


def _pool() -> pa.MemoryPool:
    return pa.system_memory_pool()  # unlike Arrow's default one, it gives memory back at once


# --- validation -----------------------------------------------------------------------------------------------------


@dataclass
class _Examined:
    """What was found out about rows; the arrays are complete only where there is no violation."""

    violations: list[Violation]
    timestamps: npt.NDArray[np.datetime64] | None = None  # [row] ns, UTC
    labels: dict[str, _Labels] = field(default_factory=dict)  # text columns
    metrics: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)  # NaN where not measured
    order: npt.NDArray[np.intp] | None = None  # rows by server and time; None if they are in that order


@dataclass
class _Labels:
    """A text column, each distinct value once, in alphabetical order; code -1 is null."""

    values: npt.NDArray[np.object_]  # [label]
    codes: npt.NDArray[np.integer[Any]]  # [row]

    def rows_where(self, flags: npt.NDArray[np.bool_], null: bool = False) -> npt.NDArray[np.bool_]:
        """[row] whether the row's value is flagged; `null` is the answer for rows without a value."""
        rows: npt.NDArray[np.bool_] = np.append(flags, null)[self.codes]  # code -1 takes the last one
        return rows


def _examine(frame: pd.DataFrame) -> _Examined:
    examined = _Examined([])
    missing = [name for name in REQUIRED if name not in frame.columns]
    for name in missing:
        present = ", ".join(map(str, frame.columns)) or "none"
        remedy = f"rename or add the column (present: {present})"
        examined.violations.append(Violation(name, 0, "", "the column is missing", remedy))
    if frame.empty and not missing:
        examined.violations.append(Violation("timestamp", 0, "", "there are no rows", "provide at least one row"))
        return examined
    if "timestamp" not in missing:
        _examine_timestamps(frame, examined)
    for name in _TEXT_COLUMNS:
        if name in frame.columns:
            _examine_text(frame, name, examined)
    _examine_metrics(frame, examined)
    if examined.timestamps is not None and "server_name" in examined.labels:
        _examine_order(frame, examined)
        _examine_profiles(frame, examined)
    return examined


def _examine_timestamps(frame: pd.DataFrame, examined: _Examined) -> None:
    instants = _instants(frame, examined)
    if instants is None:
        return
    null = np.isnat(instants)
    outside = ~null & ((instants < FIRST_TIMESTAMP) | (instants >= END_OF_TIMESTAMPS))
    if null.any():
        remedy = "give each row its time, or leave the row out"
        examined.violations.append(_violation(frame, "timestamp", null, "the time is missing", remedy))
    if outside.any():
        message, remedy = "the time is not within 1970 to 2199", "check the unit of the times"
        examined.violations.append(_violation(frame, "timestamp", outside, message, remedy))
    if not null.any() and not outside.any():
        examined.timestamps = instants.astype("datetime64[ns]", copy=False)


def _instants(frame: pd.DataFrame, examined: _Examined) -> npt.NDArray[np.datetime64] | None:
    """UTC times [row], NaT where null; None if some are no times or have no zone."""
    column = frame["timestamp"]
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        utc: npt.NDArray[np.datetime64] = column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
        return utc
    unzoned, remedy = "the time has no zone", "write UTC times with their zone, such as 2026-11-23T10:00:00Z"
    everywhere = np.ones(len(frame), dtype=bool)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind == "M":
        examined.violations.append(_violation(frame, "timestamp", everywhere, unzoned, remedy))
        return None
    labels = _labels(column)
    if labels is None:
        message = f"not a time but {column.dtype}"
        examined.violations.append(_violation(frame, "timestamp", everywhere, message, remedy))
        return None
    parsed = pd.to_datetime(pd.Series(labels.values), utc=True, format="ISO8601", errors="coerce")
    unreadable = parsed.isna().to_numpy()
    no_zone = np.array([_ZONED_TEXT.search(text) is None for text in labels.values], dtype=bool) & ~unreadable
    for flags, message in ((unreadable, "not a time in ISO 8601"), (no_zone, unzoned)):
        if flags.any():
            rows = labels.rows_where(flags)
            examined.violations.append(_violation(frame, "timestamp", rows, message, remedy))
    if unreadable.any() or no_zone.any():
        return None
    instants: npt.NDArray[np.datetime64] = np.append(
        parsed.dt.tz_localize(None).to_numpy(dtype="datetime64[ns]"), np.datetime64("NaT", "ns")
    )[labels.codes]
    return instants


def _examine_text(frame: pd.DataFrame, name: str, examined: _Examined) -> None:
    column = frame[name]
    if name not in REQUIRED and bool(column.isna().all()):
        return  # a column without values counts as absent
    labels = _labels(column)
    if labels is None:
        text = column.map(lambda value: isinstance(value, str) or value is None or value != value)
        rows = ~text.to_numpy(dtype=bool)
        remedy = "write names as text" if name == "server_name" else "write text, or null"
        examined.violations.append(_violation(frame, name, rows, "not text", remedy))
        return
    found: list[tuple[npt.NDArray[np.bool_], str, str]] = []
    if name == "server_name":
        bad = np.array([re.fullmatch(SERVER_NAME_PATTERN, text) is None for text in labels.values], dtype=bool)
        found.append((labels.codes == -1, "the name is missing", "name the server of each row"))
        found.append(
            (labels.rows_where(bad), "not a server name", "use 1 to 253 of the characters A-Z a-z 0-9 . _ : -")
        )
    elif name == "state":
        bad = np.array([text not in STATES for text in labels.values], dtype=bool)
        found.append((labels.rows_where(bad), "not a state", f"use one of {', '.join(STATES)}, or null"))
    else:
        bad = np.array([not text.strip() for text in labels.values], dtype=bool)
        found.append((labels.rows_where(bad), "blank text", "write null where there is none"))
    for rows, message, remedy in found:
        if rows.any():
            examined.violations.append(_violation(frame, name, rows, message, remedy))
    examined.labels[name] = labels


def _examine_metrics(frame: pd.DataFrame, examined: _Examined) -> None:
    before = len(examined.violations)
    for name in METRICS:
        if name in frame.columns:
            values = _numbers(frame, name, examined)
            if values is not None:
                _examine_range(frame, METRIC_SPECS[name], values, examined)
    if not examined.metrics and len(examined.violations) == before:
        given = [name for name in METRICS if name in frame.columns]
        message = f"no value in {', '.join(given)}" if given else "no metric column"
        remedy = f"provide at least one of {', '.join(METRICS)}"
        examined.violations.append(Violation("metrics", 0, "", message, remedy))


def _numbers(frame: pd.DataFrame, name: str, examined: _Examined) -> npt.NDArray[np.float32] | None:
    """A metric column as float32 [row], None if it holds something else."""
    column = frame[name]
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return column.to_numpy(dtype=np.float32, na_value=np.nan)
    if bool(column.isna().all()):
        return np.full(len(column), np.nan, dtype=np.float32)
    labels = _labels(column)
    rows = column.notna().to_numpy()
    message = f"not numbers but {column.dtype}"
    if labels is not None:
        message = "numbers written as text"
        unreadable = pd.to_numeric(pd.Series(labels.values), errors="coerce").isna().to_numpy()
        if unreadable.any():
            rows, message = labels.rows_where(unreadable), "text in a metric column"
    examined.violations.append(_violation(frame, name, rows, message, "write numbers, and null where not measured"))
    return None


def _examine_range(frame: pd.DataFrame, spec: MetricSpec, values: npt.NDArray[np.float32], examined: _Examined) -> None:
    lowest, highest = np.fmin.reduce(values), np.fmax.reduce(values)  # NaN only where nothing is measured
    if np.isnan(lowest):
        return  # a column without values counts as absent
    found: list[tuple[npt.NDArray[np.bool_], str, str]] = []
    if np.isinf(lowest) or np.isinf(highest):
        found.append((np.isinf(values), "not a finite number", "write null where not measured"))
    if lowest < spec.lower:
        found.append((np.isfinite(values) & (values < spec.lower), *_range_words(spec)))
    if spec.upper is not None and highest > spec.upper:
        found.append((np.isfinite(values) & (values > spec.upper), *_range_words(spec)))
    for rows, message, remedy in found:
        if rows.any():
            examined.violations.append(_violation(frame, spec.name, rows, message, remedy))
    examined.metrics[spec.name] = values


def _range_words(spec: MetricSpec) -> tuple[str, str]:
    return f"outside the range {spec.range_text} {spec.unit}", f"give it in {spec.unit}, and null where not measured"


def _examine_order(frame: pd.DataFrame, examined: _Examined) -> None:
    """Find the order by server and time, and rows that name the same server and time."""
    codes, times = examined.labels["server_name"].codes, examined.timestamps
    assert times is not None  # noqa: S101 - narrows the type; the caller checked
    instants = times.view(np.int64)
    same_server = codes[1:] == codes[:-1]
    if bool(np.all(np.where(same_server, instants[1:] > instants[:-1], codes[1:] > codes[:-1]))):
        return
    order = np.lexsort((instants, codes))
    later, earlier = order[1:], order[:-1]
    same = (codes[later] == codes[earlier]) & (instants[later] == instants[earlier]) & (codes[later] != -1)
    if same.any():
        repeated = np.zeros(len(frame), dtype=bool)
        repeated[later[same]] = True
        message, remedy = "the server has another row of the same time", "keep one row for each server and time"
        examined.violations.append(_violation(frame, "server_name, timestamp", repeated, message, remedy))
    examined.order = order


def _examine_profiles(frame: pd.DataFrame, examined: _Examined) -> None:
    """Find servers with two profiles."""
    if "profile" not in examined.labels:
        return
    servers, profiles = examined.labels["server_name"], examined.labels["profile"]
    own = _profile_of_server(servers, profiles)
    differs = (profiles.codes != -1) & (servers.codes != -1) & (profiles.codes != own[servers.codes])
    if differs.any():
        message, remedy = "the server has another profile in other rows", "keep one profile for each server"
        examined.violations.append(_violation(frame, "profile", differs, message, remedy))


def _profile_of_server(servers: _Labels, profiles: _Labels) -> npt.NDArray[np.integer[Any]]:
    """[server] code of the first profile its rows name, -1 where they name none."""
    own = np.full(len(servers.values) + 1, -1, dtype=np.int64)
    named = np.flatnonzero((profiles.codes != -1) & (servers.codes != -1))
    own[servers.codes[named[::-1]]] = profiles.codes[named[::-1]]  # the first row is written last
    return own[:-1]


def _labels(column: pd.Series[Any]) -> _Labels | None:
    """A text column by its distinct values, None if there is anything but text and null in it."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        if len(pd.unique(column.cat.codes[column.cat.codes >= 0])) < len(column.cat.categories):
            column = column.cat.remove_unused_categories()
        codes, values = column.cat.codes.to_numpy(), column.cat.categories.to_numpy(dtype=object)
    elif pd.api.types.is_object_dtype(column.dtype) or pd.api.types.is_string_dtype(column.dtype):
        try:
            codes, unique = pd.factorize(column.to_numpy(dtype=object))
        except TypeError:  # unhashable
            return None
        values = np.asarray(unique, dtype=object)
    else:
        return None
    if not all(isinstance(value, str) for value in values):
        return None
    by_name = np.argsort(values.astype(str)) if len(values) else np.empty(0, dtype=np.intp)
    if bool(np.all(by_name == np.arange(len(values)))):
        return _Labels(values, codes)
    rank = np.empty(len(values) + 1, dtype=np.int32)
    rank[by_name] = np.arange(len(values), dtype=np.int32)
    rank[-1] = -1
    return _Labels(values[by_name], rank[codes])


def _violation(frame: pd.DataFrame, column: str, rows: npt.NDArray[np.bool_], message: str, remedy: str) -> Violation:
    """A violation of the rows where `rows` [row] is true, the first one as the example."""
    row = int(np.argmax(rows))
    values = [frame[name].iloc[row] for name in column.split(", ")]
    example = " at ".join(_shown(value) for value in values)
    where = [f"row {row + 1:,}"]
    where += [
        _shown(frame[name].iloc[row])
        for name in ("server_name", "timestamp")
        if name not in column and name in frame.columns
    ]
    return Violation(column, int(rows.sum()), f"{example} ({', '.join(where)})", message, remedy)


def _shown(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return value.isoformat().replace("+00:00", "Z")
    text = f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
    return repr(text) if text != text.strip() or not text or not text.isprintable() else text[:80]


# --- assembly -------------------------------------------------------------------------------------------------------


def _assemble(
    frame: pd.DataFrame, examined: _Examined, rules: ProfileRules, metadata: Metadata | None, notices: list[str]
) -> ContractData:
    """Sorted rows in the contract's types, with profiles inferred where they are missing."""
    order = slice(None) if examined.order is None else examined.order
    absent = [n for n in COLUMNS if n in frame.columns and n not in (*examined.labels, *examined.metrics, "timestamp")]
    notices.extend(f"column {name} has no value: counted as absent" for name in absent)
    servers = examined.labels["server_name"]
    profiles, inferred = _complete_profiles(servers, examined.labels.get("profile"), rules)
    if inferred:
        notices.append(f"profile of {inferred:,} of {len(servers.values):,} servers inferred from the name")
    unknown = sorted(set(profiles.values) - set(ServerProfile))
    if unknown:
        notices.append(f"profile {', '.join(unknown)}: not one of the seven, unknown to a model not trained on it")

    has_profiles, metrics = "profile" in examined.labels, tuple(n for n in METRICS if n in examined.metrics)
    times = _required(examined.timestamps)[order]
    columns: dict[str, Any] = {"timestamp": pd.DatetimeIndex(times).tz_localize("UTC")}
    for name in COLUMNS[1:]:  # each unsorted column is let go once it is sorted
        if name in metrics:
            columns[name] = examined.metrics.pop(name)[order]
        elif name == "profile" or name in examined.labels:
            labels = profiles if name == "profile" else examined.labels.pop(name)
            codes: Any = labels.codes[order]
            columns[name] = pd.Categorical.from_codes(codes, categories=pd.Index(labels.values))
        if name in frame.columns:
            del frame[name]
    return ContractData(pd.DataFrame(columns, copy=False), metadata, metrics, has_profiles, tuple(notices))


def _required(timestamps: npt.NDArray[np.datetime64] | None) -> npt.NDArray[np.datetime64]:
    if timestamps is None:
        raise ValueError("rows were assembled that had not been examined")
    return timestamps


def _complete_profiles(servers: _Labels, given: _Labels | None, rules: ProfileRules) -> tuple[_Labels, int]:
    """Profile of each row, inferred for servers that name none; and how many servers those are."""
    given = given or _Labels(np.empty(0, dtype=object), np.full(len(servers.codes), -1, dtype=np.int8))
    own = _profile_of_server(servers, given)
    names = [
        str(given.values[code]) if code != -1 else str(infer_profile_from_name(str(server), rules))
        for server, code in zip(servers.values, own, strict=True)
    ]
    values, of_server = np.unique(np.array(names, dtype=object), return_inverse=True)
    return _Labels(values, of_server.astype(np.int16)[servers.codes]), int((own == -1).sum())


# --- the command ----------------------------------------------------------------------------------------------------


def document_tables() -> str:
    """The tables of DATA_CONTRACT.md, in Markdown."""
    lines = ["| column | content | required | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{spec.name}` | {spec.content} | {'yes' if spec.required else 'no'} | {spec.description} |"
        for spec in COLUMN_SPECS.values()
    ]
    lines += ["", "| metric | unit | range | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{spec.name}` | {spec.unit} | {spec.range_text} | {spec.description} |" for spec in METRIC_SPECS.values()
    ]
    return "\n".join(lines)


def _summary(path: Path, data: ContractData) -> dict[str, Any]:
    times = data.frame["timestamp"]
    return {
        "path": str(path),
        "contract_version": CONTRACT_VERSION,
        "rows": len(data.frame),
        "servers": int(data.frame["server_name"].nunique()),
        "first": times.min().isoformat(),
        "last": times.max().isoformat(),
        "metrics": list(data.metrics),
        "profiles": sorted(data.frame["profile"].unique()),
        "notices": list(data.notices),
        "violations": [],
    }


def _print_summary(summary: Mapping[str, Any]) -> None:
    print(f"{summary['path']} keeps the data contract {CONTRACT_VERSION}")
    print(f"  {summary['rows']:,} rows of {summary['servers']:,} servers, {summary['first']} to {summary['last']}")
    print(f"  metrics: {', '.join(summary['metrics'])}")
    print(f"  profiles: {', '.join(summary['profiles'])}")
    for notice in summary["notices"]:
        print(f"  notice: {notice}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="data_contract.py",
        description=f"Check server metrics against the data contract {CONTRACT_VERSION}.",
        epilog="example: python data_contract.py training/",
    )
    parser.add_argument("path", nargs="?", type=Path, help="parquet or CSV file, or a folder of them")
    parser.add_argument("--profiles", type=Path, metavar="FILE", help="TOML file with further name patterns and pins")
    parser.add_argument("--document", action="store_true", help="print the tables of DATA_CONTRACT.md and exit")
    return parser


def main(argv: Iterable[str] | None = None) -> int:
    """Check one path; returns 0 if it keeps the contract, 1 if not, 2 for wrong usage."""
    parser = _parser()
    try:
        arguments = parser.parse_args(None if argv is None else list(argv))
        if not arguments.document and arguments.path is None:
            parser.error("give the path of a file or folder to check")
    except SystemExit as stop:
        return int(stop.code or 0)
    if arguments.document:
        print(document_tables())
        return 0
    try:
        rules = BUILT_IN_RULES if arguments.profiles is None else load_profile_rules(arguments.profiles)
        summary = _summary(arguments.path, read_metrics(arguments.path, rules))
    except ProfileFileError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except ContractError as problem:
        print(f"error: {problem}", file=sys.stderr)
        violations = [dataclasses.asdict(violation) for violation in problem.violations]
        print(json.dumps({"path": str(arguments.path), "violations": violations}))
        return 1
    except DataFileError as problem:
        print(f"error: {problem}", file=sys.stderr)
        print(json.dumps({"path": str(arguments.path), "error": str(problem)}))
        return 1
    _print_summary(summary)
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
