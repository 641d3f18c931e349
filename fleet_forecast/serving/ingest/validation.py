"""Validation of received records: each one is accepted, or rejected with its index, field, value and reason.

`check_records` is the only place where samples from outside are checked; later code trusts its result. It is a plain
loop over parsed JSON: records are checked one by one, and 20,000 of them a second must leave most of a core free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from fleet_forecast.contract.specs import METRIC_SPECS, SERVER_NAME_PATTERN, STATES, MetricSpec
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.storage.samples import Sample
from server_profiles import ServerProfile

SERVER_NAME = re.compile(SERVER_NAME_PATTERN)
NAME_RULE = "a name is 1 to 253 characters of A-Z a-z 0-9 . _ : -, no dot first"
PROFILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # one of the seven, or another that a model was trained on
MAX_STRUCTURES_PER_RECORD = 4  # objects and lists in a body; a record is one, unknown fields may hold further ones
SHOWN_CHARACTERS = 100  # of a rejected value and of an unknown field's name
EARLIEST_MS = 0  # 1970; a history sent for one forecast may be of any age
LATEST_MS = 4_102_444_800_000  # the year 2100
_LABEL_FIELDS = frozenset({"timestamp", "server_name", "profile", "state", "incident"})
_STATES = frozenset(STATES)


class BodyError(ValueError):
    """A request's body cannot be used as a whole; the message names the reason and the remedy."""


class Rejection(NamedTuple):
    """Why one record of a batch was not accepted."""

    index: int  # type: ignore[assignment] # the API's name; tuple.index is not used
    field: str
    value: Any  # as received, shortened
    reason: str


@dataclass
class CheckedBatch:
    """The result of checking a batch of records.

    samples: the accepted records. rejected: the others. ignored_fields: fields that the contract does not define.
    notices: what was not used of accepted records.
    """

    samples: list[Sample] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    ignored_fields: set[str] = field(default_factory=set)
    notices: list[str] = field(default_factory=list)


class _Rejected(Exception):  # noqa: N818 - control flow within this module, not an error of the program
    def __init__(self, field_name: str, value: Any, reason: str) -> None:
        self.field_name, self.value, self.reason = field_name, value, reason


def parse_records(body: bytes, max_records: int) -> list[Any]:
    """The list under "records" of a JSON body.

    Raises BodyError if there is none or if it is too long. NaN, Infinity, numbers beyond a double and lone surrogates
    are not JSON and are refused by the parser.
    """
    structures = body.count(b"{") + body.count(b"[")
    if structures > MAX_STRUCTURES_PER_RECORD * (max_records + 1):  # parsing them all would delay every other request
        raise BodyError(f"{structures} objects and lists in one request; send at most {max_records} records")
    document = parse_json(body)
    records = document.get("records") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise BodyError('the body has no list "records"; send {"records": [{"timestamp": ..., "server_name": ...}]}')
    if len(records) > max_records:
        raise BodyError(f"{len(records)} records in one request; send at most {max_records}")
    return records


def parse_json(body: bytes) -> Any:
    """The JSON document in a body. Raises BodyError with the position of the first error."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise BodyError(
            f"the body is not JSON: {problem}; NaN and Infinity are not JSON, null means not measured"
        ) from None


def check_history(body: bytes, max_records: int) -> CheckedBatch:
    """Check the records of a history that is forecast and not stored; their times may be any. Raises BodyError."""
    return check_records(parse_records(body, max_records), EARLIEST_MS, LATEST_MS)


def check_records(
    records: list[Any],
    earliest_ms: int,
    latest_ms: int,
    refusal_of: Callable[[str], str | None] = lambda _name: None,
    specs: Mapping[str, MetricSpec] = METRIC_SPECS,
) -> CheckedBatch:
    """Check each record against the data contract.

    earliest_ms, latest_ms: bounds of the timestamps, inclusive.
    refusal_of: returns why samples of a server are refused, None if they are not.
    specs: the metrics of a record; samples hold their values in this order.
    """
    batch = CheckedBatch()
    check = _RecordCheck(earliest_ms, latest_ms, specs)
    known_fields = _LABEL_FIELDS | specs.keys()
    for index, record in enumerate(records):
        try:
            sample = check.sample(record)
            reason = refusal_of(sample.server_name)
            if reason is not None:
                raise _Rejected("server_name", sample.server_name, reason)
        except _Rejected as rejected:
            value = _shortened(rejected.value)
            batch.rejected.append(Rejection(index, rejected.field_name, value, rejected.reason))
        else:
            batch.samples.append(sample)
            if not record.keys() <= known_fields:
                batch.ignored_fields.update(key[:SHOWN_CHARACTERS] for key in record.keys() - known_fields)
    return batch


class _RecordCheck:
    """The checks of one batch."""

    def __init__(self, earliest_ms: int, latest_ms: int, specs: Mapping[str, MetricSpec]) -> None:
        self._earliest_ms, self._latest_ms, self._specs = earliest_ms, latest_ms, specs
        self._ranges = [(name, spec.lower, spec.upper) for name, spec in specs.items()]
        self._instants: dict[str, int] = {}  # text -> milliseconds; the records of a batch mostly share few timestamps

    def sample(self, record: Any) -> Sample:
        if type(record) is not dict:
            raise _Rejected("record", record, "a record is a JSON object")
        name = record.get("server_name")
        if type(name) is not str or not SERVER_NAME.fullmatch(name):
            raise _Rejected("server_name", name, NAME_RULE)
        text = record.get("timestamp")
        instant = self._instants.get(text) if type(text) is str else None
        if instant is None:
            instant = self._milliseconds(text)
        return Sample(name, instant, _profile(record), _state(record), self._measurements(record))

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
                limits = self._specs[metric].range_text
                raise _Rejected(metric, value, f"{metric} is a number from {limits}, or null where it was not measured")
            values.append(value)
        if not named:
            raise _Rejected("metrics", None, f"a record has at least one metric of {', '.join(self._specs)}")
        return tuple(values)

    def _milliseconds(self, text: Any) -> int:
        if type(text) is not str:
            raise _Rejected("timestamp", text, "a timestamp is text such as 2026-11-23T10:00:00Z")
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise _Rejected("timestamp", text, "not a date and time; write 2026-11-23T10:00:00Z") from None
        if moment.tzinfo is None:
            raise _Rejected("timestamp", text, "no time zone; write UTC with a final Z, as in 2026-11-23T10:00:00Z")
        instant = math.floor(moment.timestamp() * 1000 + 0.5)
        if instant > self._latest_ms:
            raise _Rejected("timestamp", text, f"too far ahead; the latest accepted is {iso(self._latest_ms / 1000)}")
        if instant < self._earliest_ms:
            raise _Rejected("timestamp", text, f"too old; the earliest accepted is {iso(self._earliest_ms / 1000)}")
        self._instants[text] = instant
        return instant


def _profile(record: dict[str, Any]) -> str | None:
    value = record.get("profile")
    if value is None or (type(value) is str and PROFILE_NAME.fullmatch(value)):
        return value
    raise _Rejected(
        "profile", value, f"profile is one of {', '.join(ServerProfile)}, another of A-Z a-z 0-9 . _ -, or left out"
    )


def _state(record: dict[str, Any]) -> str | None:
    value = record.get("state")
    if value is None or (type(value) is str and value in _STATES):
        return value
    raise _Rejected("state", value, f"state is one of {', '.join(sorted(_STATES))}, or left out")


def _shortened(value: Any) -> Any:
    """A rejected value as the answer shows it: short, and never a structure."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "…"
    return value if value is None or isinstance(value, int | float | bool) else f"({type(value).__name__})"
