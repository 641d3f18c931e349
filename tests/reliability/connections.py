"""Connections that send too much, too little or nothing, and a log that nobody reads: others are served meanwhile."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.reliability.finding import Finding, milliseconds, not_tried
from tests.reliability.hostile import POST_HEADERS, closed_within, connect, good_record
from tests.reliability.traffic import Probe
from tests.serving.fake_daemon import FakeDaemon

HOST = b"Host: 127.0.0.1\r\n"
UPGRADE = HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
SOCKET = b" /ws/predictions HTTP/1.1\r\n" + UPGRADE
BAD_UPGRADES = {
    "POST with a body": b"POST" + SOCKET + KEY + b"Content-Length: 300\r\n\r\nabc",
    "GET with a body": b"GET" + SOCKET + KEY + b"Content-Length: 300\r\n\r\nabc",
    "chunked": b"GET" + SOCKET + KEY + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "no key": b"GET" + SOCKET + b"\r\n",
    "300 headers": b"GET" + SOCKET + KEY + b"X: a\r\n" * 300 + b"\r\n",
    "20 kB of headers": b"GET" + SOCKET + KEY + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
}


def failed_upgrades(folder: Path, seconds: float = 2.0, keep_alive_seconds: int | None = None) -> Finding:
    """Upgrade requests that cannot succeed: all connections are closed in time, and SIGTERM ends with 0."""
    deadlines = "--header-seconds", seconds, "--body-seconds", seconds
    with FakeDaemon(folder, *deadlines, keep_alive_seconds=keep_alive_seconds) as daemon:
        clients = {kind: connect(daemon, text) for kind, text in BAD_UPGRADES.items()}
        open_still = [
            kind for kind, client in clients.items() if not closed_within(client, 5.0 + (keep_alive_seconds or 30))
        ]
        late = [connect(daemon, text) for text in BAD_UPGRADES.values()]
        code, took = daemon.stop()
        for client in (*clients.values(), *late):
            client.close()
    shown = (
        f"{len(clients) - len(open_still)} of {len(clients)} kinds of failed upgrades closed, "
        f"then SIGTERM: exit code {code} after {took:.1f} s"
    )
    return Finding(not open_still and code == 0 and took < 10, shown, {"open": open_still})


def pipelining(folder: Path, connections: int = 40) -> Finding:
    """Endless pipelined requests: memory and probes stay as they are."""
    with FakeDaemon(folder) as daemon:
        text = (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n") * 6_000
        before = daemon.memory_mib()
        with Probe(daemon.port) as probe, contextlib.ExitStack() as stack:
            for _ in range(connections):
                client = stack.enter_context(connect(daemon))
                client.setblocking(False)
                with contextlib.suppress(OSError):
                    client.send(text)
            time.sleep(2.0)
        growth = daemon.memory_mib() - before
    p99 = milliseconds(probe.taken, 0.99)
    shown = f"{connections} times 6,000 requests: memory grew by {growth:.0f} MiB, /healthz p99 {p99} ms"
    return Finding(growth < 64 and probe.failed == 0, shown, {"growth_mib": round(growth, 1), "p99_ms": p99})


@contextlib.contextmanager
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 0 else min(hard, 5_000), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connection_limit(folder: Path, count: int = 1_100, open_files: int | None = None) -> Finding:
    """More connections than the limit that never send a request; with few open files also more than those."""
    if open_files is not None and shutil.which("prlimit") is None:
        return not_tried("prlimit is not installed")
    with _many_files():
        daemon = FakeDaemon(folder)
        if open_files is not None:
            daemon.prefix = ["prlimit", f"--nofile={open_files}:{open_files}"]
        with daemon, contextlib.ExitStack() as stack:
            with Probe(daemon.port) as probe:
                for _ in range(count):
                    with contextlib.suppress(OSError):
                        stack.enter_context(connect(daemon, b"GET / HTTP/1.1\r\n"))
                time.sleep(2.0)
            code, _ = daemon.stop()
            log_bytes = daemon.log.stat().st_size
    answered = len(probe.taken) - probe.failed
    files = "" if open_files is None else f" at {open_files} open files"
    shown = (
        f"{count} incomplete connections{files}: {answered} of {len(probe.taken)} probes answered, log {log_bytes} B"
    )
    # With 64 open files there are 32 places: a probe that has connected and is not scheduled to send before 32 newer
    # connections come loses its place, as any incomplete connection does.
    allowed = 0 if open_files is None else len(probe.taken) // 50
    return Finding(probe.failed <= allowed and code == 0 and log_bytes < 2_000_000, shown, {"log_bytes": log_bytes})


def stalled_uploads(folder: Path, seconds: float = 3.0) -> Finding:
    """Uploads that stop one byte short and fill the room of waiting bodies: complete bodies are still accepted."""
    size = 8 << 20
    with FakeDaemon(folder) as daemon, contextlib.ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(connect(daemon, POST_HEADERS + b"Content-Length: %d\r\n\r\n" % size))
            with contextlib.suppress(OSError):
                client.sendall(b" " * (size - 1))
        statuses = []
        until = time.monotonic() + seconds
        with httpx.Client(base_url=daemon.url) as sender:
            while time.monotonic() < until:
                statuses.append(sender.post("/api/v1/metrics", json={"records": [good_record()]}).status_code)
    accepted = statuses.count(200)
    shown = f"5 uploads one byte short of 8 MiB: {accepted} of {len(statuses)} ingests accepted"
    return Finding(accepted == len(statuses), shown)


def unread_log(folder: Path, requests: int = 500) -> Finding:
    """stderr is a full pipe that nobody reads: requests and SIGTERM go on."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"x" * 4096):
            pass
    os.set_blocking(writing, True)
    daemon = FakeDaemon(folder)
    daemon.log = Path(f"/proc/self/fd/{writing}")
    try:
        with daemon:
            for _ in range(requests):
                with connect(daemon, b"no http\r\n\r\n") as client:
                    closed_within(client, 2.0)
            status = httpx.post(daemon.url + "/api/v1/metrics", json={"records": [good_record()]}).status_code
            code, took = daemon.stop()
    finally:
        os.close(writing)
        os.close(reading)
    shown = f"{requests} invalid requests, log blocked: ingest {status}, SIGTERM in {took:.1f} s, exit code {code}"
    return Finding(status == 200 and code == 0 and took < 10, shown)
