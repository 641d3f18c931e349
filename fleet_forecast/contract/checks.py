"""Checks of rows and cells, for files and for requests: times, names, states, numbers within their range.

A cell that cannot be used counts as not measured, and a row without time or name is left out; both are counted, with an
example. `refusal_of_column`: a column is refused if most of its cells cannot be used, or if its values look like
another unit. audit.py has the checks that need all rows: repeated rows, servers with two profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fleet_forecast.contract.labels import Labels, is_server_name, labels_of
from fleet_forecast.contract.specs import (
    CONTRACT_VERSION,
    METRIC_SPECS,
    METRICS,
    REQUIRED,
    SERVER_NAME_WORDS,
    STATES,
    TEXT_COLUMNS,
    MetricSpec,
)
from fleet_forecast.contract.times import parse_times
from fleet_forecast.iso_time import iso_exact

MOSTLY = 0.5  # share of unusable cells beyond which a column is refused
ENOUGH_CELLS = 100  # from here on, a twentieth of the cells above the range is not an accident ...
ABOVE_SHARE = 0.05
FRACTIONS_FROM = 0.2  # ... and percentages that never exceed 1, and reach this, are fractions


@dataclass(frozen=True)
class Violation:
    """One violation: the number of rows, an example and the remedy."""

    column: str
    rows: int
    example: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.found}; {self.remedy}"

    @property
    def found(self) -> str:
        """What is wrong, without the remedy."""
        rows = f"{self.rows:,} row{'' if self.rows == 1 else 's'}: " if self.rows else ""
        example = f", for example {self.example}" if self.example else ""
        return f"{self.column}: {rows}{self.message}{example}"

    def and_later(self, other: Violation) -> Violation:
        """This violation with the rows of a later one added; the example stays the first one."""
        return replace(self, rows=self.rows + other.rows)


class ContractError(ValueError):
    """Data breaks the contract; `violations` lists every way, and so does the message."""

    def __init__(self, source: Path, violations: Sequence[Violation]) -> None:
        self.source = source
        self.violations = tuple(violations)
        listed = "\n".join(f"  - {violation}" for violation in violations)
        super().__init__(f"{source} breaks the data contract {CONTRACT_VERSION}:\n{listed}")


@dataclass
class CellCounts:
    """Cells of one metric.

    measured: cells that are not null. unusable, above: those that cannot be used, and those of them above the range.
    highest: the largest finite value.
    """

    measured: int = 0
    unusable: int = 0
    above: int = 0
    highest: float = -np.inf

    def add(self, other: CellCounts) -> None:
        """Count the cells of further rows."""
        self.measured += other.measured
        self.unusable += other.unusable
        self.above += other.above
        self.highest = max(self.highest, other.highest)


def refusal_of_column(spec: MetricSpec, cells: CellCounts) -> str | None:
    """Why a metric's column is refused as a whole, with the likely factor; None if its usable cells are used."""
    if _looks_like_fractions(spec, cells) and cells.measured >= ENOUGH_CELLS:
        return f"fractions instead of {spec.unit}: no value is outside 0 to 1; multiply by 100"
    systematic = cells.measured >= ENOUGH_CELLS and cells.above > ABOVE_SHARE * cells.measured
    if not systematic and cells.unusable <= MOSTLY * cells.measured:
        return None
    if cells.above <= MOSTLY * cells.unusable:
        return f"most values cannot be used; give numbers in {spec.unit}, and null where not measured"
    return f"most likely another unit; {_unit_remedy(spec, cells.highest)}"


def doubt(spec: MetricSpec, cells: CellCounts) -> str | None:
    """What is unlikely about a metric that is nevertheless used; None if nothing is."""
    if _looks_like_fractions(spec, cells):
        return f"no value is outside 0 to 1 {spec.unit}; if these are fractions, multiply by 100"
    return None


def _looks_like_fractions(spec: MetricSpec, cells: CellCounts) -> bool:
    return spec.is_percent and cells.measured > 1 and FRACTIONS_FROM <= cells.highest <= 1.0


def _unit_remedy(spec: MetricSpec, highest: float) -> str:
    if not spec.is_percent:
        return f"give it in {spec.unit}" + (": divide bytes by 1,000,000" if spec.unit.startswith("MB") else "")
    cores = -(-highest // spec.upper)
    if cores <= 1024:
        return f"where each core counts as 100 %, divide by the number of cores (at least {cores:.0f} here)"
    return f"give it in {spec.unit}, as the share in use of the total times 100"


@dataclass
class Examined:
    """Usable content of a batch, and what is wrong with the rest.

    rows: numbers of the usable rows, those with a time and a name; the arrays hold these rows.
    faults: rows that cannot be used, and cells that count as not measured. rounded: values just beyond a limit, which
    count as the limit. counts: by metric. present: by other column, the rows with a value. units: of numbers that were
    read as times.
    """

    rows: npt.NDArray[np.int64]
    faults: list[Violation] = field(default_factory=list)
    rounded: list[Violation] = field(default_factory=list)
    timestamps: npt.NDArray[np.datetime64] | None = None  # [row] ns, UTC; None without the column
    labels: dict[str, Labels] = field(default_factory=dict)  # text columns
    metrics: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)  # NaN where not measured
    counts: dict[str, CellCounts] = field(default_factory=dict)
    present: dict[str, int] = field(default_factory=dict)
    units: set[str] = field(default_factory=set)

    def times(self) -> npt.NDArray[np.datetime64]:
        """`timestamps`; raises ValueError if the batch has no column of times."""
        if self.timestamps is None:
            raise ValueError("the batch has no column of times")
        return self.timestamps

    def select(self, kept: npt.NDArray[np.bool_]) -> None:
        """Drop the rows that are not kept."""
        if kept.all():
            return
        self.rows = self.rows[kept]
        self.timestamps = None if self.timestamps is None else self.timestamps[kept]
        self.labels = {name: labels.at(kept) for name, labels in self.labels.items()}
        self.metrics = {name: values[kept] for name, values in self.metrics.items()}


def examine(frame: pd.DataFrame, timezone: str | None = None) -> Examined:
    """Check rows; the index is the row number from 0, and columns may have any type that pandas reads.

    timezone: of times without a zone, None if it is not known.
    """
    examined = Examined(frame.index.to_numpy(dtype=np.int64))
    usable = np.ones(len(frame), dtype=bool)
    if "timestamp" in frame.columns:
        parsed = parse_times(frame["timestamp"], timezone)
        examined.timestamps, examined.units = parsed.instants, parsed.units
        examined.present["timestamp"] = len(frame)
        usable &= ~np.isnat(parsed.instants)
        for flags, message, remedy in parsed.faults:
            examined.faults.append(violation(frame, "timestamp", flags, message, remedy))
    for name in TEXT_COLUMNS:
        if name in frame.columns:
            labels = _examine_text(frame, name, examined)
            if name == "server_name":
                usable &= labels.codes != -1 if labels is not None else False
    for name in METRICS:
        if name in frame.columns:
            values = _numbers(frame, name, examined)
            if not np.isnan(values).all():
                examined.metrics[name] = values
    examined.select(usable)
    return examined


def _examine_text(frame: pd.DataFrame, name: str, examined: Examined) -> Labels | None:
    """A text column without the values that cannot be used; None if it has none."""
    column = frame[name]
    missing = column.isna().to_numpy(dtype=bool)
    if name not in REQUIRED and bool(missing.all()):
        return None  # a column without values is treated as absent
    examined.present[name] = len(frame) - int(missing.sum()) if name not in REQUIRED else len(frame)
    labels = labels_of(column)
    if labels is None:
        text = column.map(lambda value: isinstance(value, str) or value is None or value != value)
        rows = ~text.to_numpy(dtype=bool)
        remedy = "write names as text" if name == "server_name" else "write text, or null"
        examined.faults.append(violation(frame, name, rows, "not text", remedy))
        return None
    is_usable, message, remedy = _TEXT_RULES.get(name, _NOT_BLANK)
    bad = np.array([not is_usable(text) for text in labels.values], dtype=bool)
    if name == "server_name" and missing.any():
        fault = violation(frame, name, labels.codes == -1, "the name is missing", "name the server of each row")
        examined.faults.append(fault)
    if bad.any():
        examined.faults.append(violation(frame, name, labels.rows_where(bad), message, remedy))
        labels = labels.masked(bad)
    if len(labels.values) or name == "server_name":
        examined.labels[name] = labels
    return labels


_TEXT_RULES: Mapping[str, tuple[Callable[[str], bool], str, str]] = {
    "server_name": (is_server_name, "not a server name", f"use {SERVER_NAME_WORDS}"),
    "state": (lambda text: text in STATES, "not a state", f"use one of {', '.join(STATES)}, or null"),
}
_NOT_BLANK = (lambda text: bool(text.strip()), "blank text", "write null where there is none")


def _numbers(frame: pd.DataFrame, name: str, examined: Examined) -> npt.NDArray[np.float32]:
    """A metric column as float32 [row], NaN where it is not measured or cannot be used."""
    column, spec = frame[name], METRIC_SPECS[name]
    counts = examined.counts.setdefault(name, CellCounts())
    numeric = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    if not numeric:
        if bool(column.isna().all()):
            return np.full(len(column), np.nan, dtype=np.float32)
        column, unusable, message = _numbers_of_text(column)
        _fault(frame, spec, unusable, message, examined)
        counts.measured += int(unusable.sum())
    with np.errstate(over="ignore"):  # the value becomes infinite and is not used
        values = column.to_numpy(dtype=np.float32, na_value=np.nan)
    lowest, highest = np.fmin.reduce(values), np.fmax.reduce(values)  # NaN only if nothing is measured
    if np.isnan(lowest):
        return values
    counts.measured += int(np.count_nonzero(~np.isnan(values)))
    finite = values[np.isfinite(values)] if np.isinf(lowest) or np.isinf(highest) else None
    counts.highest = float(highest if finite is None else np.max(finite, initial=-np.inf))
    if spec.lower <= lowest and highest <= spec.upper:
        return values
    return _within_range(frame, spec, values.copy(), examined)


def _within_range(
    frame: pd.DataFrame, spec: MetricSpec, values: npt.NDArray[np.float32], examined: Examined
) -> npt.NDArray[np.float32]:
    """Values beyond a limit: the limit if only rounding took them there, else not measured."""
    beyond = (values < spec.lower) | (values > spec.upper)
    rounded = beyond & (values >= spec.lower - spec.rounding) & (values <= spec.upper + spec.rounding)
    outside = f"outside the range {spec.range_text} {spec.unit}"
    above = beyond & ~rounded & np.isfinite(values) & (values > spec.upper)
    below = beyond & ~rounded & np.isfinite(values) & (values < spec.lower)
    examined.counts[spec.name].above += int(above.sum())
    if rounded.any():
        examined.rounded.append(violation(frame, spec.name, rounded, "just beyond the range, by rounding", ""))
    for rows, message in ((np.isinf(values), "not a finite number"), (below | above, outside)):
        _fault(frame, spec, rows, message, examined)
    values[beyond & ~rounded] = np.nan
    limits: npt.NDArray[np.float32] = np.clip(values, np.float32(spec.lower), np.float32(spec.upper))
    return limits


def _fault(
    frame: pd.DataFrame, spec: MetricSpec, rows: npt.NDArray[np.bool_], message: str, examined: Examined
) -> None:
    if rows.any():
        remedy = f"give it in {spec.unit}, and null where not measured"
        examined.faults.append(violation(frame, spec.name, rows, message, remedy))
        examined.counts[spec.name].unusable += int(rows.sum())


def _numbers_of_text(column: pd.Series[Any]) -> tuple[pd.Series[Any], npt.NDArray[np.bool_], str]:
    """Numbers that were written as text, the rows that have none, and what is wrong with them."""
    labels = labels_of(column)
    if labels is None:
        unusable = column.notna().to_numpy()
        return pd.Series(np.nan, index=column.index), unusable, f"not numbers but {column.dtype}"
    parsed = pd.to_numeric(pd.Series(labels.values, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    unreadable = np.isnan(parsed) & np.array([text.strip().lower() != "nan" for text in labels.values], dtype=bool)
    values = np.append(parsed, np.nan)[labels.codes]
    return pd.Series(values, index=column.index), labels.rows_where(unreadable), "text in a metric column"


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
