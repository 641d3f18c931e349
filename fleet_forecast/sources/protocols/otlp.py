"""OTLP metrics: a request, as protobuf or JSON, as rows of the contract.

Source: https://opentelemetry.io/docs/specs/otlp/. `host.name` of the resource is the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from fleet_forecast.contract.definitions import METRIC_SPECS
from fleet_forecast.sources.protocols.counter_rates import CounterMemory, CounterRates
from fleet_forecast.sources.protocols.host_metrics import (
    HOST_METRICS,
    INSTEAD_OF,
    HostMetric,
    OwnMetric,
    add_host_metric,
    add_own_metric,
)
from fleet_forecast.sources.protocols.messages import Status
from fleet_forecast.sources.protocols.received import MalformedBodyError, ReceivedSamples, RefusedSamples

HOST_NAME = "host.name"
# A data point has four submessages and strings for each of its attributes. Two bytes are enough for one, and parsed it
# takes about 60.
STRUCTURES_PER_POINT = 24
# Objects, lists and commas: JSON is read far more slowly than protobuf. A data point has about 15 of them.
JSON_STRUCTURES = 120_000
_TAGS = bytes(number << 3 | 2 | bit for number in range(1, 14) for bit in (0, 0x80))
_NUMBERS = frozenset({"gauge", "sum"})


class OtlpDecoder:
    """Decodes requests; keeps the cumulative counters of the servers between them."""

    def __init__(self, memory: CounterMemory, max_points: int) -> None:
        self.memory, self._max_points = memory, max_points
        self._own = {
            spec.otlp: OwnMetric(index, spec.kind == "rate")
            for index, spec in enumerate(METRIC_SPECS.values())
            if spec.otlp is not None
        }

    def decode(self, body: bytes, is_json: bool) -> ReceivedSamples:
        """The samples of a decompressed request. Raises MalformedBodyError if it cannot be read or is too large."""
        request = _from_json(body) if is_json else _from_protobuf(body, self._max_points)
        _check_count(request, self._max_points)
        rates = CounterRates(self.memory)
        found = ReceivedSamples(on_stored=lambda refused: self.memory.remember(rates, refused))
        for resource in request.resource_metrics:
            self._add_resource(resource, found, rates)
        return found

    def _add_resource(self, resource: Any, found: ReceivedSamples, rates: CounterRates) -> None:
        """Add the metrics of one resource."""
        server = _host_name(resource)
        metrics = [metric for scope in resource.scope_metrics for metric in scope.metrics]
        names = {metric.name for metric in metrics}
        for name, data, is_number in _data(metrics):
            points = len(data.data_points)
            if (name not in HOST_METRICS and name not in self._own) or not is_number:
                found.left_out[name] += points
            elif INSTEAD_OF.get(name) in names:
                found.notices["other_metric_used"] += points
            elif server and name in self._own:
                add_own_metric(HostMetric(server, name, data), self._own[name], found, rates)
            elif server:
                add_host_metric(HostMetric(server, name, data), found, rates)
            else:
                reason = f"the resource has no {HOST_NAME}; set it, as in OTEL_RESOURCE_ATTRIBUTES={HOST_NAME}=NAME"
                found.refused.append(RefusedSamples("server_name", name, reason, points))


def _check_count(request: Any, max_points: int) -> None:
    """Refuse a request with more resources, scopes and metrics, or more data points, than data points are allowed."""
    parts = points = 0
    for resource in request.resource_metrics:
        parts += 1 + len(resource.scope_metrics)
        for scope in resource.scope_metrics:
            parts += len(scope.metrics)
            if parts > max_points:
                raise MalformedBodyError(f"too many metrics in one request; send at most {max_points}")
            points += sum(len(data.data_points) for _, data, _ in _data(scope.metrics))
            if points > max_points:
                raise MalformedBodyError(f"too many data points in one request; send at most {max_points}")
        if parts > max_points:
            raise MalformedBodyError(f"too many resources in one request; send at most {max_points}")


def _from_protobuf(body: bytes, max_points: int) -> Any:
    most = STRUCTURES_PER_POINT * max_points
    if len(body) > 2 * most and len(body) - len(body.translate(None, _TAGS)) > most:
        raise MalformedBodyError(f"far too many metrics, points or attributes; send at most {max_points} data points")
    try:
        return ExportMetricsServiceRequest.FromString(body)
    except DecodeError as problem:
        raise MalformedBodyError(f"the body is not an ExportMetricsServiceRequest: {problem}") from None


def _from_json(body: bytes) -> Any:
    if sum(body.count(each) for each in (b"{", b"[", b",")) > JSON_STRUCTURES:
        raise MalformedBodyError("too many objects and values in JSON; send protobuf, or smaller batches")
    try:
        document = orjson.loads(body)
        if not isinstance(document, dict):
            raise MalformedBodyError("the body is not an ExportMetricsServiceRequest in JSON: it is not an object")
        return json_format.ParseDict(document, ExportMetricsServiceRequest(), ignore_unknown_fields=True)
    except (orjson.JSONDecodeError, json_format.ParseError) as problem:
        raise MalformedBodyError(f"the body is not an ExportMetricsServiceRequest in JSON: {problem}") from None


def _host_name(resource: Any) -> str:
    for attribute in resource.resource.attributes:
        if attribute.key == HOST_NAME:
            return str(attribute.value.string_value)
    return ""


def _data(metrics: Iterable[Any]) -> Iterator[tuple[str, Any, bool]]:
    """Name, data and whether it holds plain numbers, of the metrics that have data."""
    for metric in metrics:
        kind = metric.WhichOneof("data")
        if kind is not None:
            yield metric.name, getattr(metric, kind), kind in _NUMBERS


def response_body(rejected_points: int, message: str, is_json: bool) -> bytes:
    """The response to a request that was stored: empty, or with the number of rejected points and the reasons."""
    response = ExportMetricsServiceResponse()
    if rejected_points or message:
        response.partial_success.rejected_data_points = rejected_points
        response.partial_success.error_message = message
    return _body(response, is_json)


def error_body(message: str, is_json: bool) -> bytes:
    """The response to a request that was refused."""
    return _body(Status(message=message), is_json)


def _body(message: Any, is_json: bool) -> bytes:
    return json_format.MessageToJson(message, indent=None).encode() if is_json else message.SerializeToString()
