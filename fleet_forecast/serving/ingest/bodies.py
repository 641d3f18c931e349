"""Bodies of requests with samples: unpacking within a bound, and the forms in which agents send JSON.

Forms of JSON are {"records": [...]}, a bare array, a single record, and a record per line (NDJSON).
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import cramjam
import orjson
import zstandard

MAX_STRUCTURES_PER_RECORD = 4  # objects and lists in a body; a record is one, unknown fields may hold further ones
ENCODINGS = ("gzip", "zstd")
SNAPPY = "snappy"  # of Prometheus remote write, in the block format
MEDIA_TYPES = ("application/json", "application/x-ndjson", "application/ndjson", "application/jsonl")
MAX_WINDOW_BYTES = 8 * 1024 * 1024  # of zstd, which RFC 8878 asks every decoder to support; the header may ask for more
_PIECE_BYTES = 128  # of packed zstd at once: they may become 4 MiB
_GZIP = zlib.MAX_WBITS | 16
_EXPECTED = 'send {"records": [{"timestamp": ..., "server_name": ...}]}, an array of records, or one record per line'


class BodyError(ValueError):
    """A request's body cannot be used as a whole; the message names the reason and the remedy."""


class BodyTooLargeError(BodyError):
    """An unpacked body is larger than a body may be."""


class ReceivedBody(NamedTuple):
    """A request's body as it was sent; encoding: "", SNAPPY or one of ENCODINGS. max_bytes: of the unpacked body."""

    content: bytes
    encoding: str = ""
    max_bytes: int = 8 * 1024 * 1024


def unpacked(body: ReceivedBody) -> bytes:
    """The content of a body. Raises BodyError if it is damaged, BodyTooLargeError; memory is bounded by max_bytes."""
    unpack = _UNPACK.get(body.encoding)
    if unpack is None:
        return body.content
    try:
        content = unpack(body)
    except (zlib.error, zstandard.ZstdError, cramjam.DecompressionError, EOFError) as problem:
        raise BodyError(f"the body is not {body.encoding}: {problem}; send it as Content-Encoding says") from None
    _check_size(len(content), body)
    return content


def _check_size(size: int, body: ReceivedBody) -> None:
    if size > body.max_bytes:
        raise BodyTooLargeError(f"the unpacked body is larger than {body.max_bytes} bytes; send smaller batches")


def _gunzip(body: ReceivedBody) -> bytes:
    """At most one byte more than the bound. A gzip file may have several members."""
    found, rest = bytearray(), body.content
    while rest and len(found) <= body.max_bytes:
        member = zlib.decompressobj(_GZIP)
        found += member.decompress(rest, body.max_bytes + 1 - len(found))
        if not member.eof and len(found) <= body.max_bytes:
            raise EOFError("it ends too early")
        rest = member.unused_data
    return bytes(found)


def _unzstd(body: ReceivedBody) -> bytes:
    """At most one piece more than the bound. A body may have several frames."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    found, rest = bytearray(), body.content
    while rest and len(found) <= body.max_bytes:
        frame, source = decompressor.decompressobj(), io.BytesIO(rest)
        while len(found) <= body.max_bytes and not frame.eof and (piece := source.read(_PIECE_BYTES)):
            found += frame.decompress(piece)
        if not frame.eof and len(found) <= body.max_bytes:
            raise EOFError("it ends too early")
        rest = frame.unused_data + source.read()
    return bytes(found)


def _unsnappy(body: ReceivedBody) -> bytes:
    """The header has the length: a content above the bound is refused before memory is taken for it."""
    try:
        _check_size(cramjam.snappy.decompress_raw_len(body.content), body)
        return bytes(cramjam.snappy.decompress_raw(body.content))
    except BodyTooLargeError:
        raise
    except ValueError as problem:  # cramjam's own for an empty body
        raise EOFError(problem) from None


_UNPACK: dict[str, Callable[[ReceivedBody], bytes]] = {"gzip": _gunzip, "zstd": _unzstd, SNAPPY: _unsnappy}


def parse_records(body: bytes, max_records: int) -> list[Any]:
    """The records of an unpacked body. Raises BodyError if there are none, or too many.

    NaN, Infinity, numbers beyond a double and lone surrogates are not JSON and are refused by the parser.
    """
    structures = body.count(b"{") + body.count(b"[")
    if structures > MAX_STRUCTURES_PER_RECORD * (max_records + 1):  # parsing them all would delay every other request
        raise BodyError(f"{structures} objects and lists in one request; send at most {max_records} records")
    records = _records_of(body)
    if len(records) > max_records:
        raise BodyError(f"{len(records)} records in one request; send at most {max_records}")
    return records


def parse_json(body: bytes) -> Any:
    """One JSON document. Raises orjson.JSONDecodeError."""
    return orjson.loads(body)


def _records_of(body: bytes) -> list[Any]:
    try:
        document = parse_json(body)
    except orjson.JSONDecodeError as problem:
        return _records_of_lines(body, problem)
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        records = document.get("records")
        if isinstance(records, list):
            return records
        if "records" not in document and ("server_name" in document or "timestamp" in document):
            return [document]
    raise BodyError(f'the body has no list "records"; {_EXPECTED}')


def _records_of_lines(body: bytes, problem: orjson.JSONDecodeError) -> list[Any]:
    lines = [line for line in body.splitlines() if line.strip()]
    if len(lines) < 2 or not all(line.lstrip()[:1] == b"{" and line.rstrip()[-1:] == b"}" for line in lines):
        raise BodyError(
            f"the body is not JSON: {problem}; NaN and Infinity are not JSON, null means not measured"
        ) from None
    try:
        records: list[Any] = parse_json(b"[" + b",".join(lines) + b"]")
    except orjson.JSONDecodeError:
        records = []
    if len(records) != len(lines):
        raise BodyError(_bad_line(lines))
    return records


def _bad_line(lines: list[bytes]) -> str:
    for number, line in enumerate(lines, start=1):
        try:
            parse_json(line)
        except orjson.JSONDecodeError as problem:
            return f"line {number} of the body is not JSON: {problem}; NaN and Infinity are not JSON"
    return f"the body has lines with several records; {_EXPECTED}"
