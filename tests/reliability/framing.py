"""Mutated HTTP requests at socket level, in all states of a connection, for some minutes."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.reliability.finding import Finding, growth_mib_per_hour, milliseconds
from tests.reliability.framing_cases import Case, framing_case
from tests.reliability.traffic import Probe
from tests.serving.fake_daemon import FakeDaemon

CASES_PER_SECOND, MAX_CLIENTS = 20, 150
LIMITS = ("--header-seconds", 2, "--body-seconds", 3, "--max-servers", 50)
LONGEST_CLIENT_SECONDS = 60
QUIET_SECONDS = 3  # after the last client, until the descriptors are counted
SLOPE_MIB_PER_HOUR, PROBE_P99_MS = 30.0, 200
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_STREAM = re.compile(rb"HTTP/1\.1 101 |content-type: text/event-stream", re.IGNORECASE)


def http_framing(folder: Path, minutes: float = 1.0, seed: int = 1, limit_ms: float = PROBE_P99_MS) -> Finding:
    """Mutated requests in pieces, pipelined, chunked, upgraded, cut off, unread: none harms the daemon or others.

    Kept if there is no 5xx but 503, no logged exception, no connection that stays open, no descriptor left, no
    growing memory, /healthz answers in time and SIGTERM ends with 0.
    """
    with FakeDaemon(folder, *LIMITS) as daemon:
        before = daemon.open_files()
        run = _Run(daemon.port, seed)
        with Probe(daemon.port, 0.25) as probe:
            usage = asyncio.run(run.send_for(minutes * 60, lambda: (daemon.memory_mib(), daemon.open_files())))
        time.sleep(QUIET_SECONDS)
        left = daemon.open_files() - before
        code, _ = daemon.stop()
        exceptions = daemon.log.read_text().count('"exception"')
    memory = [(moment, mib) for moment, mib, _ in usage]
    slope = growth_mib_per_hour(memory)
    p50, p99 = milliseconds(probe.taken, 0.5), milliseconds(probe.taken, 0.99)
    shown = (
        f"{run.number:,} clients with mutated requests in {minutes:g} min: {len(run.server_errors)} answers of "
        f"5xx but 503, {exceptions} exceptions, {run.open_too_long} connections open too long; memory "
        f"{memory[0][1]:.0f} to {memory[-1][1]:.0f} MB ({slope:+.1f} MB/h), at most "
        f"{max(count for _, _, count in usage)} descriptors, {left:+d} after it; /healthz p50 {p50} ms, p99 {p99} ms"
    )
    figures: dict[str, Any] = {
        "seed": seed,
        "clients": run.number,
        "answers": dict(sorted(run.answers.items())),
        "first_server_errors": run.server_errors[:5],
        "first_open_too_long": run.open_cases[:5],
        "slope_mib_per_hour": round(slope, 1),
        "memory_mib": [round(mib, 1) for _, mib in memory[:: max(1, len(memory) // 20)]],
        "descriptors_before": before,
        "descriptors_p99": float(np.quantile([count for _, _, count in usage], 0.99)),
        "descriptors_left": left,
        "healthz_ms": {f"p{q}": milliseconds(probe.taken, q / 100) for q in (50, 95, 99, 100)},
        "probes": len(probe.taken),
        "probes_failed": probe.failed,
    }
    flat = slope < SLOPE_MIB_PER_HOUR if minutes >= 10 else memory[-1][1] - memory[0][1] < SLOPE_MIB_PER_HOUR
    kept = flat and not run.server_errors and not exceptions and not run.open_too_long and left <= 2 and code == 0
    return Finding(kept and probe.failed == 0 and p99 < limit_ms, shown, figures)


class _Run:
    """Clients at a steady rate. Client n is determined by the seed and n, so that a case can be repeated alone."""

    def __init__(self, port: int, seed: int) -> None:
        self._port, self._seed = port, seed
        self.number = self.open_too_long = 0
        self.answers: Counter[str] = Counter()
        self.server_errors: list[tuple[int, int]] = []
        self.open_cases: list[int] = []

    async def send_for(self, seconds: float, measure: Any) -> list[tuple[float, float, int]]:
        """Send, and wait until all clients have ended; (seconds, MiB, descriptors) about every 5 s."""
        started = time.monotonic()
        usage: list[tuple[float, float, int]] = []
        clients: set[asyncio.Task[None]] = set()
        while (now := time.monotonic() - started) < seconds:
            if not usage or now - usage[-1][0] > min(5.0, seconds / 30):
                usage.append((now, *measure()))
            if len(clients) < MAX_CLIENTS:
                self.number += 1
                task = asyncio.create_task(self._client(self.number))
                clients.add(task)
                task.add_done_callback(clients.discard)
            await asyncio.sleep(1 / CASES_PER_SECOND)
        if clients:
            await asyncio.wait(clients, timeout=min(LONGEST_CLIENT_SECONDS, seconds))
        for task in clients:
            task.cancel()
        return usage

    async def _client(self, number: int) -> None:
        case = framing_case(random.Random(f"{self._seed}/{number}"))
        own = socket.socket()
        own.setblocking(False)
        if case.receive_bytes:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if case.ending == "abort":
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", self._port))
        except OSError:
            own.close()
            self.answers["not connected"] += 1
            return
        reader, writer = await asyncio.open_connection(sock=own, limit=4096)
        received = b""
        try:
            received = await self._talk(number, case, reader, writer)
        except OSError:
            self.answers["reset"] += 1
        finally:
            writer.transport.abort()
        statuses = [int(status) for status in _STATUS.findall(received)]
        self.answers.update(str(status) for status in statuses or ("none",))
        self.server_errors += [(number, status) for status in statuses if status >= 500 and status != 503]

    async def _talk(self, number: int, case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Send the pieces and read for the patience of the case; returns what was received."""
        for piece in case.pieces:
            if writer.transport.is_closing():
                break
            writer.write(piece)
            if case.pause_seconds:
                await asyncio.sleep(case.pause_seconds)
        if case.ending == "abort":
            return b""
        if case.ending == "half" and not writer.transport.is_closing():
            writer.write_eof()
        if case.ending == "idle":
            await asyncio.sleep(case.patience_seconds)
        received = bytearray()
        try:
            async with asyncio.timeout(case.patience_seconds if case.ending != "idle" else 5):
                while part := await reader.read(case.receive_bytes or 65536):
                    received += part
                    if case.receive_bytes:
                        await asyncio.sleep(0.005)
        except TimeoutError:
            # Longer than every deadline: only a stream of events or a WebSocket may be open still.
            if case.patience_seconds > 35 and not case.receive_bytes and not _STREAM.search(received):
                self.open_too_long += 1
                self.open_cases.append(number)
        return bytes(received)
