"""Validation of rows that a protocol's decoder made: the same limits as for JSON records, value by value.

A value that is not a measurement is left out; a row whose server or time is not accepted is rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fleet_forecast.contract.labels import is_server_name
from fleet_forecast.contract.specs import METRIC_SPECS, SERVER_NAME_WORDS, MetricSpec
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.ingest.validation import (
    CheckedBatch,
    RefusalOf,
    RefusedServer,
    Rejection,
    TimeLimits,
    Unaccepted,
    rounded_limit,
    rounding_notice,
)
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.sources.protocols.received import ReceivedSamples

_Range = tuple[MetricSpec, float, float]  # of a metric, with its limits


@dataclass
class CheckedRows(CheckedBatch):
    """A checked batch of rows.

    received: what was checked. refused_servers: by name, with the reason. stored_samples, rejected_samples: samples
    behind the accepted values and the others. forwarded_samples: that another shard stored. rounded: values that count
    as the limit, by metric.
    """

    received: ReceivedSamples = field(default_factory=ReceivedSamples)
    refused_servers: dict[str, str] = field(default_factory=dict)
    stored_samples: int = 0
    rejected_samples: Counter[str] = field(default_factory=Counter)  # by the field at fault
    forwarded_samples: int = 0
    rounded: dict[str, list[float]] = field(default_factory=dict)

    @property
    def record_count(self) -> int:
        """Number of rows."""
        return len(self.received.rows)

    def settle(self, unaccepted: Mapping[int, Unaccepted], forwarded: Collection[int] = ()) -> None:
        """Take out rows, with the samples behind their values."""
        counts = {place: self._behind(place) for place in (*unaccepted, *forwarded)}
        for place, why in unaccepted.items():
            self.rejected_samples[why.field] += counts[place]
        self.forwarded_samples += sum(counts[place] for place in forwarded)
        self.stored_samples -= sum(counts.values())
        super().settle(unaccepted, forwarded)

    def _behind(self, place: int) -> int:
        sample = self.samples[place]
        return _count_behind(self, (sample.server_name, sample.timestamp_ms), sample.values)

    @property
    def refusals(self) -> list[Rejection]:
        """The rejected rows and the values that were left out, in the order of the rows."""
        return sorted([*self.rejected, *self.left_out], key=lambda each: each[0])


def check_rows(received: ReceivedSamples, limits: TimeLimits, refusal_of: RefusalOf) -> CheckedRows:
    """Check each row; the arguments are those of check_records."""
    batch = CheckedRows(received=received)
    servers: dict[str, RefusedServer | None] = {}
    ranges = [(spec, spec.lower, spec.upper) for spec in METRIC_SPECS.values()]
    for number, (key, values) in enumerate(received.rows.items()):
        name, instant = key
        if name not in servers:
            is_name = is_server_name(name)
            servers[name] = refusal_of(name) if is_name else RefusedServer(f"a name is {SERVER_NAME_WORDS}")
        if (refusal := servers[name]) is not None:
            batch.refused_servers[name] = refusal.reason
            _reject(batch, Rejection(number, refusal.field, name, refusal.reason), key, values)
        elif not limits.earliest_ms <= instant <= limits.latest_ms:
            _reject(batch, Rejection(number, "timestamp", instant, _time_reason(limits)), key, values)
        else:
            _accept(batch, ranges, number, key)
    for refused in received.refused:
        batch.rejected.append(Rejection(len(received.rows), refused.field, refused.value, refused.reason))
        batch.rejected_samples[refused.field] += refused.samples
    batch.notices += [rounding_notice(metric, values) for metric, values in batch.rounded.items()]
    return batch


def _accept(batch: CheckedRows, ranges: Sequence[_Range], number: int, key: tuple[str, int]) -> None:
    """Add a row without its values that are out of range; reject it if it has no others."""
    behind, values = batch.received.samples_behind, batch.received.rows[key]
    measured, bad = 0, []
    for index, value in enumerate(values):
        if value is None:
            continue
        spec, lower, upper = ranges[index]
        if not lower <= value <= upper:
            values[index] = _limit_or_none(batch, spec, value)
        if values[index] is not None:
            measured += behind(key, index)
            continue
        reason = f"{spec.name} of {key[0]} is a number from {spec.range_text}"
        bad.append(Rejection(number, spec.name, value, reason))
        batch.rejected_samples[spec.name] += behind(key, index)
    if measured:
        batch.samples.append(Sample(key[0], key[1], None, None, tuple(values)))
        batch.stored_samples += measured
        batch.left_out += bad
    else:
        batch.rejected += bad[:1]


def _limit_or_none(batch: CheckedRows, spec: MetricSpec, value: float) -> float | None:
    limit = rounded_limit(spec, value)
    if limit is not None:
        batch.rounded.setdefault(spec.name, []).append(value)
    return limit


def _reject(batch: CheckedRows, rejection: Rejection, key: tuple[str, int], values: list[float | None]) -> None:
    batch.rejected.append(rejection)
    batch.rejected_samples[rejection.field] += _count_behind(batch, key, values)


def _count_behind(batch: CheckedRows, key: tuple[str, int], values: Sequence[float | None]) -> int:
    """Number of samples behind the values of a row."""
    behind = batch.received.samples_behind
    return sum(behind(key, index) for index, value in enumerate(values) if value is not None)


def _time_reason(limits: TimeLimits) -> str:
    earliest, latest = iso(limits.earliest_ms / 1000), iso(limits.latest_ms / 1000)
    return f"milliseconds since 1970; accepted are {earliest} to {latest}"
