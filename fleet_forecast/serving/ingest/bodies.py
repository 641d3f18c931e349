"""Bodies of requests with samples: bounded decompression, and the forms in which agents send JSON.

Forms of JSON are {"records": [...]}, a bare array, a single record, and a record per line (NDJSON).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import cramjam
import orjson
import zstandard

MAX_STRUCTURES_PER_RECORD = 4  # objects and lists in a body; a record is one, unknown fields may hold further ones
MAX_LINES_PER_RECORD = 8  # of NDJSON, blank ones too
ENCODINGS = ("gzip", "zstd")
SNAPPY = "snappy"  # of Prometheus remote write, in the block format
MEDIA_TYPES = ("application/json", "application/x-ndjson", "application/ndjson", "application/jsonl")
MAX_WINDOW_BYTES = 8 * 1024 * 1024  # of zstd, which RFC 8878 asks every decoder to support; the header may ask for more
MAX_PARTS = 10_000  # of a packed body, one for each record; an empty one has 9 bytes and takes 3 microseconds
_GZIP_PIECE_BYTES, _ZSTD_PIECE_BYTES = 4096, 128  # unpacked at once; of zstd 128 bytes may become 4 MiB
_GZIP = zlib.MAX_WBITS | 16
_EXPECTED = 'send {"records": [{"timestamp": ..., "server_name": ...}]}, an array of records, or one record per line'


class BodyError(ValueError):
    """A request's body cannot be used as a whole; the message names the reason and the remedy."""


class BodyTooLargeError(BodyError):
    """A decompressed body is larger than a body may be."""


class ReceivedBody(NamedTuple):
    """A request's body as sent; encoding: "", SNAPPY or one of ENCODINGS. max_bytes: of the decompressed body."""

    content: bytes
    encoding: str = ""
    max_bytes: int = 8 * 1024 * 1024


def decompressed(body: ReceivedBody) -> bytes:
    """The content of a body. Raises BodyError if it is damaged, BodyTooLargeError; memory is bounded by max_bytes."""
    unpack = _UNPACK.get(body.encoding)
    if unpack is None:
        return body.content
    try:
        content = unpack(body)
    except (zlib.error, zstandard.ZstdError, cramjam.DecompressionError, EOFError) as problem:
        raise BodyError(
            f"the body is not {body.encoding}: {problem}; send it in the format that Content-Encoding names"
        ) from None
    _check_size(len(content), body)
    return content


def _check_size(size: int, body: ReceivedBody) -> None:
    if size > body.max_bytes:
        raise BodyTooLargeError(f"the decompressed body is larger than {body.max_bytes} bytes; send smaller batches")


def _gunzip(body: ReceivedBody) -> bytes:
    """At most one byte more than the bound. A gzip file may have several members."""

    def unpack(source: memoryview, room: int) -> _Part:
        member, content, read = zlib.decompressobj(_GZIP), bytearray(), 0
        while read < len(source) and not member.eof and len(content) < room:
            piece = source[read : read + _GZIP_PIECE_BYTES]
            content += member.decompress(piece, room - len(content))
            read += len(piece)
        return _Part(content, member.eof, read - len(member.unused_data))

    return _unpack_parts(body, unpack)


def _unzstd(body: ReceivedBody) -> bytes:
    """At most one piece more than the bound. A body may have several frames."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)

    def unpack(source: memoryview, room: int) -> _Part:
        frame, content, read = decompressor.decompressobj(), bytearray(), 0
        while read < len(source) and not frame.eof and len(content) < room:
            piece = source[read : read + _ZSTD_PIECE_BYTES]
            content += frame.decompress(piece)
            read += len(piece)
        return _Part(content, frame.eof, read - len(frame.unused_data))

    return _unpack_parts(body, unpack)


class _Part(NamedTuple):
    """The content of one member of gzip or frame of zstd; packed_bytes: its size before."""

    content: bytearray
    is_whole: bool
    packed_bytes: int


def _unpack_parts(body: ReceivedBody, unpack: Callable[[memoryview, int], _Part]) -> bytes:
    """The content of all parts. The packed bytes are not copied: a body of the smallest parts has 900,000 of them."""
    found, rest = bytearray(), memoryview(body.content)
    for _ in range(MAX_PARTS):
        if not rest or len(found) > body.max_bytes:
            return bytes(found)
        part = unpack(rest, body.max_bytes + 1 - len(found))
        found += part.content
        if not part.is_whole and len(found) <= body.max_bytes:
            raise EOFError("it ends too early")
        rest = rest[part.packed_bytes :]
    raise BodyError(
        f"the body has more than {MAX_PARTS:,} parts that are each compressed separately; compress it as a whole"
    )


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


class ParsedBody(NamedTuple):
    """The records of a body, and the names of what it has beside them."""

    records: list[Any]
    ignored_fields: frozenset[str] = frozenset()


def parse_records(body: bytes, max_records: int) -> ParsedBody:
    """The content of a decompressed body. Raises BodyError if it has no records, or too many.

    NaN, Infinity, numbers beyond a double and lone surrogates are not JSON and are refused by the parser.
    """
    structures = body.count(b"{") + body.count(b"[")
    if structures > MAX_STRUCTURES_PER_RECORD * (max_records + 1):  # parsing them all would delay every other request
        raise BodyError(f"{structures} objects and lists in one request; send at most {max_records} records")
    parsed = _records_of(body, max_records)
    if len(parsed.records) > max_records:
        raise BodyError(f"{len(parsed.records)} records in one request; send at most {max_records}")
    return parsed


def parse_json(body: bytes) -> Any:
    """One JSON document. Raises orjson.JSONDecodeError."""
    return orjson.loads(body)


def _records_of(body: bytes, max_records: int) -> ParsedBody:
    try:
        document = parse_json(body)
    except orjson.JSONDecodeError as problem:
        return ParsedBody(_records_of_lines(body, problem, max_records))
    if isinstance(document, list):
        return ParsedBody(document)
    if isinstance(document, dict):
        records = document.get("records")
        if isinstance(records, list):
            return ParsedBody(records, frozenset(document) - {"records"})
        if "records" not in document and ("server_name" in document or "timestamp" in document):
            return ParsedBody([document])
    raise BodyError(f'the body has no list "records"; {_EXPECTED}')


def _records_of_lines(body: bytes, problem: orjson.JSONDecodeError, max_records: int) -> list[Any]:
    few = body.count(b"\n") + body.count(b"\r") <= MAX_LINES_PER_RECORD * (max_records + 1)  # millions take long
    lines = [line for line in body.splitlines() if line.strip()] if few else []
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
