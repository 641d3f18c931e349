"""Unpacks received bodies. No more memory is taken than the limit, whatever a body claims or expands to."""

from __future__ import annotations

import zlib

import cramjam

from fleet_forecast.sources.protocols.received import MalformedBodyError

_GZIP = 16 + zlib.MAX_WBITS  # a gzip header and no other


def unpack_snappy(body: bytes, max_bytes: int) -> bytes:
    """The content of a body in snappy's block format, whose header has the length of the content.

    Raises MalformedBodyError; for a content above `max_bytes` before memory is taken for it.
    """
    try:
        length = cramjam.snappy.decompress_raw_len(body)
        _check_size(length, max_bytes)
        return bytes(cramjam.snappy.decompress_raw(body))
    except (cramjam.DecompressionError, ValueError) as problem:
        if isinstance(problem, MalformedBodyError):
            raise
        raise MalformedBodyError(f"the body is not snappy (block format): {problem}") from None


def unpack_gzip(body: bytes, max_bytes: int) -> bytes:
    """The content of a gzip body of one member. Raises MalformedBodyError."""
    stream = zlib.decompressobj(_GZIP)
    try:
        content = stream.decompress(body, max_bytes + 1)
    except zlib.error as problem:
        raise MalformedBodyError(f"the body is not gzip: {problem}") from None
    _check_size(len(content), max_bytes)
    if not stream.eof or stream.unused_data:
        raise MalformedBodyError("the body is not one complete gzip member; send it whole")
    return content


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise MalformedBodyError(f"the body is larger than {max_bytes} bytes when it is unpacked; send smaller batches")
