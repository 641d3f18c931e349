"""SIGTERM in every situation: a clean end in time, and no acknowledged record is lost."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from tests.reliability.durability import can_trace
from tests.reliability.finding import Finding
from tests.reliability.hostile import POST_HEADERS, closed_within, connect, good_record
from tests.reliability.traffic import Ingest, Ledger, nothing_lost
from tests.serving.fake_daemon import FakeDaemon

LIMIT_SECONDS = 10.0
EVENTS = b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
SOCKET = (
    b"GET /ws/predictions HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
Situation = Callable[[FakeDaemon, Ledger], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def idle(_daemon: FakeDaemon, _ledger: Ledger) -> Iterator[None]:
    yield


@contextlib.contextmanager
def ingest(daemon: FakeDaemon, ledger: Ledger) -> Iterator[None]:
    with Ingest(daemon, ledger, threads=4) as running:
        running.until(lambda so_far: so_far.answers[200] >= 20)
        yield


@contextlib.contextmanager
def forecast(daemon: FakeDaemon, _ledger: Ledger) -> Iterator[None]:
    httpx.post(daemon.url + "/api/v1/metrics", json={"records": [good_record()]})
    time.sleep(0.4)  # the forecast of the new server is running
    yield


@contextlib.contextmanager
def event_streams(daemon: FakeDaemon, _ledger: Ledger) -> Iterator[None]:
    streams = [connect(daemon, EVENTS) for _ in range(60)] + [connect(daemon, SOCKET) for _ in range(4)]
    for stream in streams:
        assert stream.recv(4096).split(b" ", 2)[1] in (b"200", b"101")
    yield
    assert all(closed_within(stream, 5.0) for stream in streams)
    for stream in streams:
        stream.close()


@contextlib.contextmanager
def half_a_body(daemon: FakeDaemon, _ledger: Ledger) -> Iterator[None]:
    with connect(daemon, POST_HEADERS + b"Content-Length: 100\r\n\r\n{"):
        time.sleep(0.1)
        yield


SITUATIONS: dict[str, Situation] = {
    "idle": idle,
    "ingest": ingest,
    "a forecast": forecast,
    "a slow commit": ingest,
    "64 event streams": event_streams,
    "half a body": half_a_body,
}


def endings(folder: Path, situations: tuple[str, ...] = tuple(SITUATIONS)) -> Finding:
    """One SIGTERM in each situation, then 20 in a row, then a SIGINT."""
    seconds: dict[str, float] = {}
    wrong = []
    plan = [(name, [signal.SIGTERM]) for name in situations]
    plan += [("ingest", [signal.SIGTERM] * 20), ("idle", [signal.SIGINT])]
    for number, (name, signals) in enumerate(plan):
        slow_disk = name == "a slow commit"
        if slow_disk and not can_trace():
            continue
        place = folder / str(number)
        place.mkdir()
        daemon, ledger = FakeDaemon(place, seconds_per_call=1.0 if name == "a forecast" else 0.0), Ledger()
        if slow_disk:  # the writing thread's later fdatasyncs take half a second each
            inject = "inject=fdatasync:delay_enter=500000:when=20+"
            daemon.prefix = ["strace", "-D", "-f", "-e", "trace=fdatasync", "-e", inject, "-o", str(place / "trace")]
        label = name if len(signals) == 1 else f"{len(signals)} signals in a row"
        label = label if signals[0] == signal.SIGTERM else "Ctrl-C"
        with daemon:
            with SITUATIONS[name](daemon, ledger):
                for _ in signals[1:]:
                    daemon.process.send_signal(signals[0])
                    time.sleep(0.01)
                code, took = daemon.stop(signals[0])
            seconds[label] = round(took, 2)
            found = ledger.missing(daemon.history)
            left_open = Path(f"{daemon.history}-wal").exists()
        problems = {"exit code": code, "exceptions": _exceptions(daemon), "log left": left_open}
        if any(problems.values()) or took >= LIMIT_SECONDS or not nothing_lost(found):
            wrong.append({"situation": label, **problems, **found})
    slowest = max(seconds, key=lambda label: seconds[label])
    shown = f"SIGTERM in {len(seconds)} situations: exit code 0 and no record lost in {len(seconds) - len(wrong)}, "
    return Finding(not wrong, shown + f"slowest {seconds[slowest]} s ({slowest})", {"seconds": seconds, "wrong": wrong})


def endings_while_starting(folder: Path, count: int = 20) -> Finding:
    """SIGTERM at random moments of the start: the daemon ends in time, and the next start succeeds."""
    dice, seconds, codes = random.Random(2), [], set()
    daemon = FakeDaemon(folder)
    with daemon:
        with Ingest(daemon, Ledger()) as running:
            running.until(lambda so_far: so_far.answers[200] >= 20)
        started = time.monotonic()
        daemon.stop()
        daemon.start()
        start_seconds = time.monotonic() - started
        daemon.stop()
        for _ in range(count):
            daemon.launch()
            time.sleep(dice.random() * start_seconds)
            code, took = daemon.stop()
            codes.add(code)
            seconds.append(took)
        daemon.start()
        kept = codes <= {0, -signal.SIGTERM} and max(seconds) < LIMIT_SECONDS
        kept = kept and httpx.get(daemon.url + "/status").json()["history"]["damaged_file_set_aside"] is None
    shown = f"{count} SIGTERMs during the start: ended within {max(seconds):.1f} s, the next start finds no damage"
    return Finding(kept, shown, {"slowest_seconds": round(max(seconds), 2), "codes": sorted(codes)})


def _exceptions(daemon: FakeDaemon) -> bool:
    return '"exception"' in daemon.log.read_text()
