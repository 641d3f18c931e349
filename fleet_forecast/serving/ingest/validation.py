"""Validation of received records: each one is accepted, or rejected with its index, field, value and reason.

If a value of a metric cannot be used, only this cell is left out, not the record, as in files (contract/checks.py): it
counts as not measured and is listed. A record without any usable value is rejected.

`check_records` is the only place where samples from outside are checked; later code trusts its result. It is a plain
loop over parsed JSON: records are checked one by one, and 20,000 of them a second must leave most of a core free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from fleet_forecast.contract.checks import CellCounts, doubt, refusal_of_column
from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.contract.labels import is_server_name, unknown_profiles_notice
from fleet_forecast.contract.specs import METRIC_SPECS, SERVER_NAME_WORDS, STATES, MetricSpec
from fleet_forecast.contract.times import UNITS, ZONE_FLAG, iso_text, number_unit
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.ingest.bodies import ReceivedBody, decompressed, parse_records
from fleet_forecast.serving.storage.samples import Sample

_USUAL_NAME = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,252}")  # is_server_name of these, several times as fast
PROFILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # one of the seven, or another that a model was trained on
SHOWN_CHARACTERS = 100  # of a rejected value and of an unknown field's name
_SHOWN_FIELDS = 10
EARLIEST_MS = 0  # 1970; a history sent for one forecast may be of any age
LATEST_MS = 4_102_444_800_000  # the year 2100
_LABEL_FIELDS = frozenset({"timestamp", "server_name", "profile", "state", "incident"})
_STATES = frozenset(STATES)


class Rejection(NamedTuple):
    """Why one record of a batch, or one cell of it, was not accepted."""

    index: int  # type: ignore[assignment] # the API's name; tuple.index is not used
    field: str
    value: Any  # as received, shortened
    reason: str


class RefusedServer(NamedTuple):
    """Why samples of a server are not accepted; field: what they are counted as."""

    reason: str
    field: str = "server_name"


class Unaccepted(NamedTuple):
    """Why a sample that passed the checks was not accepted after all."""

    field: str
    value: Any
    reason: str


RefusalOf = Callable[[str], RefusedServer | None]  # of a server's name; None: its samples are accepted


@dataclass
class CheckedBatch:
    """The result of checking a batch of records.

    samples: the accepted records. rejected: the others. left_out: cells of accepted
    records that count as not measured. ignored_fields: fields that the contract does not define. notices: what else was
    not used, or not as it is.
    """

    samples: list[Sample] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    left_out: list[Rejection] = field(default_factory=list)
    ignored_fields: set[str] = field(default_factory=set)
    notices: list[str] = field(default_factory=list)
    forwarded: int = 0

    @property
    def accepted(self) -> int:
        """Number of records that are on disk, here or in another shard."""
        return len(self.samples) + self.forwarded

    @property
    def record_count(self) -> int:
        """Number of records that were checked."""
        return len(self.samples) + len(self.rejected)

    def accepted_indices(self) -> list[int]:
        """The index of each sample's record."""
        rejected = {rejection.index for rejection in self.rejected}
        return [index for index in range(self.record_count) if index not in rejected]

    def settle(self, unaccepted: Mapping[int, Unaccepted], forwarded: Collection[int] = ()) -> None:
        """Take out samples, by their place: those that were not accepted after all, and those of other shards."""
        indices = self.accepted_indices()
        self.rejected += [Rejection(indices[place], *why) for place, why in unaccepted.items()]
        gone = {*unaccepted, *forwarded}
        self.samples = [sample for place, sample in enumerate(self.samples) if place not in gone]
        self.forwarded += len(forwarded)


class _Rejected(Exception):  # noqa: N818 - control flow within this module, not an error of the program
    def __init__(self, field_name: str, value: Any, reason: str) -> None:
        self.field_name, self.value, self.reason = field_name, value, reason

    def rejection(self, index: int) -> Rejection:
        return Rejection(index, self.field_name, _shortened(self.value), self.reason)


class TimeLimits(NamedTuple):
    """Earliest and latest accepted time, inclusive; timezone: of times without a zone, None: they are rejected."""

    earliest_ms: int = EARLIEST_MS
    latest_ms: int = LATEST_MS
    timezone: str | None = None


def check_history(body: ReceivedBody, max_records: int, timezone: str | None = None) -> CheckedBatch:
    """Check the records of a history that is forecast and not stored; their times may be any. Raises BodyError."""
    return check_body(body, max_records, TimeLimits(timezone=timezone))


def check_body(
    body: ReceivedBody, max_records: int, limits: TimeLimits, refusal_of: RefusalOf = lambda _name: None
) -> CheckedBatch:
    """`check_records` of a body. Raises BodyError."""
    parsed = parse_records(decompressed(body), max_records)
    batch = check_records(parsed.records, limits, refusal_of)
    batch.ignored_fields.update(name[:SHOWN_CHARACTERS] for name in parsed.ignored_fields)
    return batch


def check_records(
    records: list[Any],
    limits: TimeLimits,
    refusal_of: RefusalOf = lambda _name: None,
    specs: Mapping[str, MetricSpec] = METRIC_SPECS,
) -> CheckedBatch:
    """Check each record against the data contract.

    refusal_of: returns why samples of a server are refused, None if they are not.
    specs: the metrics of a record; samples hold their values in this order.
    """
    batch = CheckedBatch()
    check = _RecordCheck(limits, specs)
    bad_cells = check.bad_cells
    known_fields = _LABEL_FIELDS | specs.keys()
    for index, record in enumerate(records):
        try:
            sample = check.sample(record)
            refusal = refusal_of(sample.server_name)
            if refusal is not None:
                raise _Rejected(refusal.field, sample.server_name, refusal.reason)
        except _Rejected as rejected:
            bad_cells.clear()
            batch.rejected.append(rejected.rejection(index))
        else:
            batch.samples.append(sample)
            if bad_cells:
                batch.left_out += [cell.rejection(index) for cell in bad_cells]
                bad_cells.clear()
            if not record.keys() <= known_fields:
                batch.ignored_fields.update(key[:SHOWN_CHARACTERS] for key in record.keys() - known_fields)
    _refuse_columns(batch, specs)
    batch.notices += check.notices()
    given = {sample.profile for sample in batch.samples if sample.profile is not None}
    if unknown := unknown_profiles_notice(given):
        batch.notices.append(unknown)
    return batch


def _refuse_columns(batch: CheckedBatch, specs: Mapping[str, MetricSpec]) -> None:
    """Leaves all cells of a metric out if most cells of the batch cannot be used; doubts are notices."""
    for place, (name, spec) in enumerate(specs.items()):
        bad = [cell for cell in (*batch.left_out, *batch.rejected) if cell.field == name]
        if not bad and not _may_be_fractions(batch.samples, spec, place):
            continue
        values = [sample.values[place] for sample in batch.samples]
        usable = [value for value in values if value is not None]
        sizes = [cell.value for cell in bad if type(cell.value) in (int, float)]
        above = sum(size > spec.upper for size in sizes)
        counts = CellCounts(len(usable) + len(bad), len(bad), above, max([*usable, *sizes], default=-math.inf))
        reason = refusal_of_column(spec, counts) if bad else None
        if reason is None:
            if likely := doubt(spec, counts):
                batch.notices.append(f"{name}: {likely}")
            continue
        batch.notices.append(f"{name}: {reason}")
        accepted = batch.accepted_indices()
        for at, value in enumerate(values):
            if value is not None:
                sample = batch.samples[at]
                others = (*sample.values[:place], None, *sample.values[place + 1 :])
                batch.samples[at] = sample._replace(values=others)
                batch.left_out.append(Rejection(accepted[at], name, value, reason))


def _may_be_fractions(samples: list[Sample], spec: MetricSpec, place: int) -> bool:
    """Whether the first value of a percentage is at most 1; looking at all of them would take a tenth of the check."""
    first = samples[0].values[place] if samples and spec.is_percent else None
    return first is not None and first <= 1.0


def rounded_limit(spec: MetricSpec, value: float) -> float | None:
    """The limit that only rounding took a value beyond; None for a value that is farther out."""
    if spec.lower - spec.rounding <= value <= spec.upper + spec.rounding:
        return spec.lower if value < spec.lower else spec.upper
    return None


def rounding_notice(metric: str, values: list[float]) -> str:
    """The notice on values that count as the limit."""
    count = f"{len(values)} value{'' if len(values) == 1 else 's'}"
    return f"{metric}: {count} just beyond the range, by rounding, such as {values[0]}; counted as the limit"


class _RecordCheck:
    """The checks of one batch; bad_cells: of the record that was checked last."""

    def __init__(self, limits: TimeLimits, specs: Mapping[str, MetricSpec]) -> None:
        self.bad_cells: list[_Rejected] = []
        self._limits, self._specs = limits, specs
        self._ranges = [(name, spec.lower, spec.upper) for name, spec in specs.items()]
        self._instants: dict[str, int] = {}  # text -> milliseconds; the records of a batch mostly share few timestamps
        self._units: set[str] = set()
        self._rounded: dict[str, list[float]] = {}

    def sample(self, record: Any) -> Sample:
        if type(record) is not dict:
            raise _Rejected("record", record, "a record is a JSON object")
        name = record.get("server_name")
        if type(name) is int:  # as in files
            name = str(name)
        if type(name) is not str or not (_USUAL_NAME.fullmatch(name) or is_server_name(name)):
            raise _Rejected("server_name", name, f"a name is text of {SERVER_NAME_WORDS}")
        text = record.get("timestamp")
        instant = self._instants.get(text) if type(text) is str else None
        if instant is None:
            instant = self._milliseconds(text)
        profile, values = _profile(record), self._measurements(record)
        return Sample(name, instant, profile, self._state(record), values)

    def notices(self) -> list[str]:
        units = [f"timestamp: numbers are read as {unit} since 1970" for unit in sorted(self._units)]
        return units + [rounding_notice(name, values) for name, values in self._rounded.items()]

    def _measurements(self, record: dict[str, Any]) -> tuple[float | None, ...]:
        values: list[float | None] = []
        named = False
        for metric, lower, upper in self._ranges:
            value = record.get(metric)
            if value is None:
                named = named or metric in record
            elif (type(value) is float or type(value) is int) and lower <= value <= upper:
                named = True
            else:
                value = self._limit_or_none(metric, value)
                named = named or value is not None
            values.append(value)
        if not named:
            if self.bad_cells:
                raise self.bad_cells[0]
            reason = f"a record has at least one metric of {', '.join(self._specs)}{self._unknown(record)}"
            raise _Rejected("metrics", None, reason)
        return tuple(values)

    def _unknown(self, record: dict[str, Any]) -> str:
        """The fields that may be misspelt metrics, as the end of a sentence."""
        names = [name[:SHOWN_CHARACTERS] for name in record if name not in _LABEL_FIELDS and name not in self._specs]
        return f"; unknown: {', '.join(names[:_SHOWN_FIELDS])}" if names else ""

    def _state(self, record: dict[str, Any]) -> str | None:
        """The state; None for another text, as in files, and a bad cell unless it is blank."""
        value = record.get("state")
        if value is None or (type(value) is str and value in _STATES):
            return value
        if type(value) is not str or value.strip():
            reason = f"state is one of {', '.join(sorted(_STATES))}, or left out"
            self.bad_cells.append(_Rejected("state", value, reason))
        return None

    def _limit_or_none(self, metric: str, value: Any) -> float | None:
        """The limit for a value that only rounding took beyond it, else None and a bad cell."""
        spec = self._specs[metric]
        if (type(value) is float or type(value) is int) and (limit := rounded_limit(spec, value)) is not None:
            self._rounded.setdefault(metric, []).append(value)
            return limit
        reason = f"{metric} is a number from {spec.range_text}, or null where it was not measured"
        self.bad_cells.append(_Rejected(metric, value, reason))
        return None

    def _milliseconds(self, value: Any) -> int:
        instant = self._milliseconds_of_text(value) if type(value) is str else self._milliseconds_of_number(value)
        if instant > self._limits.latest_ms:
            latest = iso(self._limits.latest_ms / 1000)
            raise _Rejected("timestamp", value, f"too far ahead; the latest accepted is {latest}")
        if instant < self._limits.earliest_ms:
            earliest = iso(self._limits.earliest_ms / 1000)
            raise _Rejected("timestamp", value, f"too old; the earliest accepted is {earliest}")
        if type(value) is str:
            self._instants[value] = instant
        return instant

    def _milliseconds_of_number(self, value: Any) -> int:
        place = number_unit(value) if type(value) is int or type(value) is float else None
        if place is None:
            reason = f"a timestamp is text such as 2026-11-23T10:00:00Z, or a number of {', '.join(UNITS)} since 1970"
            raise _Rejected("timestamp", value, reason)
        self._units.add(UNITS[place])
        return math.floor(value * 1000 + 0.5) if place == 0 else math.floor(value / 1000 ** (place - 1) + 0.5)

    def _milliseconds_of_text(self, text: str) -> int:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = _moment_of_other_form(text)
        if moment.tzinfo is None:
            if self._limits.timezone is None:
                remedy = f"write UTC with a final Z, as in 2026-11-23T10:00:00Z, or start with {ZONE_FLAG}"
                raise _Rejected("timestamp", text, f"no time zone; {remedy}")
            moment = moment.replace(tzinfo=ZoneInfo(self._limits.timezone))
            if moment.utcoffset() != moment.replace(fold=1).utcoffset():
                raise _Rejected("timestamp", text, f"the clock change of {self._limits.timezone} leaves it unclear")
        return math.floor(moment.timestamp() * 1000 + 0.5)


def _moment_of_other_form(text: str) -> datetime:
    try:
        return datetime.fromisoformat(iso_text(text))
    except ValueError:
        raise _Rejected("timestamp", text, "not a date and time; write 2026-11-23T10:00:00Z") from None


def _profile(record: dict[str, Any]) -> str | None:
    value = record.get("profile")
    if value is None or (type(value) is str and PROFILE_NAME.fullmatch(value)):
        return value
    raise _Rejected(
        "profile",
        value,
        f"profile is one of {', '.join(map(str, PROFILES))}, another name of A-Z a-z 0-9 . _ -, or left out",
    )


def _shortened(value: Any) -> Any:
    """A rejected value as the response shows it: short, and never a structure."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…"
    return value if value is None or isinstance(value, int | float | bool) else f"({type(value).__name__})"
