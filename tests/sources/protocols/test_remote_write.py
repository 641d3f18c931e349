"""Remote write: bytes of a request to rows of the contract."""

import math
import random
import struct

import pytest
from google.protobuf.message import DecodeError

from data_contract import METRICS
from fleet_forecast.sources.address import without_port
from fleet_forecast.sources.protocols.messages import V1, V2, Label, WriteRequest
from fleet_forecast.sources.protocols.received import MalformedBodyError
from fleet_forecast.sources.protocols.remote_write import WriteDecoder
from tests.reliability.mutations import mutated_bytes
from tests.sources.protocols.write_bodies import fleet_series, write_content

NOW = 1_800_000_000_000
MAX_SAMPLES = 1_000
STALE = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]  # Prometheus' stale marker, a NaN


def decode(content, message=V1, server_label="instance"):
    return WriteDecoder(server_label, MAX_SAMPLES).decode(content, message)


# Written by hand from the specification: field 1 (timeseries) of field 1 (labels) and field 2 (samples).
GOLDEN = bytes.fromhex(
    "0a39"
    "0a19 0a085f5f6e616d655f5f 120d666c6565743a6370755f706374"  # label __name__
    "0a0e 0a08696e7374616e6365 12026131"  # label instance
    "120c 090000000000803f40 10e807"
)


def test_the_bytes_of_the_specification_are_read():
    found = decode(GOLDEN)
    assert found.rows == {("a1", 1000): [31.5, None, None, None, None, None]}


@pytest.mark.parametrize("message", [V1, V2])
def test_series_become_rows_by_server_and_time(message):
    series = [
        fleet_series("cpu_pct", samples=[(NOW, 31.5), (NOW + 60_000, 32.0)], cluster="eu"),
        fleet_series("latency_ms", samples=[(NOW, 8.25)]),
        fleet_series("cpu_pct", "ppweb001", samples=[(NOW, 5.0)]),
    ]
    found = decode(write_content(series, message), message)
    none = [None] * len(METRICS)
    assert found.rows == {
        ("ppdb001", NOW): [31.5, *none[:-2], 8.25],
        ("ppdb001", NOW + 60_000): [32.0, *none[1:]],
        ("ppweb001", NOW): [5.0, *none[1:]],
    }
    assert (found.refused, found.not_measured, found.left_out) == ([], 0, {})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, STALE])
def test_a_stale_marker_is_not_measured_and_no_error(value):
    found = decode(write_content([fleet_series(samples=[(NOW, value), (NOW + 1, 1.0)])]))
    assert list(found.rows) == [("ppdb001", NOW + 1)]
    assert (found.not_measured, found.refused) == (1, [])


def test_series_of_other_names_are_counted():
    series = [({"__name__": "up", "instance": "a"}, [(NOW, 1.0)] * 3), ({"instance": "a"}, [(NOW, 1.0)])]
    assert decode(write_content(series)).left_out == {"up": 3, "": 1}


def test_the_server_label_can_be_chosen_and_a_series_without_it_is_refused():
    found = decode(write_content([fleet_series(samples=[(NOW, 1.0)], host="h1:1"), fleet_series(samples=[(NOW, 2.0)])]),
                   server_label="host")  # fmt: skip
    assert list(found.rows) == [("h1", NOW)]
    (refused,) = found.refused
    assert (refused.field, refused.samples) == ("server_name", 1)
    assert "no label host" in refused.reason


def test_a_second_value_for_a_server_metric_and_time_is_refused_and_an_equal_one_is_not():
    series = [fleet_series(samples=[(NOW, value)], replica=str(n)) for n, value in enumerate([1.0, 2.0, 1.0])]
    found = decode(write_content(series))
    assert found.rows["ppdb001", NOW][0] == 1.0
    assert [(refused.field, refused.value) for refused in found.refused] == [("cpu_pct", 2.0)]


@pytest.mark.parametrize(
    "body",
    [b"\x00\x01", b"\xff" * 10, GOLDEN[:-1], b"\x0a\x03\x0a\x01", b"\x0a\x06\x0a\x04\x0a\x02\xff\xfe"],
)
def test_a_body_that_cannot_be_read_is_malformed(body):
    with pytest.raises(MalformedBodyError):
        decode(body)


@pytest.mark.parametrize("refs", [[1], [1, 2, 99, 2], [1, 99]])
def test_labels_that_are_not_in_the_symbols_are_malformed(refs):
    from fleet_forecast.sources.protocols.messages import WriteRequestV2

    request = WriteRequestV2(symbols=["", "__name__", "up"])
    request.timeseries.add(labels_refs=refs)
    with pytest.raises(MalformedBodyError, match="labels_refs"):
        decode(request.SerializeToString(), V2)


def test_more_samples_than_allowed_are_malformed():
    with pytest.raises(MalformedBodyError, match="at most 1000"):
        decode(write_content([fleet_series(samples=[(n, 1.0) for n in range(1001)])]))
    with pytest.raises(MalformedBodyError, match="at most 1000"):
        decode(write_content([fleet_series()] * 1001))


def test_series_are_read_alike_when_their_labels_are_remembered_and_when_they_are_forgotten(monkeypatch):
    body = write_content([fleet_series(instance=f"a{n}", samples=[(NOW, n)]) for n in range(20)])
    decoder = WriteDecoder("instance", MAX_SAMPLES)
    first = decoder.decode(body, V1)
    assert decoder.decode(body, V1) == first
    assert len(decoder._remembered) == 20
    monkeypatch.setattr("fleet_forecast.sources.protocols.remote_write.MAX_REMEMBERED_BYTES", 2_000)
    decoder = WriteDecoder("instance", MAX_SAMPLES)
    assert decoder.decode(body, V1) == decoder.decode(body, V1) == first
    assert len(decoder._remembered) <= 4


def plain_decoder(content):
    """A decoder that parses every series and remembers nothing."""
    request, decoder = WriteRequest.FromString(content), WriteDecoder("instance", MAX_SAMPLES)
    parsed = (
        ({label.name: label.value for label in map(Label.FromString, series.labels)}, series.samples)
        for series in request.timeseries
    )
    return decoder._samples(
        (
            labels.get("__name__", ""),
            without_port(labels.get("instance", "")),
            [(sample.value, sample.timestamp) for sample in samples],
        )
        for labels, samples in parsed
    )


def outcome(decode, content):
    try:
        found = decode(content)
    except (MalformedBodyError, DecodeError):
        return "malformed"
    refused = [(each.field, str(each.value), each.samples) for each in found.refused]
    return str(found.rows), found.not_measured, found.left_out, refused


def test_a_decoder_with_cached_series_reads_all_bodies_as_one_that_parses_them():
    dice, values = random.Random(5), (0.0, -0.0, 1.5, 1e300, math.nan, STALE)
    series = [
        fleet_series(
            metric, f"a{n}:9100", [(NOW + dice.choice((0, 1, -NOW)), dice.choice(values))], cluster="\x12\x10\x09"
        )
        for metric in (*METRICS, "other")
        for n in range(6)
    ]
    series += [fleet_series("mem_pct", "b", [(NOW, 1.0), (NOW + 1, 2.0)]), fleet_series("mem_pct", "c")]
    body, decoder = write_content(series), WriteDecoder("instance", MAX_SAMPLES)
    pieces = [write_content([each]) for each in series]
    seen = set()
    for n in range(600):
        changed = mutated_bytes(dice, body, n % 4, pieces) if n else body
        found = outcome(lambda content: decoder.decode(content, V1), changed)
        assert found == outcome(plain_decoder, changed), n
        seen.add(found == "malformed")
    assert seen == {True, False}


def nested(content):
    return WriteRequest.FromString(b"\x0a" + varint(len(content)) + content).SerializeToString()


def varint(number):
    return bytes([number & 127 | 128, number >> 7 & 127 | 128, number >> 14])


@pytest.mark.parametrize("content", [b"\x0a\x00" * 40_000, nested(b"\x12\x00" * 40_000), nested(b"\x0a\x00" * 40_000),
                                     b"\x8a\x00\x00" * 30_000])  # fmt: skip
def test_far_too_many_structures_are_refused_before_they_are_parsed(monkeypatch, content):
    class Parser:
        FromString = None

    monkeypatch.setattr("fleet_forecast.sources.protocols.remote_write.EncodedWriteRequest", Parser)
    with pytest.raises(MalformedBodyError, match="far too many"):
        decode(content)
