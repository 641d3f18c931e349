"""Bodies of requests: forms of JSON, and packed ones within a bound."""

import contextlib
import gzip
import json
import time
import tracemalloc

import cramjam
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_forecast.serving.ingest.bodies import (
    ENCODINGS,
    SNAPPY,
    BodyError,
    BodyTooLargeError,
    ReceivedBody,
    decompressed,
    parse_records,
)

PACK = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    SNAPPY: lambda content: bytes(cramjam.snappy.compress_raw(content)),
}
RECORDS = [{"timestamp": "2026-11-23T10:00:00Z", "server_name": name, "cpu_pct": 1.5} for name in "abc"]
LINES = "\n".join(map(json.dumps, RECORDS))


@pytest.mark.parametrize(
    "body", [json.dumps({"records": RECORDS}), json.dumps(RECORDS), LINES, LINES + "\n\n", LINES.replace("\n", "\r\n")]
)
def test_every_form_gives_the_same_records(body):
    assert parse_records(body.encode(), 3) == (RECORDS, frozenset())
    with pytest.raises(BodyError, match="3 records in one request; send at most 2"):
        parse_records(body.encode(), 2)


def test_a_single_object_is_one_record():
    assert parse_records(json.dumps(RECORDS[0]).encode(), 1).records == RECORDS[:1]
    assert parse_records(b'{"records": []}', 1).records == parse_records(b"[]", 1).records == []


def test_what_a_body_has_beside_its_records_is_named():
    body = b'{"records": [], "server_name": "a", "version": 1}'
    assert parse_records(body, 1).ignored_fields == {"server_name", "version"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a": 1}', 'no list "records"'),
        (b'{"records": 1, "server_name": "a"}', 'no list "records"'),
        (b"17", 'no list "records"'),
        (b'{"a": 1', "not JSON"),
        (b'{"a": 1}\n{"b": NaN}\n{"c": 1}', "line 2 of the body is not JSON"),
        (b'{"a": 1}\n{"b": 1}, {"c": 1}', "line 2 of the body is not JSON"),
        (b'{"a": [1}\n{2]}', "line 1 of the body is not JSON"),
        (b'{"a": 1}\n[2]', "not JSON"),
    ],
)
def test_another_body_is_refused_with_the_reason(body, message):
    with pytest.raises(BodyError, match=message):
        parse_records(body, 10)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("parts", [1, 3])
def test_packed_bodies_of_one_or_several_members_are_unpacked(encoding, parts):
    content = LINES.encode() * 500
    packed = PACK[encoding](content) * parts
    assert decompressed(ReceivedBody(packed, encoding, len(content) * parts)) == content * parts
    with pytest.raises(BodyTooLargeError, match="send smaller batches"):
        decompressed(ReceivedBody(packed, encoding, len(content) * parts - 1))


@pytest.mark.parametrize("encoding", PACK)
def test_a_content_up_to_the_bound_is_unpacked(encoding):
    for content in (b"", b"a", b"abc" * 100):
        assert decompressed(ReceivedBody(PACK[encoding](content), encoding, 300)) == content
    with pytest.raises(BodyTooLargeError, match="larger than 300 bytes"):
        decompressed(ReceivedBody(PACK[encoding](b"a" * 301), encoding, 300))


def test_the_length_in_a_snappy_header_is_checked_before_memory_is_taken():
    with pytest.raises(BodyTooLargeError):
        decompressed(ReceivedBody(b"\xff\xff\xff\xff\x0f" + b"\x00" * 10, SNAPPY, 300))


@pytest.mark.parametrize("encoding", PACK)
def test_a_bomb_is_refused_in_bounded_memory(encoding):
    bound = 1 << 20
    bomb = PACK[encoding](bytes(256 << 20))
    tracemalloc.start()
    with pytest.raises(BodyTooLargeError):
        decompressed(ReceivedBody(bomb, encoding, bound))
    assert tracemalloc.get_traced_memory()[1] < 16 * bound
    tracemalloc.stop()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_body_of_the_smallest_parts_is_refused_at_once(encoding):
    """Work that grows with the square of their number would take a minute here."""
    part, started = PACK[encoding](b""), time.thread_time()
    with pytest.raises(BodyError, match="more than 10,000 parts"):
        decompressed(ReceivedBody(part * ((8 << 20) // len(part)), encoding))
    assert time.thread_time() - started < 5


def test_millions_of_blank_lines_are_not_split():
    """A list of them takes 0.3 s in which no other thread runs."""
    for body in (b"\n" * (8 << 20), b"{}\r" + b"\r" * (8 << 20) + b"{}"):
        started = time.thread_time()
        with pytest.raises(BodyError, match="not JSON"):
            parse_records(body, 10_000)
        assert time.thread_time() - started < 0.2


def test_a_zstd_frame_that_asks_for_a_large_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = packer.compress(b"x" * 100) + packer.flush()
    with pytest.raises(BodyError, match="not zstd"):
        decompressed(ReceivedBody(frame, "zstd"))


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("damage", [lambda packed: packed[:-3], lambda packed: packed + b"xyz", lambda _packed: b"{}"])
def test_damaged_bodies_are_refused(encoding, damage):
    with pytest.raises(BodyError, match=f"the body is not {encoding}"):
        decompressed(ReceivedBody(damage(PACK[encoding](LINES.encode())), encoding))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(PACK)), st.binary(max_size=40), st.integers(0, 200))
def test_mutated_bodies_are_unpacked_or_refused(encoding, noise, at):
    packed = PACK[encoding](LINES.encode())
    mutated = packed[:at] + noise + packed[at + len(noise) :]
    with contextlib.suppress(BodyError):
        decompressed(ReceivedBody(mutated, encoding, 10_000))
