"""Small messages as protobuf classes, made from field numbers: no generated code.

Sources: https://prometheus.io/docs/specs/prw/remote_write_spec/ (prometheus.WriteRequest),
https://prometheus.io/docs/specs/prw/remote_write_spec_2_0/ (io.prometheus.write.v2.Request) and
https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto (google.rpc.Status, of OTLP's errors).
Fields that are not used (histograms, exemplars, metadata, details) are left out: the parser skips them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Kind

V1 = "prometheus.WriteRequest"
V1_SERIES = "prometheus.encoded.WriteRequest"  # V1 with each series as bytes
LABEL = "prometheus.Label"
V2 = "io.prometheus.write.v2.Request"
STATUS = "google.rpc.Status"


class _Field(NamedTuple):
    name: str
    number: int
    kind: int  # a type of FieldDescriptorProto
    repeated: bool = False
    message: str = ""  # of a field of kind TYPE_MESSAGE


_SAMPLE = (_Field("value", 1, Kind.TYPE_DOUBLE), _Field("timestamp", 2, Kind.TYPE_INT64))  # ms since 1970
_MESSAGES: dict[str, dict[str, tuple[_Field, ...]]] = {
    V1: {
        "Sample": _SAMPLE,
        "TimeSeries": (
            _Field("labels", 1, Kind.TYPE_BYTES, True),  # each is a Label, parsed only if it was not seen before
            _Field("samples", 2, Kind.TYPE_MESSAGE, True, "Sample"),
        ),
        "WriteRequest": (_Field("timeseries", 1, Kind.TYPE_MESSAGE, True, "TimeSeries"),),
    },
    V2: {
        "Sample": _SAMPLE,
        "TimeSeries": (
            _Field("labels_refs", 1, Kind.TYPE_UINT32, True),  # pairs of positions in symbols: name, value
            _Field("samples", 2, Kind.TYPE_MESSAGE, True, "Sample"),
        ),
        "Request": (
            _Field("symbols", 4, Kind.TYPE_STRING, True),
            _Field("timeseries", 5, Kind.TYPE_MESSAGE, True, "TimeSeries"),
        ),
    },
    V1_SERIES: {"WriteRequest": (_Field("timeseries", 1, Kind.TYPE_BYTES, True),)},
    LABEL: {"Label": (_Field("name", 1, Kind.TYPE_STRING), _Field("value", 2, Kind.TYPE_STRING))},
    STATUS: {"Status": (_Field("code", 1, Kind.TYPE_INT32), _Field("message", 2, Kind.TYPE_STRING))},
}


def _message_class(full_name: str) -> Any:
    """The class of a message with all messages in it."""
    package = full_name.rpartition(".")[0]
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for message_name, fields in _MESSAGES[full_name].items():
        message = file.message_type.add(name=message_name)
        for each in fields:
            label = Kind.LABEL_REPEATED if each.repeated else Kind.LABEL_OPTIONAL
            added = message.field.add(name=each.name, number=each.number, type=each.kind, label=label)
            if each.message:
                added.type_name = f".{package}.{each.message}"
    pool = descriptor_pool.DescriptorPool()  # of its own: other software may define the same names
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))


Label = _message_class(LABEL)
WriteRequest = _message_class(V1)
TimeSeries = WriteRequest.DESCRIPTOR.fields_by_name["timeseries"].message_type._concrete_class
EncodedWriteRequest = _message_class(V1_SERIES)
WriteRequestV2 = _message_class(V2)
Status = _message_class(STATUS)
