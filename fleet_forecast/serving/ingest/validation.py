"""Received records: each one is accepted, or rejected by its index, field, value and reason.

`check_records` is the one place where samples from outside are judged; what it returns is trusted by everything after
it. It is a plain loop over parsed JSON, because the records of a batch must be judged one by one and 20,000 of them a
second must leave most of a core free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from fleet_forecast.contract.specs import METRIC_SPECS, METRICS, SERVER_NAME_PATTERN, STATES
from fleet_forecast.serving.storage.samples import Sample
from server_profiles import ServerProfile

SERVER_NAME = re.compile(SERVER_NAME_PATTERN)
_KNOWN_FIELDS = frozenset({"timestamp", "server_name", "profile", "state", "incident", *METRICS})
PROFILE_NAME = r"[A-Za-z0-9._-]{1,64}"  # of the seven, or of another that a model may know
_STATES = frozenset(str(state) for state in STATES)


_BOUNDS = tuple((name, spec.lower, spec.upper) for name, spec in METRIC_SPECS.items())


class BodyError(ValueError):
    """A request's body as a whole cannot be used; the message says why."""


class Rejection(NamedTuple):
    """Why one record of a batch was not accepted."""

    index: int  # type: ignore[assignment] # in the API's words; tuple.index is not used
    field: str
    value: Any  # as received, shortened
    reason: str


@dataclass
class CheckedBatch:
    """A batch after its records were judged; ignored_fields are those the contract does not know."""

    samples: list[Sample] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    ignored_fields: set[str] = field(default_factory=set)


class _Rejected(Exception):  # noqa: N818 - control flow within this module, not an error of the program
    def __init__(self, field_name: str, value: Any, reason: str) -> None:
        self.field_name, self.value, self.reason = field_name, value, reason


def parse_records(body: bytes, max_records: int) -> list[Any]:
    """The list under "records" of a JSON body. Raises BodyError.

    NaN, Infinity, numbers beyond a double and lone surrogates are no JSON and are refused by the parser.
    """
    document = parse_json(body)
    records = document.get("records") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise BodyError('the body has no list "records"; send {"records": [{"timestamp": ..., "server_name": ...}]}')
    if len(records) > max_records:
        raise BodyError(f"{len(records)} records in one request; send at most {max_records}")
    return records


def parse_json(body: bytes) -> Any:
    """The JSON document in a body. Raises BodyError saying where it ends to be one."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as problem:
        raise BodyError(
            f"the body is not JSON: {problem}; NaN and Infinity are not JSON, null says not measured"
        ) from None


def check_records(
    records: list[Any], earliest_ms: int, latest_ms: int, may_add: Callable[[str], bool] = lambda _name: True
) -> CheckedBatch:
    """Judge each record by the data contract.

    earliest_ms, latest_ms: bounds of the timestamps, inclusive.
    may_add: says whether a server of this name is known or may still be added.
    """
    batch = CheckedBatch()
    instants: dict[str, int] = {}  # text -> milliseconds; the records of a batch mostly share few timestamps
    for index, record in enumerate(records):
        try:
            sample = _checked(record, earliest_ms, latest_ms, instants)
            if not may_add(sample.server_name):
                reason = "the number of servers is at its limit; raise max_servers or let old servers expire"
                raise _Rejected("server_name", sample.server_name, reason)
        except _Rejected as rejected:
            value = _shortened(rejected.value)
            batch.rejected.append(Rejection(index, rejected.field_name, value, rejected.reason))
        else:
            batch.samples.append(sample)
            if not record.keys() <= _KNOWN_FIELDS:
                batch.ignored_fields.update(key[:100] for key in record.keys() - _KNOWN_FIELDS)
    return batch


def _checked(record: Any, earliest_ms: int, latest_ms: int, instants: dict[str, int]) -> Sample:
    if type(record) is not dict:
        raise _Rejected("record", record, "a record is a JSON object")
    name = record.get("server_name")
    if type(name) is not str or not SERVER_NAME.fullmatch(name):
        raise _Rejected("server_name", name, "a name is 1 to 253 characters of A-Z a-z 0-9 . _ : -, no dot first")
    text = record.get("timestamp")
    instant = instants.get(text) if type(text) is str else None
    if instant is None:
        instant = instants.setdefault(text, _milliseconds(text, earliest_ms, latest_ms))  # type: ignore[arg-type]
    return Sample(
        name,
        instant,
        _profile(record),
        _state(record),
        _measurements(record),
    )


def _measurements(record: dict[str, Any]) -> tuple[float | None, ...]:
    values: list[float | None] = []
    named = False
    for metric, lower, upper in _BOUNDS:
        value = record.get(metric)
        if value is None:
            named = named or metric in record
        elif (type(value) is float or type(value) is int) and lower <= value <= upper:
            named = True
        else:
            limits = METRIC_SPECS[metric].range_text
            raise _Rejected(metric, value, f"{metric} is a number from {limits}, or null where it was not measured")
        values.append(value)
    if not named:
        raise _Rejected("metrics", None, f"a record has at least one metric of {', '.join(METRICS)}")
    return tuple(values)


def _profile(record: dict[str, Any]) -> str | None:
    value = record.get("profile")
    if value is None or (type(value) is str and re.fullmatch(PROFILE_NAME, value)):
        return value
    raise _Rejected(
        "profile", value, f"profile is one of {', '.join(ServerProfile)}, another of A-Z a-z 0-9 . _ -, or left out"
    )


def _state(record: dict[str, Any]) -> str | None:
    value = record.get("state")
    if value is None or (type(value) is str and value in _STATES):
        return value
    raise _Rejected("state", value, f"state is one of {', '.join(sorted(_STATES))}, or left out")


def _milliseconds(text: Any, earliest_ms: int, latest_ms: int) -> int:
    if type(text) is not str:
        raise _Rejected("timestamp", text, "a timestamp is text such as 2026-11-23T10:00:00Z")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _Rejected("timestamp", text, "not a date and time; write 2026-11-23T10:00:00Z") from None
    if moment.tzinfo is None:
        raise _Rejected("timestamp", text, "no time zone; write UTC with a final Z, as in 2026-11-23T10:00:00Z")
    instant = math.floor(moment.timestamp() * 1000 + 0.5)
    if instant > latest_ms:
        raise _Rejected("timestamp", text, f"too far ahead; the latest accepted is {_iso(latest_ms)}")
    if instant < earliest_ms:
        raise _Rejected("timestamp", text, f"too old; the earliest accepted is {_iso(earliest_ms)}")
    return instant


def _iso(instant_ms: int) -> str:
    return datetime.fromtimestamp(instant_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _shortened(value: Any) -> Any:
    """The value for the answer: short, and never a structure."""
    if isinstance(value, str):
        return value if len(value) <= 100 else value[:100] + "…"
    return value if value is None or isinstance(value, int | float | bool) else f"({type(value).__name__})"
