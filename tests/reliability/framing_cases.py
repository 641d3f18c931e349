"""Mutated HTTP requests and the ways to send them: bytes for a socket, determined by a random generator."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from tests.reliability.hostile import good_record, mutated_body
from tests.reliability.mutations import mutated_bytes

HOST = b"Host: 127.0.0.1\r\n"
SOCKET_HEADERS = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
READS = (
    b"GET /healthz", b"GET /readyz", b"HEAD /healthz", b"GET /status", b"GET /metrics", b"GET /openapi.json", b"GET /",
    b"GET /dashboard/page.js", b"GET /api/v1/servers?limit=5", b"GET /api/v1/forecasts?limit=3", b"GET /api/v1/alerts",
    b"GET /api/v1/servers/ppml0001/forecast", b"GET /api/v1/servers/ppml0001/history?hours=1", b"GET /nothing",
    b"OPTIONS *", b"DELETE /api/v1/servers/ppml0001", b"PUT /api/v1/metrics", b"GET /api/v1/events",
)  # fmt: skip
LINES = (
    b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: +5", b"Content-Length: 5, 5",
    b"Content-Length: 0x5", b"Content-Length: 99999999999999999999", b"Content-Length: 007", b"Content-Length:",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding:\tchunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding: gzip, chunked", b"X: a\r\n b",
    b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
    b"Upgrade: websocket", b"Sec-WebSocket-Version: 12", b"Expect: 100-continue", b"Expect: 200-ok", b"X: a\x00b",
    b"X: a\rb", b"X: a\nb", b": no name", b"no colon", b"X: " + b"a" * 20_000, b"X: " + b"a" * 70_000, b"Host: evil",
    b"Host: [::1", b"Authorization: Bearer \xff\xfe", b"Content-Type: text/plain", b"Accept: \xff",
    b"Content-Encoding: gzip", b"Origin: null", b"Sec-Fetch-Site: cross-site", b"Trailer: X", b"Range: bytes=0-1",
    b"\r\n".join([b"X: a"] * 300), b"\xe9: latin-1",
)  # fmt: skip
VERSIONS = (b" HTTP/1.0", b" HTTP/0.9", b" HTTP/2.0", b" HTTP/1.1 x", b"", b" http/1.1", b" HTTP/1.11", b"\tHTTP/1.1")
TARGETS = (
    b"GET http://evil.example/status", b"GET //status", b"GET /healthz%00", b"GET /%ff%fe", b"GET /\xff\xfe",
    b"GET /healthz/../status", b"GET /ws/predictions", b"CONNECT evil:443", b"TRACE /", b"PRI *", b"get /healthz",
    b"GET /" + b"a" * 70_000, b"GET ?", b"GET", b"\x00\x01", b"\x16\x03\x01", b"POST /healthz", b"GET /status?a[]=%",
)  # fmt: skip
CHUNK_SIZES = (
    b"FFFFFFFFFFFFFFFFF",
    b"-1",
    b"5;a=b",
    b"5 ",
    b"",
    b"0",
    b"0x5",
    b"00000005",
    b"5;" + b"x" * 70_000,
    b"g",
)
TRAILERS = (b"\r\n", b"X: a\r\n\r\n", b"X: a\r\n" * 300 + b"\r\n", b"Content-Length: 5\r\n\r\n", b"X", b"")
INSERTED = (b"\r\n", b"\r\n\r\n", b"\n\n", b"\x00", b"\xff" * 8, b" HTTP/1.1\r\n", b":", b"0\r\n\r\n", b"\r" * 20)


@dataclass(frozen=True)
class Case:
    """What a client sends and how.

    pieces: with a pause after each. ending: "read", "half" (end of the sending side, then read), "abort" (reset
    without reading) or "idle" (read nothing for the patience). receive_bytes: of each read, 0 = unlimited.
    """

    pieces: list[bytes]
    pause_seconds: float
    ending: str
    patience_seconds: float
    receive_bytes: int


def framing_case(dice: random.Random) -> Case:
    """One client: between one and a dozen requests, sent as a whole, in part, in pieces or byte by byte."""
    text = b"".join(mutated_request(dice) for _ in range(dice.choice((1, 1, 1, 1, 2, 3, 12))))
    if dice.random() < 0.3:
        text = mutated_bytes(dice, text, dice.randint(1, 4), INSERTED)
    if dice.random() < 0.2:
        text = text[: dice.randrange(len(text) + 1)]
    kind = dice.randrange(4)
    if kind == 0:  # a few cuts at any place
        cuts = sorted(dice.randrange(len(text) + 1) for _ in range(dice.randint(1, 6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    elif kind == 1:  # its beginning byte by byte
        pieces = [*(text[n : n + 1] for n in range(min(40, len(text)))), text[40:]]
    else:
        pieces = [text]
    return Case(
        [piece for piece in pieces if piece],
        dice.choice((0.0, 0.001, 0.05)),
        dice.choice(("read", "read", "read", "half", "abort", "idle")),
        dice.choice((0.1, 0.5, 0.5, 2.0, 40.0)),
        dice.choice((0, 0, 0, 512)),
    )


def mutated_request(dice: random.Random) -> bytes:
    """A request with or without a body; half of them with lines added, removed or repeated."""
    kind = dice.random()
    if kind < 0.35:
        start, headers, body = dice.choice(READS), HOST, b""
    elif kind < 0.5:
        start, headers, body = b"GET /ws/predictions", HOST + SOCKET_HEADERS, _frames(dice)
    else:
        start = b"POST " + dice.choice((b"/api/v1/metrics", b"/api/v1/metrics", b"/api/v1/forecast", b"/feed/data"))
        headers, body = _with_body(dice)
    version = b" HTTP/1.1"
    lines = headers.split(b"\r\n")[:-1]
    if dice.random() < 0.5:
        for _ in range(dice.randint(1, 3)):
            _mutate_lines(dice, lines)
        if dice.random() < 0.15:
            start = dice.choice(TARGETS)
        if dice.random() < 0.15:
            version = dice.choice(VERSIONS)
    return b"\r\n".join([start + version, *lines, b"", b""]) + body


def _with_body(dice: random.Random) -> tuple[bytes, bytes]:
    """Headers and framed body of a batch of records."""
    body = mutated_body(dice) if dice.random() < 0.5 else json.dumps({"records": [good_record()]}).encode()
    headers = HOST + b"Content-Type: application/json\r\n"
    if dice.random() < 0.5:
        length = len(body) + dice.choice((0, 0, 0, 0, 1, -1, 100))
        return headers + b"Content-Length: %d\r\n" % max(0, length), body
    size = dice.choice((1, 16, 4096))
    chunks = [body[start : start + size] for start in range(0, len(body), size)][:2_000]
    framed = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    if dice.random() < 0.3:
        framed.insert(dice.randrange(len(framed) + 1), dice.choice(CHUNK_SIZES) + b"\r\nabcde\r\n")
    return headers + b"Transfer-Encoding: chunked\r\n", b"".join(framed) + b"0\r\n" + dice.choice(TRAILERS)


def _mutate_lines(dice: random.Random, lines: list[bytes]) -> None:
    place = dice.randrange(len(lines) + 1)
    kind = dice.randrange(4)
    if kind == 0 and place < len(lines):
        del lines[place]
    elif kind == 1 and place < len(lines):
        lines.insert(place, lines[place])
    else:
        lines.insert(place, dice.choice(LINES))


def _frames(dice: random.Random) -> bytes:
    """WebSocket frames: none, valid ones, or bytes."""
    kind = dice.randrange(4)
    if kind == 0:
        return b""
    if kind == 1:
        return b"\x81\x85\x00\x00\x00\x00hello" * dice.choice((1, 50))
    if kind == 2:
        return b"\x88\x80\x00\x00\x00\x00"
    return dice.randbytes(dice.randint(1, 200))
