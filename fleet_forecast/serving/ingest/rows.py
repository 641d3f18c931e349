"""Validation of rows that a protocol's decoder made: the same limits as for JSON records, value by value.

A value that is no measurement costs this value; a server or time that is not accepted costs the row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from fleet_forecast.contract.specs import METRIC_SPECS, METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.ingest.validation import NAME_RULE, SERVER_NAME, CheckedBatch, Rejection
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.sources.protocols.received import ReceivedSamples

_RANGES = [(spec.lower, spec.upper) for spec in METRIC_SPECS.values()]


@dataclass
class CheckedRows(CheckedBatch):
    """A checked batch of rows.

    received: what was checked. refused_servers: by name, with the reason. stored_samples, rejected_samples: samples
    behind the accepted and rejected values.
    """

    received: ReceivedSamples = field(default_factory=ReceivedSamples)
    refused_servers: dict[str, str] = field(default_factory=dict)
    stored_samples: int = 0
    rejected_samples: Counter[str] = field(default_factory=Counter)  # by the field at fault


def check_rows(
    received: ReceivedSamples, earliest_ms: int, latest_ms: int, refusal_of: Callable[[str], str | None]
) -> CheckedRows:
    """Check each row; the arguments are those of check_records."""
    batch = CheckedRows(received=received)
    servers: dict[str, str | None] = {}  # name -> why it is refused
    for number, (key, values) in enumerate(received.rows.items()):
        name, instant = key
        if name not in servers:
            servers[name] = refusal_of(name) if SERVER_NAME.fullmatch(name) else NAME_RULE
        if (reason := servers[name]) is not None:
            batch.refused_servers[name] = reason
            _reject(batch, Rejection(number, "server_name", name, reason), key, values)
        elif not earliest_ms <= instant <= latest_ms:
            _reject(batch, Rejection(number, "timestamp", instant, _time_reason(earliest_ms, latest_ms)), key, values)
        else:
            _accept(batch, number, key, values)
    for refused in received.refused:
        batch.rejected.append(Rejection(len(received.rows), refused.field, refused.value, refused.reason))
        batch.rejected_samples[refused.field] += refused.samples
    return batch


def _accept(batch: CheckedRows, number: int, key: tuple[str, int], values: list[float | None]) -> None:
    """Add a row without its values that are out of range."""
    behind = batch.received.samples_behind
    measured = 0
    for index, value in enumerate(values):
        if value is None:
            continue
        lower, upper = _RANGES[index]
        if lower <= value <= upper:
            measured += behind(key, index)
            continue
        metric = METRICS[index]
        reason = f"{metric} of {key[0]} is a number from {METRIC_SPECS[metric].range_text}"
        batch.rejected.append(Rejection(number, metric, value, reason))
        batch.rejected_samples[metric] += behind(key, index)
        values[index] = None
    if measured:
        batch.samples.append(Sample(key[0], key[1], None, None, tuple(values)))
        batch.stored_samples += measured


def _reject(batch: CheckedRows, rejection: Rejection, key: tuple[str, int], values: list[float | None]) -> None:
    batch.rejected.append(rejection)
    behind = batch.received.samples_behind
    count = sum(behind(key, index) for index, value in enumerate(values) if value is not None)
    batch.rejected_samples[rejection.field] += count


def _time_reason(earliest_ms: int, latest_ms: int) -> str:
    return f"milliseconds since 1970; accepted are {iso(earliest_ms / 1000)} to {iso(latest_ms / 1000)}"
