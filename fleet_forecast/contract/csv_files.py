"""CSV files of any common dialect, read in batches: separators, decimal comma, encodings, compression.

The dialect is found from the beginning of the file: a byte order mark gives the encoding, the header the separator
(comma, semicolon, tab or bar; Excel's `sep=;` line is followed), and the numbers below it the decimal sign. Files
without a byte order mark are UTF-8.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.contract.specs import METRICS

LABEL = pa.dictionary(pa.int32(), pa.string())  # few distinct values: parsed once each
_BLOCK_BYTES = 1 << 25
_SAMPLE_BYTES = 1 << 16
_NULLS = ["", "null", "NULL", "None", "NaN", "nan", "NA", "N/A"]
_SEPARATORS = ",;\t|"
_COMPRESSIONS = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\x28\xb5\x2f\xfd", "zstd"))
_MARKS = (  # the longer ones first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')
_DECIMAL_COMMA, _DECIMAL_POINT = re.compile(r"\s*[+-]?\d+,\d+\s*"), re.compile(r"\s*[+-]?\d+\.\d+\s*")


class Dialect(NamedTuple):
    """The dialect of a CSV file; first_line: lines before the header."""

    compression: str | None
    encoding: str
    separator: str
    decimal: str
    first_line: int


def open_csv(files: Sequence[Path]) -> tuple[list[str], Callable[[Sequence[str]], Iterator[pa.RecordBatch]]]:
    """Names of all columns, and a function that reads some of them in batches. Raises DataFileError."""
    opened = {file: _header(file) for file in files}

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for file, (dialect, names) in opened.items():
            kept = [name for name in columns if name in names]
            try:
                for batch in _batches(file, dialect, kept):
                    yield with_columns(batch, columns)
            except (pa.ArrowException, OSError, UnicodeError) as problem:
                raise _unreadable(file, problem) from None

    return list(dict.fromkeys(name for _, names in opened.values() for name in names)), batches


def with_columns(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """The columns in order; a column that only other files have is null."""
    rows = batch.num_rows
    return pa.RecordBatch.from_arrays(
        [
            batch.column(name)
            if name in batch.schema.names
            else pa.nulls(rows, pa.float32() if name in METRICS else LABEL)
            for name in columns
        ],
        names=list(columns),
    )


def refuse_repeated(path: Path, names: Sequence[str]) -> None:
    """Raises DataFileError if a column name occurs twice."""
    for name in names:
        if names.count(name) > 1:
            raise DataFileError(f"{path}: column {name} occurs {names.count(name)} times; keep one")


def first_line(problem: Exception) -> str:
    """The first line of an error's text, for messages."""
    return str(problem).splitlines()[0].rstrip(".") if str(problem) else type(problem).__name__


def dialect_of(path: Path) -> Dialect:
    """The dialect of a file. Raises OSError, pa.ArrowException or UnicodeError if its beginning cannot be read."""
    with path.open("rb") as file:
        magic = file.read(4)
    compression = next((name for start, name in _COMPRESSIONS if magic.startswith(start)), None)
    with pa.input_stream(str(path), compression=compression) as stream:
        sample = stream.read(_SAMPLE_BYTES)
    encoding = next((name for mark, name in _MARKS if sample.startswith(mark)), "utf-8")
    if encoding in ("utf-8", "utf-8-sig") and b"\0" in sample:
        raise UnicodeError("neither UTF-8 nor marked as UTF-16")
    text = codecs.getincrementaldecoder(encoding)().decode(sample)  # a character that is cut off is left out
    lines = text.splitlines()
    given = _SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
    if given:
        return Dialect(compression, encoding, given[1], _decimal(lines[1:], given[1]), 1)
    separator = max(_SEPARATORS, key=lambda sign: len(_fields(lines[0], sign))) if lines else ","
    return Dialect(compression, encoding, separator, _decimal(lines, separator), 0)


def _decimal(lines: Sequence[str], separator: str) -> str:
    """A comma if numbers of the sample have one and no number has a point."""
    if separator == "," or not lines:
        return "."
    named = [place for place, name in enumerate(_fields(lines[0], separator)) if name in METRICS]
    cells = [row[place] for row in csv.reader(lines[1:], delimiter=separator) for place in named if place < len(row)]
    has_comma = any(_DECIMAL_COMMA.fullmatch(cell) for cell in cells)
    return "," if has_comma and not any(_DECIMAL_POINT.fullmatch(cell) for cell in cells) else "."


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator), [])


def _header(path: Path) -> tuple[Dialect, list[str]]:
    try:
        dialect = dialect_of(path)
        with _reader(path, dialect, pa_csv.ConvertOptions()) as reader:
            names: list[str] = reader.schema.names
    except (pa.ArrowException, OSError, UnicodeError) as problem:
        raise _unreadable(path, problem) from None
    refuse_repeated(path, names)
    return dialect, names


def _unreadable(path: Path, problem: Exception) -> DataFileError:
    reason = first_line(problem)
    encoded = isinstance(problem, UnicodeError) or "utf8" in reason.lower()
    return DataFileError(
        f"{path}: not readable as CSV ({reason}); {'save it as UTF-8 text' if encoded else 'write it again'}"
    )


def _batches(path: Path, dialect: Dialect, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if not columns:  # no column of the contract: validation reports it
        return
    rows = 0
    try:
        for batch in _parse(path, dialect, columns, pa.float32()):
            yield batch
            rows += batch.num_rows
    except pa.ArrowInvalid:  # text among the numbers: read the rest as text, so that validation can count it
        for batch in _parse(path, dialect, columns, pa.string()):
            if rows < batch.num_rows:
                yield _numbers_where_possible(batch.slice(rows), dialect.decimal)
            rows = max(0, rows - batch.num_rows)


def _parse(path: Path, dialect: Dialect, columns: list[str], metric_type: pa.DataType) -> Iterator[pa.RecordBatch]:
    options = pa_csv.ConvertOptions(
        column_types={name: metric_type if name in METRICS else LABEL for name in columns},
        include_columns=columns,
        null_values=_NULLS,
        strings_can_be_null=True,
        decimal_point=dialect.decimal,
    )
    with _reader(path, dialect, options) as reader:
        yield from reader


def _reader(path: Path, dialect: Dialect, options: pa_csv.ConvertOptions) -> pa_csv.CSVStreamingReader:
    return pa_csv.open_csv(
        pa.input_stream(str(path), compression=dialect.compression),
        read_options=pa_csv.ReadOptions(
            block_size=_BLOCK_BYTES, encoding=dialect.encoding, skip_rows=dialect.first_line
        ),
        parse_options=pa_csv.ParseOptions(delimiter=dialect.separator),
        convert_options=options,
        memory_pool=pa.system_memory_pool(),
    )


def _numbers_where_possible(batch: pa.RecordBatch, decimal: str) -> pa.RecordBatch:
    """Metrics that were read as text: with a decimal point, and as numbers if all values of a column are."""
    for place, name in enumerate(batch.schema.names):
        if name in METRICS:
            column = batch.column(name)
            if decimal != ".":
                column = pc.replace_substring(column, decimal, ".")
            with contextlib.suppress(pa.ArrowInvalid):  # text stays text
                column = column.cast(pa.float32())
            batch = batch.set_column(place, name, column)
    return batch
