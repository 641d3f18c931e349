"""Checks of one batch of rows: times with their zone, names, states, numbers within their range.

audit.py checks what needs all rows: repeated rows, servers with two profiles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fleet_forecast.contract.specs import (
    CONTRACT_VERSION,
    END_OF_TIMESTAMPS,
    FIRST_TIMESTAMP,
    METRIC_SPECS,
    METRICS,
    REQUIRED,
    SERVER_NAME_PATTERN,
    STATES,
    TEXT_COLUMNS,
    MetricSpec,
)
from fleet_forecast.iso_time import iso_exact

_OUTSIDE = "the time is not within 1970 to 2199", "check the unit of the times"
_ZONED_TEXT = re.compile(r"[T ]\d\d.*(Z|[+-]\d\d(:?\d\d)?)$")


@dataclass(frozen=True)
class Violation:
    """One way in which data breaks the contract: the number of rows, an example and the remedy."""

    column: str
    rows: int
    example: str
    message: str
    remedy: str

    def __str__(self) -> str:
        rows = f"{self.rows:,} row{'' if self.rows == 1 else 's'}: " if self.rows else ""
        example = f", for example {self.example}" if self.example else ""
        return f"{self.column}: {rows}{self.message}{example}; {self.remedy}"

    def and_later(self, other: Violation) -> Violation:
        """This violation with the rows of a later one added; the example is still the first one."""
        return replace(self, rows=self.rows + other.rows)


class ContractError(ValueError):
    """Data breaks the contract; `violations` lists every way, and so does the message."""

    def __init__(self, source: Path, violations: Sequence[Violation]) -> None:
        self.source = source
        self.violations = tuple(violations)
        listed = "\n".join(f"  - {violation}" for violation in violations)
        super().__init__(f"{source} breaks the data contract {CONTRACT_VERSION}:\n{listed}")


@dataclass
class Labels:
    """A text column as codes of its distinct values in alphabetical order; code -1 is null."""

    values: npt.NDArray[np.object_]  # [label]
    codes: npt.NDArray[np.integer[Any]]  # [row]

    def rows_where(self, flags: npt.NDArray[np.bool_], null: bool = False) -> npt.NDArray[np.bool_]:
        """[row] the flag of the row's value; `null` for rows without a value."""
        rows: npt.NDArray[np.bool_] = np.append(flags, null)[self.codes]  # code -1 selects the last one
        return rows


@dataclass
class Examined:
    """Content and violations of a batch; the arrays are complete only if there is no violation."""

    violations: list[Violation]
    timestamps: npt.NDArray[np.datetime64] | None = None  # [row] ns, UTC
    labels: dict[str, Labels] = field(default_factory=dict)  # text columns
    metrics: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)  # NaN where not measured

    def times(self) -> npt.NDArray[np.datetime64]:
        """`timestamps`; raises ValueError if the batch has rows without a valid time."""
        if self.timestamps is None:
            raise ValueError("the batch has rows without a valid time")
        return self.timestamps


def examine(frame: pd.DataFrame) -> Examined:
    """Check rows; the index is the row number from 0, and columns may have any type that pandas reads."""
    examined = Examined([])
    if "timestamp" in frame.columns:
        _examine_timestamps(frame, examined)
    for name in TEXT_COLUMNS:
        if name in frame.columns:
            _examine_text(frame, name, examined)
    for name in METRICS:
        if name in frame.columns:
            values = _numbers(frame, name, examined)
            if values is not None:
                _examine_range(frame, METRIC_SPECS[name], values, examined)
    return examined


def _examine_timestamps(frame: pd.DataFrame, examined: Examined) -> None:
    instants = _instants(frame, examined)
    if instants is None:
        return
    null = np.isnat(instants)
    outside = ~null & ((instants < FIRST_TIMESTAMP) | (instants >= END_OF_TIMESTAMPS))
    if null.any():
        remedy = "give each row its time, or leave the row out"
        examined.violations.append(violation(frame, "timestamp", null, "the time is missing", remedy))
    if outside.any():
        examined.violations.append(violation(frame, "timestamp", outside, *_OUTSIDE))
    if not null.any() and not outside.any():
        examined.timestamps = instants.astype("datetime64[ns]", copy=False)


def _instants(frame: pd.DataFrame, examined: Examined) -> npt.NDArray[np.datetime64] | None:
    """[row] UTC times, NaT where null; None if a value is not a time or has no zone."""
    column = frame["timestamp"]
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        utc: npt.NDArray[np.datetime64] = pd.DatetimeIndex(column).tz_convert("UTC").tz_localize(None).to_numpy()
        return utc
    unzoned, remedy = "the time has no zone", "write UTC times with their zone, such as 2026-11-23T10:00:00Z"
    everywhere = np.ones(len(frame), dtype=bool)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind == "M":
        examined.violations.append(violation(frame, "timestamp", everywhere, unzoned, remedy))
        return None
    labels = labels_of(column)
    if labels is None:
        message = f"not a time but {column.dtype}"
        examined.violations.append(violation(frame, "timestamp", everywhere, message, remedy))
        return None
    parsed = pd.to_datetime(pd.Series(labels.values), utc=True, format="ISO8601", errors="coerce")
    unknown = parsed.isna().to_numpy()
    far = np.array(
        [not known and _is_time(text) for text, known in zip(labels.values, ~unknown, strict=True)], dtype=bool
    )
    no_zone = np.array([_ZONED_TEXT.search(text) is None for text in labels.values], dtype=bool) & ~unknown
    for flags, message, what_to_do in (
        (unknown & ~far, "not a time in ISO 8601", remedy),
        (far, *_OUTSIDE),
        (no_zone, unzoned, remedy),
    ):
        if flags.any():
            rows = labels.rows_where(flags)
            examined.violations.append(violation(frame, "timestamp", rows, message, what_to_do))
    if unknown.any() or no_zone.any():
        return None
    instants: npt.NDArray[np.datetime64] = np.append(
        parsed.dt.tz_localize(None).to_numpy(dtype="datetime64[ns]"), np.datetime64("NaT", "ns")
    )[labels.codes]
    return instants


def _is_time(text: str) -> bool:
    """Whether the text is a time, also in a year that 64-bit nanoseconds cannot represent."""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _examine_text(frame: pd.DataFrame, name: str, examined: Examined) -> None:
    column = frame[name]
    if name not in REQUIRED and bool(column.isna().all()):
        return  # a column without values is treated as absent
    labels = labels_of(column)
    if labels is None:
        text = column.map(lambda value: isinstance(value, str) or value is None or value != value)
        rows = ~text.to_numpy(dtype=bool)
        remedy = "write names as text" if name == "server_name" else "write text, or null"
        examined.violations.append(violation(frame, name, rows, "not text", remedy))
        return
    found: list[tuple[npt.NDArray[np.bool_], str, str]] = []
    if name == "server_name":
        bad = np.array([re.fullmatch(SERVER_NAME_PATTERN, text) is None for text in labels.values], dtype=bool)
        found.append((labels.codes == -1, "the name is missing", "name the server of each row"))
        found.append(
            (
                labels.rows_where(bad),
                "not a server name",
                "use 1 to 253 of the characters A-Z a-z 0-9 . _ : -, no dot first",
            )
        )
    elif name == "state":
        bad = np.array([text not in STATES for text in labels.values], dtype=bool)
        found.append((labels.rows_where(bad), "not a state", f"use one of {', '.join(STATES)}, or null"))
    else:
        bad = np.array([not text.strip() for text in labels.values], dtype=bool)
        found.append((labels.rows_where(bad), "blank text", "write null where there is none"))
    for rows, message, remedy in found:
        if rows.any():
            examined.violations.append(violation(frame, name, rows, message, remedy))
    examined.labels[name] = labels


def _numbers(frame: pd.DataFrame, name: str, examined: Examined) -> npt.NDArray[np.float32] | None:
    """A metric column as float32 [row], None if it contains anything but numbers."""
    column = frame[name]
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        with np.errstate(over="ignore"):  # the value becomes infinite and is refused
            return column.to_numpy(dtype=np.float32, na_value=np.nan)
    if bool(column.isna().all()):
        return np.full(len(column), np.nan, dtype=np.float32)
    labels = labels_of(column)
    rows = column.notna().to_numpy()
    message = f"not numbers but {column.dtype}"
    if labels is not None:
        message = "numbers written as text"
        unreadable = pd.to_numeric(pd.Series(labels.values), errors="coerce").isna().to_numpy()
        if unreadable.any():
            rows, message = labels.rows_where(unreadable), "text in a metric column"
    examined.violations.append(violation(frame, name, rows, message, "write numbers, and null where not measured"))
    return None


def _examine_range(frame: pd.DataFrame, spec: MetricSpec, values: npt.NDArray[np.float32], examined: Examined) -> None:
    lowest, highest = np.fmin.reduce(values), np.fmax.reduce(values)  # NaN only if nothing is measured
    if np.isnan(lowest):
        return  # a column without values is treated as absent
    found: list[tuple[npt.NDArray[np.bool_], str, str]] = []
    if np.isinf(lowest) or np.isinf(highest):
        found.append((np.isinf(values), "not a finite number", "write null where not measured"))
    if lowest < spec.lower:
        found.append((np.isfinite(values) & (values < spec.lower), *_range_words(spec)))
    if highest > spec.upper:
        found.append((np.isfinite(values) & (values > spec.upper), *_range_words(spec)))
    for rows, message, remedy in found:
        if rows.any():
            examined.violations.append(violation(frame, spec.name, rows, message, remedy))
    examined.metrics[spec.name] = values


def _range_words(spec: MetricSpec) -> tuple[str, str]:
    return f"outside the range {spec.range_text} {spec.unit}", f"give it in {spec.unit}, and null where not measured"


def labels_of(column: pd.Series[Any]) -> Labels | None:
    """A text column by its distinct values, None if it contains anything but text and null."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        labels: Any = column.array  # column.cat keeps a reference to the column until the next garbage collection
        if len(pd.unique(labels.codes[labels.codes >= 0])) < len(labels.categories):
            labels = labels.remove_unused_categories()
        codes, values = labels.codes, labels.categories.to_numpy(dtype=object)
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
        return Labels(values, codes)
    rank = np.empty(len(values) + 1, dtype=np.int32)
    rank[by_name] = np.arange(len(values), dtype=np.int32)
    rank[-1] = -1
    return Labels(values[by_name], rank[codes])


def violation(frame: pd.DataFrame, column: str, rows: npt.NDArray[np.bool_], message: str, remedy: str) -> Violation:
    """A violation in the rows where `rows` [row] is true; the first one is the example."""
    row = int(np.argmax(rows))
    values = [frame[name].iloc[row] for name in column.split(", ")]
    example = " at ".join(_shown(value) for value in values)
    where = [f"row {int(frame.index[row]) + 1:,}"]
    where += [
        _shown(frame[name].iloc[row])
        for name in ("server_name", "timestamp")
        if name not in column and name in frame.columns
    ]
    return Violation(column, int(rows.sum()), f"{example} ({', '.join(where)})", message, remedy)


def _shown(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return value.isoformat() if value.tzinfo is None else iso_exact(value)
    text = f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
    return repr(text) if text != text.strip() or not text or not text.isprintable() else text[:80]
