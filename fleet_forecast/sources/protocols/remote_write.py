"""Prometheus remote write: a request of version 1.0 or 2.0 as rows of the contract.

The series are those of the recording rules (sources/recording_rules.py): one per metric and server, `fleet:<metric>`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.sources.protocols.messages import V1, V2, WriteRequest, WriteRequestV2
from fleet_forecast.sources.protocols.received import MalformedBodyError, ReceivedSamples, RefusedSamples
from fleet_forecast.sources.protocols.unpacking import unpack_snappy
from fleet_forecast.sources.recording_rules import series_name
from fleet_forecast.sources.server_label import without_port

NAME_LABEL = "__name__"
# Submessages and strings per allowed sample: a series has three for each of its labels. Two bytes are enough for one,
# and parsed it takes about 50.
STRUCTURES_PER_SAMPLE = 16
_TAGS = {V1: (0x0A, 0x12), V2: (0x0A, 0x12, 0x22, 0x2A)}  # of the submessages and strings that are read
_METRIC_INDEX = {series_name(metric): index for index, metric in enumerate(METRICS)}

Series = tuple[str, str, Any]  # name, value of the server label, samples


class WriteLimits(NamedTuple):
    """Limits of one request: bytes when it is unpacked, and samples."""

    max_bytes: int
    max_samples: int


def decode_write_request(body: bytes, message: str, server_label: str, limits: WriteLimits) -> ReceivedSamples:
    """The samples of a snappy-compressed request; `message` is V1 or V2.

    Raises MalformedBodyError if it cannot be parsed or exceeds the limits.
    """
    content = unpack_snappy(body, limits.max_bytes)
    _check_structures(content, message, limits.max_samples)
    try:
        request = (WriteRequestV2 if message == V2 else WriteRequest).FromString(content)
    except DecodeError as problem:
        raise MalformedBodyError(f"the body is no {message}: {problem}") from None
    series = _series_v2(request, server_label) if message == V2 else _series_v1(request, server_label)
    return _samples(series, server_label, limits.max_samples)


def _check_structures(content: bytes, message: str, max_samples: int) -> None:
    """Refuse a body that would take far more memory parsed, by the number of bytes that can be a tag."""
    most = STRUCTURES_PER_SAMPLE * max_samples
    if len(content) <= 2 * most:
        return
    tags = bytes(tag | bit for tag in _TAGS[message] for bit in (0, 0x80))  # 0x80: a tag in more bytes than needed
    if len(content) - len(content.translate(None, tags)) > most:
        raise MalformedBodyError(f"far too many series, labels or samples; send at most {max_samples} samples")


def _series_v1(request: Any, server_label: str) -> Iterator[Series]:
    for series in request.timeseries:
        name = server = ""
        for label in series.labels:
            label_name = label.name
            if label_name == NAME_LABEL:
                name = label.value
            elif label_name == server_label:
                server = label.value
        yield name, server, series.samples


def _series_v2(request: Any, server_label: str) -> Iterator[Series]:
    symbols = list(request.symbols)
    for series in request.timeseries:
        name = server = ""
        refs = iter(series.labels_refs)
        try:
            for ref in refs:
                label_name, value = symbols[ref], symbols[next(refs)]
                if label_name == NAME_LABEL:
                    name = value
                elif label_name == server_label:
                    server = value
        except (IndexError, StopIteration):
            reason = "labels_refs are pairs of positions in symbols"
            raise MalformedBodyError(f"a series names labels that the request does not have: {reason}") from None
        yield name, server, series.samples


def _samples(all_series: Iterable[Series], server_label: str, max_samples: int) -> ReceivedSamples:
    found, count = ReceivedSamples(), 0
    for name, server, samples in all_series:
        count += len(samples)
        if count > max_samples:
            raise MalformedBodyError(f"too many samples in one request; send at most {max_samples}")
        index = _METRIC_INDEX.get(name)
        if index is None:
            found.left_out[name] += len(samples)
        elif not server:
            reason = f"the series has no label {server_label}; keep it in the rule, or set server_label"
            found.refused.append(RefusedSamples("server_name", name, reason, len(samples)))
        else:
            _add(found, without_port(server), index, samples)
    return found


def _add(found: ReceivedSamples, server: str, index: int, samples: Any) -> None:
    """Add the samples of one series to the rows."""
    for sample in samples:
        value = sample.value
        if not math.isfinite(value):
            found.not_measured += 1
            continue
        row = found.row(server, sample.timestamp)
        before = row[index]
        if before is not None and before != value:
            reason = f"a second value, beside {before}, of {server} at one time; aggregate the series in the rule"
            found.refused.append(RefusedSamples(METRICS[index], value, reason, 1))
        else:
            row[index] = value
