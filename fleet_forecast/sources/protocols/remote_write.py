"""Prometheus remote write: a request of version 1.0 or 2.0 as rows of the contract.

The series are those of the recording rules (sources/recording_rules.py): one per metric and server, `fleet:<metric>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from typing import Any

from google.protobuf.message import DecodeError

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.sources.address import without_port
from fleet_forecast.sources.protocols.messages import V1, V2, EncodedWriteRequest, Label, TimeSeries, WriteRequestV2
from fleet_forecast.sources.protocols.one_sample import split_sample
from fleet_forecast.sources.protocols.received import MalformedBodyError, ReceivedSamples, RefusedSamples
from fleet_forecast.sources.recording_rules import series_name

NAME_LABEL = "__name__"
# Submessages and strings per allowed sample: a series has three for each of its labels. Two bytes are enough for one,
# and parsed it takes about 50.
STRUCTURES_PER_SAMPLE = 16
_TAGS = {V1: (0x0A, 0x12), V2: (0x0A, 0x12, 0x22, 0x2A)}  # of the submessages and strings that are read

MAX_REMEMBERED_BYTES = 32 * 1024 * 1024  # of labels
_BYTES_PER_SERIES = 400  # of Python's objects for the labels of a series, beside the labels

Sample = tuple[float, int]  # value, ms since 1970
Series = tuple[str, str, Sequence[Sample]]  # name, server, samples


class WriteDecoder:
    """Decodes requests; caches the parsed labels of each series, because Prometheus sends them with each sample."""

    def __init__(self, server_label: str, max_samples: int) -> None:
        self._server_label, self._max_samples = server_label, max_samples
        self._remembered: dict[bytes, tuple[str, str]] = {}  # the encoded labels of a series -> name, server
        self._remembered_bytes = 0
        self._metric_index = {series_name(metric): index for index, metric in enumerate(METRICS)}

    def decode(self, content: bytes, message: str) -> ReceivedSamples:
        """The samples of a decompressed request; `message` is V1 or V2.

        Raises MalformedBodyError if it cannot be parsed or has too many samples.
        """
        _check_structures(content, message, self._max_samples)
        try:
            if message == V2:
                return self._samples(self._series_v2(WriteRequestV2.FromString(content)))
            return self._samples(self._series_v1(EncodedWriteRequest.FromString(content)))
        except DecodeError as problem:
            raise MalformedBodyError(f"the body is not a {message}: {problem}") from None

    def _series_v1(self, request: Any) -> Iterator[Series]:
        """The series of a request. One that ends with its only sample, and whose labels are known, is not parsed."""
        remembered = self._remembered
        for encoded in request.timeseries:
            split = split_sample(encoded)
            known = None if split is None else remembered.get(split[0])
            if split is not None and known is not None:
                yield *known, (split[1:],)
                continue
            series = TimeSeries.FromString(encoded)
            name, server = self._read_labels(series)
            yield name, server, _values_of(series.samples)

    def _read_labels(self, series: Any) -> tuple[str, str]:
        """Name and server of a parsed series, to be remembered; all are forgotten when they take too much memory."""
        found = {label.name: label.value for label in map(Label.FromString, series.labels)}
        entry = found.get(NAME_LABEL, ""), without_port(found.get(self._server_label, ""))
        labels = TimeSeries(labels=series.labels).SerializeToString()
        if labels not in self._remembered:
            self._remembered_bytes += len(labels) + _BYTES_PER_SERIES
            if self._remembered_bytes > MAX_REMEMBERED_BYTES:
                self._remembered.clear()
                self._remembered_bytes = 0
            self._remembered[labels] = entry
        return entry

    def _series_v2(self, request: Any) -> Iterator[Series]:
        symbols = list(request.symbols)
        for series in request.timeseries:
            name = server = ""
            refs = iter(series.labels_refs)
            try:
                for ref in refs:
                    label_name, value = symbols[ref], symbols[next(refs)]
                    if label_name == NAME_LABEL:
                        name = value
                    elif label_name == self._server_label:
                        server = without_port(value)
            except (IndexError, StopIteration):
                reason = "labels_refs are pairs of positions in symbols"
                raise MalformedBodyError(f"a series names labels that the request does not have: {reason}") from None
            yield name, server, _values_of(series.samples)

    def _samples(self, all_series: Iterable[Series]) -> ReceivedSamples:
        found, count = ReceivedSamples(), 0
        for name, server, samples in all_series:
            count += len(samples) or 1  # a series without samples takes time too
            if count > self._max_samples:
                reason = f"too many samples in one request; send at most {self._max_samples}"
                raise MalformedBodyError(reason)
            index = self._metric_index.get(name)
            if index is None:
                found.left_out[name] += len(samples)
            elif not server:
                reason = f"the series has no label {self._server_label}; keep it in the rule, or set server_label"
                found.refused.append(RefusedSamples("server_name", name, reason, len(samples)))
            else:
                _add(found, server, index, samples)
        return found


def _check_structures(content: bytes, message: str, max_samples: int) -> None:
    """Refuse a body that would take far more memory parsed, by the number of bytes that can be a tag."""
    most = STRUCTURES_PER_SAMPLE * max_samples
    if len(content) <= 2 * most:
        return
    tags = bytes(tag | bit for tag in _TAGS[message] for bit in (0, 0x80))  # 0x80: a tag in more bytes than needed
    if len(content) - len(content.translate(None, tags)) > most:
        raise MalformedBodyError(f"far too many series, labels or samples; send at most {max_samples} samples")


def _values_of(samples: Any) -> list[Sample]:
    return [(sample.value, sample.timestamp) for sample in samples]


def _add(found: ReceivedSamples, server: str, index: int, samples: Sequence[Sample]) -> None:
    """Add the samples of one series to the rows."""
    for value, timestamp in samples:
        if not isfinite(value):
            found.not_measured += 1
            continue
        row = found.row(server, timestamp)
        before = row[index]
        if before is None or before == value:
            row[index] = value
        else:
            reason = f"a second value besides {before}, of {server} at one time; aggregate the series in the rule"
            found.refused.append(RefusedSamples(METRICS[index], value, reason, 1))
