"""Finds files of metrics and reads their rows in batches: parquet or CSV, one file or a folder of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from fleet_forecast.contract.csv_files import LABEL, first_line, open_csv, refuse_repeated, with_columns
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.contract.specs import COLUMNS, METADATA_FILE, METRICS, METRICS_FILE, METRICS_FOLDER, TEXT_COLUMNS

BATCH_ROWS = 1 << 20  # 40 MB or so; a batch ends at the first part of a file that reaches it
_PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
_CSV_SUFFIXES = (".csv", ".tsv")
_COMPRESSION_SUFFIXES = (".gz", ".bz2", ".zst")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Source:
    """Files with rows, their common root (for hive partitions) and the folder of the metadata."""

    files: tuple[Path, ...]
    root: Path
    folder: Path
    is_csv: bool
    not_read: tuple[Path, ...] = ()  # other files of the folder

    def stamp(self) -> list[tuple[int, int]]:
        """Size and time of the last change of each file, to detect that a file was written."""
        return [(found.st_size, found.st_mtime_ns) for found in (file.stat() for file in self.files)]


@dataclass(frozen=True)
class Rows:
    """The rows of all files as one table; they can be read in batches several times.

    columns: columns of the contract, in its order. left_out: names of the other columns.
    """

    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    _tables: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """Frames of about BATCH_ROWS rows, in the order of the files, indexed by row number from 0.

        Numeric metrics are float32. Raises DataFileError if a file cannot be read.
        """
        first = 0
        for table in _rebatched(self._tables(self.columns if columns is None else columns), BATCH_ROWS):
            index = pd.RangeIndex(first, first + table.num_rows)
            frame = pd.DataFrame({name: _to_pandas(table, name) for name in table.column_names}, copy=False)
            frame.index = index
            yield frame
            first += table.num_rows


def find_source(path: Path) -> Source:
    """The files of `path` (see read_metrics). Raises DataFileError if there is none."""
    if path.is_file():
        return Source((path,), path.parent, path.parent, _is_csv(path))
    if not path.exists():
        raise DataFileError(f"{path}: no such file or folder; give the path of a parquet or CSV file, or of a folder")
    for name in (METRICS_FILE, METRICS_FOLDER, f"{METRICS_FOLDER}.csv", f"{METRICS_FOLDER}.csv.gz"):
        if (path / name).is_file():
            file = path / name
            return Source((file,), path, path, _is_csv(file), _others(path, {file}))
        if (path / name).is_dir():
            found = _part_files(path / name, path)
            return replace(found, not_read=_others(path, {*found.files}))
    return _part_files(path, path)


def _part_files(root: Path, folder: Path) -> Source:
    visible = _visible_files(root)
    parquet = tuple(file for file in visible if _kind(file) == "parquet")
    csv = tuple(file for file in visible if _kind(file) == "csv")
    if parquet and csv:
        raise DataFileError(
            f"{root}: holds parquet files ({parquet[0].name}) and CSV files ({csv[0].name}); keep one kind"
        )
    if not parquet and not csv:
        msg = (
            f"{root}: holds no metrics; generate some with metrics_generator.py --out_dir, or put {METRICS_FILE} there"
        )
        raise DataFileError(msg)
    files = parquet or csv
    return Source(files, root, folder, bool(csv), _others(root, {*files}))


def _visible_files(root: Path) -> list[Path]:
    return [
        file
        for file in sorted(root.rglob("*"))
        if file.is_file() and not any(part.startswith((".", "_")) for part in file.relative_to(root).parts)
    ]


def _others(folder: Path, read: set[Path]) -> tuple[Path, ...]:
    return tuple(file for file in _visible_files(folder) if file not in read and file.name != METADATA_FILE)


def _kind(path: Path) -> str | None:
    """Parquet or csv by the name, in upper or lower case; None for other names."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes[-1:] and suffixes[-1] in _PARQUET_SUFFIXES:
        return "parquet"
    if suffixes[-1:] and suffixes[-1] in _COMPRESSION_SUFFIXES:
        suffixes.pop()
    return "csv" if suffixes[-1:] and suffixes[-1] in _CSV_SUFFIXES else None


def _is_csv(path: Path) -> bool:
    kind = _kind(path)
    if kind is None:
        raise DataFileError(f"{path}: neither .parquet nor .csv; convert it, or rename it if it is one of them")
    return kind == "csv"


def open_rows(source: Source) -> Rows:
    """Open the files as one table. Raises DataFileError if that is not possible."""
    names, tables = open_csv(source.files) if source.is_csv else _open_parquet(source)
    kept = tuple(name for name in COLUMNS if name in names)
    return Rows(kept, tuple(name for name in names if name not in COLUMNS), tables)


# --- parquet --------------------------------------------------------------------------------------------------------


class _ParquetFile(NamedTuple):
    """One file of a folder; constants: text columns that the folders around it give (hive partitions)."""

    path: Path
    fragment: pa_dataset.ParquetFileFragment
    schema: pa.Schema
    constants: Mapping[str, str | None]
    is_int96: bool  # Spark's time stamps: instants in UTC, without saying so

    def names(self) -> list[str]:
        return list(dict.fromkeys((*self.schema.names, *self.constants)))


def _open_parquet(source: Source) -> tuple[list[str], Callable[[Sequence[str]], Iterator[pa.RecordBatch]]]:
    files = [_parquet_file(path, source.root) for path in source.files]

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for file in files:
            stored = [name for name in columns if name in file.schema.names]
            try:
                # By row group: a scan of the whole file reads ahead.
                for row_group in file.fragment.split_by_row_group():
                    for batch in row_group.to_batches(
                        file.schema, columns=stored, batch_size=BATCH_ROWS, memory_pool=_pool()
                    ):
                        yield with_columns(_completed(batch, file), columns)
            except (pa.ArrowException, OSError) as problem:
                raise _unreadable_parquet(file.path, problem) from None

    return list(dict.fromkeys(name for file in files for name in file.names())), batches


def _parquet_file(path: Path, root: Path) -> _ParquetFile:
    options = pa_dataset.ParquetReadOptions(dictionary_columns=set(TEXT_COLUMNS))
    file_format = pa_dataset.ParquetFileFormat(read_options=options)
    try:
        fragment = file_format.make_fragment(str(path), filesystem=pa_fs.LocalFileSystem())
        schema, stored = fragment.physical_schema, pq.read_metadata(path).schema
    except (pa.ArrowException, OSError) as problem:
        raise _unreadable_parquet(path, problem) from None
    refuse_repeated(path, schema.names)
    columns = [stored.column(place) for place in range(len(stored))]
    is_int96 = any(column.path == "timestamp" and column.physical_type == "INT96" for column in columns)
    return _ParquetFile(path, fragment, schema, _partition_values(path.relative_to(root)), is_int96)


def _unreadable_parquet(path: Path, problem: Exception) -> DataFileError:
    return DataFileError(f"{path}: not readable as parquet ({first_line(problem)}); write it again, or remove it")


def _partition_values(path: Path) -> dict[str, str | None]:
    """The columns that the folders of a file give, such as `server_name=1001/`, always as text."""
    pairs = (part.partition("=") for part in path.parts[:-1] if "=" in part)
    return {unquote(name): None if text == _HIVE_NULL else unquote(text) for name, _, text in pairs}


def _completed(batch: pa.RecordBatch, file: _ParquetFile) -> pa.RecordBatch:
    """The batch with the columns of the folders, whole numbers as names, and all times with a zone in UTC."""
    names, columns = list(batch.schema.names), list(batch.columns)
    for place, name in enumerate(names):
        if name in TEXT_COLUMNS and pa.types.is_integer(columns[place].type):
            columns[place] = columns[place].cast(pa.string()).dictionary_encode()
        if name == "timestamp" and pa.types.is_timestamp(columns[place].type):
            kind = columns[place].type
            if file.is_int96 or kind.tz is not None:  # the zone's name does not matter: stored are instants
                columns[place] = columns[place].view(pa.timestamp(kind.unit, "UTC"))
    for name, text in file.constants.items():
        if name in COLUMNS and name not in names:
            repeated = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), batch.num_rows), [text])
            names.append(name)
            columns.append(repeated.cast(LABEL))
    if not columns:  # no column of the contract
        return pa.RecordBatch.from_arrays([pa.nulls(batch.num_rows)], names=[""])
    return pa.RecordBatch.from_arrays(columns, names=names)


# --- both -----------------------------------------------------------------------------------------------------------


def _rebatched(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Joins small batches of one schema and splits large ones into tables of about `rows` rows."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if waiting and batch.schema != waiting[0].schema:
            yield pa.Table.from_batches(waiting)
            waiting = []
        for first in range(0, batch.num_rows, rows):
            waiting.append(batch.slice(first, rows))
            if sum(part.num_rows for part in waiting) >= rows:
                yield pa.Table.from_batches(waiting)
                waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _to_pandas(table: pa.Table, name: str) -> pd.Series[Any]:
    """One column; numeric metrics as float32."""
    column = table.select([name]).unify_dictionaries(memory_pool=_pool()).column(0)
    kind = column.type
    number = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    if name in METRICS and number and kind != pa.float32():
        column = column.cast(pa.float32(), safe=False)
    series: pd.Series[Any] = column.to_pandas(memory_pool=_pool())
    return series


def _pool() -> pa.MemoryPool:
    return pa.system_memory_pool()  # returns memory at once, unlike Arrow's default pool
