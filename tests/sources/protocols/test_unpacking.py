"""Unpacking within a limit."""

import gzip
import zlib

import cramjam
import pytest

from fleet_forecast.sources.protocols.received import MalformedBodyError
from fleet_forecast.sources.protocols.unpacking import unpack_gzip, unpack_snappy


def packed(content):
    return gzip.compress(content, mtime=0)


def snappy(content):
    return bytes(cramjam.snappy.compress_raw(content))


@pytest.mark.parametrize(("pack", "unpack"), [(packed, unpack_gzip), (snappy, unpack_snappy)])
def test_a_content_up_to_the_limit_is_unpacked(pack, unpack):
    for content in (b"", b"a", b"abc" * 100):
        assert unpack(pack(content), 300) == content
    with pytest.raises(MalformedBodyError, match="larger than 300 bytes when it is unpacked"):
        unpack(pack(b"a" * 301), 300)


@pytest.mark.parametrize(
    "body",
    [b"", b"abc", packed(b"abc")[:-1], packed(b"a") + packed(b"b"), packed(b"a") + b"\x00",
     zlib.compress(b"abc")],
)  # fmt: skip
def test_a_body_that_is_not_one_gzip_member_is_malformed(body):
    with pytest.raises(MalformedBodyError, match="gzip"):
        unpack_gzip(body, 300)


@pytest.mark.parametrize("body", [b"", b"\x05abc", b"\xff" * 12, snappy(b"abc")[:-1], snappy(b"abc") + b"\x00"])
def test_a_body_that_is_not_snappy_is_malformed(body):
    with pytest.raises(MalformedBodyError, match="snappy"):
        unpack_snappy(body, 300)
