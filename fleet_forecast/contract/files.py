"""Finds files of metrics and reads their rows in batches: parquet or CSV, one file or a folder of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset
import pyarrow.fs as pa_fs

from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.contract.specs import COLUMNS, METRICS, METRICS_FILE, METRICS_FOLDER, TEXT_COLUMNS

BATCH_ROWS = 1 << 20  # 40 MB or so; a batch ends at the first part of a file that reaches it
_CSV_BLOCK_BYTES = 1 << 25
_CSV_NULLS = ["", "null", "NULL", "None", "NaN", "nan", "NA", "N/A"]


@dataclass(frozen=True)
class Source:
    """Files with rows, their common root (for hive partitions) and the folder of the metadata."""

    files: tuple[Path, ...]
    root: Path
    folder: Path
    is_csv: bool

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
            return Source((path / name,), path, path, _is_csv(path / name))
        if (path / name).is_dir():
            return _part_files(path / name, path)
    return _part_files(path, path)


def _part_files(root: Path, folder: Path) -> Source:
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
    return Source(parquet or csv, root, folder, bool(csv))


def _is_csv(path: Path) -> bool:
    if path.name.endswith((".csv", ".csv.gz")):
        return True
    if path.suffix in (".parquet", ".pq"):
        return False
    raise DataFileError(f"{path}: neither .parquet nor .csv; convert it, or rename it if it is one of them")


def open_rows(source: Source) -> Rows:
    """Open the files as one table. Raises DataFileError if that is not possible."""
    names, tables = _open_csv(source) if source.is_csv else _open_parquet(source)
    kept = tuple(name for name in COLUMNS if name in names)
    return Rows(kept, tuple(name for name in names if name not in COLUMNS), tables)


# --- parquet --------------------------------------------------------------------------------------------------------


def _open_parquet(source: Source) -> tuple[list[str], Callable[[Sequence[str]], Iterator[pa.RecordBatch]]]:
    options = pa_dataset.ParquetReadOptions(dictionary_columns=set(TEXT_COLUMNS))
    file_format = pa_dataset.ParquetFileFormat(read_options=options)
    where = source.files[0] if len(source.files) == 1 else source.root

    def unreadable(problem: Exception) -> DataFileError:
        return DataFileError(
            f"{where}: not readable as parquet ({_first_line(problem)}); write it again with one schema"
        )

    schemas = []
    for file in source.files:
        try:
            schemas.append(file_format.inspect(str(file), filesystem=pa_fs.LocalFileSystem()))
        except (pa.ArrowException, OSError) as problem:
            raise DataFileError(
                f"{file}: not readable as parquet ({_first_line(problem)}); write it again, or remove it"
            ) from None
    try:
        dataset = pa_dataset.dataset(
            [str(file) for file in source.files],
            format=file_format,
            partitioning=pa_dataset.partitioning(flavor="hive"),
            partition_base_dir=str(source.root),
        )
        schema = pa.unify_schemas([*schemas, dataset.schema], promote_options="permissive")
        _refuse_repeated(source.root, schema.names)
        dataset = dataset.replace_schema(schema)
    except (pa.ArrowException, OSError) as problem:
        raise unreadable(problem) from None

    def tables(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            # By row group: a scan of the dataset reads all files ahead.
            for file in dataset.get_fragments():
                for row_group in file.split_by_row_group():
                    yield from row_group.to_batches(
                        schema, columns=list(columns), batch_size=BATCH_ROWS, memory_pool=_pool()
                    )
        except (pa.ArrowException, OSError) as problem:
            raise unreadable(problem) from None

    return schema.names, tables


# --- CSV ------------------------------------------------------------------------------------------------------------


def _open_csv(source: Source) -> tuple[list[str], Callable[[Sequence[str]], Iterator[pa.RecordBatch]]]:
    headers = {file: _csv_header(file) for file in source.files}

    def tables(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for file, names in headers.items():
            kept = [name for name in columns if name in names]
            try:
                for batch in _csv_batches(file, kept):
                    yield _with_columns(batch, columns)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
                raise _unreadable_csv(file, problem) from None

    return list(dict.fromkeys(name for names in headers.values() for name in names)), tables


def _csv_header(path: Path) -> list[str]:
    try:
        with pa_csv.open_csv(path) as reader:
            names: list[str] = reader.schema.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as problem:
        raise _unreadable_csv(path, problem) from None
    _refuse_repeated(path, names)
    if len(names) == 1 and ";" in names[0]:
        raise DataFileError(f"{path}: columns are separated by semicolons; separate them by commas")
    return names


def _unreadable_csv(path: Path, problem: Exception) -> DataFileError:
    return DataFileError(f"{path}: not readable as CSV ({_first_line(problem)}); write it again")


def _csv_batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if not columns:  # no column of the contract: validation reports it
        return
    rows = 0
    try:
        for batch in _parse_csv(path, columns, pa.float32()):
            yield batch
            rows += batch.num_rows
    except pa.ArrowInvalid:  # text among the numbers: read the rest as text, so that validation can count it
        for batch in _parse_csv(path, columns, pa.string()):
            if rows < batch.num_rows:
                yield _numbers_where_possible(batch.slice(rows))
            rows = max(0, rows - batch.num_rows)


def _parse_csv(path: Path, columns: list[str], metric_type: pa.DataType) -> Iterator[pa.RecordBatch]:
    label = pa.dictionary(pa.int32(), pa.string())  # few distinct values: parsed once each
    types = {name: metric_type if name in METRICS else label for name in columns}
    options = pa_csv.ConvertOptions(
        column_types=types, include_columns=columns, null_values=_CSV_NULLS, strings_can_be_null=True
    )
    blocks = pa_csv.ReadOptions(block_size=_CSV_BLOCK_BYTES)
    with pa_csv.open_csv(path, read_options=blocks, convert_options=options, memory_pool=_pool()) as reader:
        yield from reader


def _numbers_where_possible(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Converts a text column of a metric to numbers if all its values are numbers."""
    for place, name in enumerate(batch.schema.names):
        if name in METRICS:
            try:
                batch = batch.set_column(place, name, batch.column(place).cast(pa.float32()))
            except pa.ArrowInvalid:
                continue
    return batch


def _with_columns(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """The columns in order; a column that only other files have is null."""
    rows, label = batch.num_rows, pa.dictionary(pa.int32(), pa.string())
    return pa.RecordBatch.from_arrays(
        [
            batch.column(name)
            if name in batch.schema.names
            else pa.nulls(rows, pa.float32() if name in METRICS else label)
            for name in columns
        ],
        names=list(columns),
    )


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


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataFileError(f"{path}: column {name} occurs {names.count(name)} times; keep one")


def _first_line(problem: Exception) -> str:
    return str(problem).splitlines()[0].rstrip(".") if str(problem) else type(problem).__name__


def _pool() -> pa.MemoryPool:
    return pa.system_memory_pool()  # returns memory at once, unlike Arrow's default pool
