"""The only sample of a time series of remote write 1.0, read from the end of the encoded series.

A Prometheus sends each sample as a series of its own: its labels, then a sample of 16 bytes, or of 7 bytes where the
value is 0, which is left out. Reading these from the end costs less than parsing the message. Encoding:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

_TIME_BYTES = 6  # of a varint: the years 1971 to 2109 in ms since 1970
_VALUE_AND_TIME = b"\x12\x10\x09"  # field 2 of 16 bytes: field 1 as a double, then field 2
_TIME_ONLY = b"\x12\x07\x10"  # field 2 of 7 bytes: field 2 as a varint
_DOUBLE = Struct("<d").unpack_from


def split_sample(series: bytes) -> tuple[bytes, float, int] | None:
    """The bytes before the sample, its value and its time in ms; None if the series does not end with such a sample.

    The bytes before are the labels if they are whole fields, which the caller has to know.
    """
    time = _time_of(series[-_TIME_BYTES:])
    if time is None:
        return None
    if series[-18:-15] == _VALUE_AND_TIME and series[-7] == 0x10:
        return series[:-18], _DOUBLE(series, len(series) - 15)[0], time
    if series[-9:-6] == _TIME_ONLY:
        return series[:-9], 0.0, time
    return None


@lru_cache(maxsize=1024)  # a request has few different times
def _time_of(tail: bytes) -> int | None:
    """The varint in these bytes; None if they are none of this length."""
    if len(tail) < _TIME_BYTES or min(tail[:-1]) < 0x80 or tail[-1] >= 0x80:
        return None
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(tail))
