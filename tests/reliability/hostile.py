"""Hostile and heavy requests: mutated and huge bodies, slow clients, ten times the load, schemathesis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings

from data_contract import METRICS
from tests.reliability.finding import Finding, milliseconds
from tests.reliability.mutations import mutated_bytes
from tests.reliability.traffic import JSON, Probe
from tests.serving.fake_daemon import FakeDaemon
from tests.sources.protocols.write_bodies import fleet_series, write_body

WRITE_HEADERS = {"content-type": "application/x-protobuf", "content-encoding": "snappy"}
POST_HEADERS = b"POST /api/v1/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"

# --- mutated bodies -------------------------------------------------------------------------------------------------

TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"9" * 400, b"-0", b"null", b"true", b"\x00",
    b"\xff", b"\xed\xa0\x80", b'"\\ud800"', b'"\\u0000"', b"[" * 300, b"]" * 300, b"{}", b"\xef\xbb\xbf", b'"' * 3,
    b"\\", b'"records"', b'"0001-01-01T00:00:00+23:59"', b'"9999-12-31T23:59:59-23:59"', b'"2026-02-30T00:00:00Z"',
    b"\r\n\r\n",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, -(2**70), 1e308, -1e308, 5e-324, "", "NaN", "x" * 5000, "é" * 300, "\x00",
    "../../etc/passwd", "'; DROP TABLE samples; --", "{{7*7}}", "<script>", "a\nb", [], [[]], {}, {"a": {"b": []}},
    "2026-11-23T10:00:00", "2026-11-23T10:00:00+99:99", "24:00", "１２", 1e15, "database", "offline",
)  # fmt: skip
FIELDS = ("timestamp", "server_name", "profile", "state", "incident", "extra", "\ufeff", "records", *METRICS)


def good_record(name: str = "ppml0001") -> dict[str, Any]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 400))
    return {"timestamp": moment, "server_name": name, "cpu_pct": 70.0, "mem_pct": 80.0}


def mutated_body(dice: random.Random) -> bytes:
    """A batch with values and fields replaced, or bytes flipped, removed, repeated and inserted."""
    records: list[Any] = [good_record(f"ppml{n:04d}") for n in range(dice.randint(1, 4))]
    for _ in range(dice.randint(0, 4)):
        record = dice.choice(records)
        if isinstance(record, dict):
            record[dice.choice(FIELDS)] = dice.choice(VALUES)
    if dice.random() < 0.1:
        records.append(dice.choice(VALUES))
    document = {"records": records} if dice.random() < 0.95 else dice.choice(VALUES)
    body = json.dumps(document, ensure_ascii=dice.random() < 0.5).encode()
    return mutated_bytes(dice, body, dice.choice((0, 0, 1, 2, 8)), TOKENS)


def _records_in(body: bytes) -> int:
    """Number of records in an accepted body: a document, an array, or a record per line."""
    try:
        document = json.loads(body)
    except json.JSONDecodeError:
        return sum(1 for line in body.splitlines() if line.strip())
    if isinstance(document, list):
        return len(document)
    return len(document["records"]) if "records" in document else 1


def mutated_bodies(folder: Path, count: int = 10_000, seed: int = 1) -> Finding:
    """Mutated bodies to both routes that take records: each is accepted or refused with 4xx."""
    dice, answers, miscounted = random.Random(seed), Counter[int](), 0
    worst: list[bytes] = []
    with FakeDaemon(folder) as daemon, httpx.Client(base_url=daemon.url, timeout=30) as client:
        for number in range(count):
            body = mutated_body(dice)
            path = "/api/v1/forecast" if number % 4 == 0 else "/api/v1/metrics"
            answer = client.post(path, content=body, headers=JSON)
            answers[answer.status_code] += 1
            if answer.status_code >= 500:
                worst.append(body[:200])
            elif answer.status_code == 200 and number % 4:
                counted = answer.json()["accepted"] + len(answer.json()["rejected"])
                miscounted += counted != _records_in(body)
        alive = client.get("/readyz").status_code == 200
    logged = daemon.log.read_text().count('"exception"')
    server_errors = sum(n for status, n in answers.items() if status >= 500)
    by_status = ", ".join(f"{n:,} of {status}" for status, n in sorted(answers.items()))
    shown = f"{count:,} mutated bodies: {server_errors} answers of 5xx ({by_status})"
    kept = not server_errors and not miscounted and not logged and alive and {200, 400} <= set(answers)
    return Finding(
        kept, shown, {"answers": dict(answers), "miscounted": miscounted, "first": [str(b) for b in worst[:3]]}
    )


# --- forged samples -------------------------------------------------------------------------------------------------


def forged_samples(folder: Path, samples: int = 1_000) -> Finding:
    """Stored samples sent again with other values, profile and state by a client that may only write."""
    (folder / "token").write_text(token := "a-token-that-all-agents-have")
    headers, first_ms = {"authorization": f"Bearer {token}"}, (int(time.time()) - 3 * 3600) * 1000
    times_ms = [first_ms + 10_000 * n for n in range(samples)]

    def records(cpu_pct: float, **labels: str) -> dict[str, Any]:
        labelled = {"server_name": "a", "cpu_pct": cpu_pct, **labels}
        return {"records": [{"timestamp": each, **labelled} for each in times_ms]}

    with (
        FakeDaemon(folder, "--token-file", folder / "token") as daemon,
        httpx.Client(base_url=daemon.url, timeout=30, headers=headers) as client,
    ):
        client.post("/api/v1/metrics", json=records(55.0, profile="database"))
        before = _stored(client)
        forged = records(2.0, profile="web_api", state="offline")
        rejected = len(client.post("/api/v1/metrics", json=forged).json()["rejected"])
        body = write_body([fleet_series("cpu_pct", "a", samples=[(each, 2.0) for each in times_ms])])
        status = client.post("/api/v1/write", content=body, headers=WRITE_HEADERS).status_code
        unchanged = _stored(client) == before
        counted = f'fleet_corrections_total{{result="refused"}} {2 * samples}\n' in client.get("/metrics").text
    shown = f"{samples:,} stored samples forged by JSON and remote write: {rejected:,} rejected, then {status}"
    kept = unchanged and counted and rejected == samples and status == 400
    return Finding(kept, shown, {"unchanged": unchanged, "counted": counted})


def _stored(client: httpx.Client) -> tuple[Any, Any]:
    """Samples and profile of the one server."""
    page = client.get("/api/v1/servers/a/history", params={"hours": 4, "raw": "true"}).json()
    return page["metrics"], client.get("/api/v1/servers").json()["servers"][0]["profile"]


# A stream without end; bodies that are protobuf, whose mutations are in tests/serving/routes/protocols/.
NOT_TRIED = ("/api/v1/events", "/api/v1/write", "/v1/metrics")

# --- OpenAPI --------------------------------------------------------------------------------------------------------


def openapi_answers(folder: Path, examples: int = 50) -> Finding:
    """schemathesis over the OpenAPI document: no answer of 5xx except 503, and no undeclared status."""
    with FakeDaemon(folder) as daemon:
        schema = schemathesis.openapi.from_url(daemon.url + "/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        tried = [operation for operation in operations if operation.path not in NOT_TRIED]
        wrong = [text for operation in tried for text in _wrong_answers(operation, examples)]
    shown = f"schemathesis over {len(tried)} operations: {len(wrong)} undeclared answers or server errors"
    return Finding(not wrong and len(tried) > 10, shown, {"paths": [o.path for o in tried], "wrong": wrong[:5]})


def _wrong_answers(operation: Any, examples: int) -> list[str]:
    declared, wrong = set(operation.definition.raw["responses"]), []

    @hypothesis_settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case):
        response = case.call()
        if str(response.status_code) not in declared or response.status_code in (500, 501, 502, 504):
            wrong.append(f"{case.method} {case.path}: {response.status_code} {response.text[:200]}")

    check()
    return wrong


# --- size -----------------------------------------------------------------------------------------------------------


def huge_body(folder: Path, mebibytes: int = 100) -> Finding:
    """A body far beyond the limit, with Content-Length and in chunks: refused, and memory does not grow with it."""
    with FakeDaemon(folder) as daemon:
        httpx.post(daemon.url + "/api/v1/metrics", json={"records": [good_record()]})
        before, taken = daemon.memory_mib(), []
        most = before
        for text in (f"Content-Length: {mebibytes << 20}\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"):
            piece = b" " * 65536
            framed = piece if "Length" in text else b"10000\r\n" + piece + b"\r\n"
            with connect(daemon, POST_HEADERS + text.encode()) as client:
                taken.append(mebibytes)
                for sent in range(mebibytes * 16):
                    try:
                        client.sendall(framed)
                    except OSError:
                        taken[-1] = sent // 16
                        break
                    most = max(most, daemon.memory_mib())
        most = max(most, daemon.memory_mib())
        alive = httpx.get(daemon.url + "/readyz").status_code == 200
    growth = most - before
    shown = f"{mebibytes} MB body cut off after {max(taken)} MB at most, memory grew by {growth:.1f} MB"
    return Finding(alive and growth < 16 and max(taken) < mebibytes, shown, {"growth_mib": round(growth, 1)})


def connect(daemon: FakeDaemon, text: bytes = b"") -> socket.socket:
    """A plain connection on which `text` was sent."""
    client = socket.create_connection(("127.0.0.1", daemon.port), timeout=10)
    client.sendall(text)
    return client


# --- slow clients ---------------------------------------------------------------------------------------------------


def slow_clients(folder: Path, count: int = 200, deadline_seconds: float = 2.0) -> Finding:
    """Clients that send headers or bodies byte by byte: others are served, and the slow ones are disconnected."""
    limits = ("--header-seconds", deadline_seconds, "--body-seconds", deadline_seconds)
    with FakeDaemon(folder, *limits) as daemon:
        opened = time.monotonic()
        slow = [connect(daemon, POST_HEADERS) for _ in range(count // 2)]
        slow += [connect(daemon, POST_HEADERS + b"Content-Length: 100\r\n\r\n{") for _ in range(count // 2)]
        with Probe(daemon.port, 0.01) as probe:
            stored = 0
            while time.monotonic() < opened + deadline_seconds * 0.9:
                for client in slow[:: max(1, count // 20)]:  # a byte each
                    with contextlib.suppress(OSError):
                        client.sendall(b" ")
                answer = httpx.post(daemon.url + "/api/v1/metrics", json={"records": [good_record()]})
                stored += answer.status_code == 200
        disconnected = sum(closed_within(client, deadline_seconds * 4) for client in slow)
        for client in slow:
            client.close()
    p99 = milliseconds(probe.taken, 0.99)
    shown = (
        f"{count} slow clients: {len(probe.taken) - probe.failed} of {len(probe.taken)} probes answered, p99 {p99} ms"
    )
    kept = probe.failed == 0 and stored > 0 and disconnected == count
    return Finding(kept, f"{shown}, {disconnected} of {count} disconnected in time", {"p99_ms": p99, "stored": stored})


def closed_within(client: socket.socket, seconds: float) -> bool:
    """Whether the other side closes the connection."""
    client.settimeout(seconds)
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


# --- ten times the load ---------------------------------------------------------------------------------------------

OVERLOAD_P99_MS = 200
_LOADED_RECORDS = 1_000


async def _post_for(port: int, body: bytes, seconds: float, rate: float | None, connections: int) -> Counter[str]:
    """Post `body` for some seconds: each connection after its last answer, or `rate` a second in all.

    Counts answers by status, posts that found no free connection ("not sent") and connections the daemon closed.
    """
    counts: Counter[str] = Counter()
    started = time.perf_counter()
    request = POST_HEADERS + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    due: asyncio.Queue[None] = asyncio.Queue(maxsize=connections)

    async def offer(rate: float) -> None:
        sent = 0
        while (now := time.perf_counter() - started) < seconds:
            while sent < now * rate:
                sent += 1
                if due.full():
                    counts["not sent"] += 1
                else:
                    due.put_nowait(None)
            await asyncio.sleep(0.005)

    async def connection() -> None:
        reader, writer = None, None
        while time.perf_counter() - started < seconds:
            if rate is not None:
                try:
                    await asyncio.wait_for(due.get(), 0.5)
                except TimeoutError:
                    continue
            try:
                if writer is None or reader is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                await writer.drain()
                answer = await reader.readuntil(b"\r\n\r\n")
                length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                status = answer.split(b" ", 2)[1].decode()
                counts[status] += 1
                counts["without retry-after"] += status == "503" and b"retry-after: 1" not in answer.lower()
            except (OSError, asyncio.IncompleteReadError):
                counts["closed"] += 1
                await _closed(writer)
                writer = None
        await _closed(writer)

    work = [connection() for _ in range(connections)]
    await asyncio.gather(*work, *([offer(rate)] if rate else []))
    return counts


async def _closed(writer: asyncio.StreamWriter | None) -> None:
    if writer is not None:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def ten_times_the_load(folder: Path, seconds: float = 10.0, limit_ms: float = OVERLOAD_P99_MS) -> Finding:
    """The maximum rate is measured, then ten times as much is sent: 503 with Retry-After, and probes are answered."""
    body = json.dumps({"records": [good_record(f"ppml{n:04d}") for n in range(_LOADED_RECORDS)]}).encode()
    with FakeDaemon(folder) as daemon:
        asyncio.run(_post_for(daemon.port, body, 1.0, None, 4))
        taken = asyncio.run(_post_for(daemon.port, body, max(2.0, seconds / 4), None, 4))["200"] / max(2.0, seconds / 4)
        memory = daemon.memory_mib()
        with Probe(daemon.port) as probe:
            counts = asyncio.run(_post_for(daemon.port, body, seconds, taken * 10, 200))
        growth = daemon.memory_mib() - memory
        accepted = httpx.get(daemon.url + "/status", timeout=30).json()["records"]
        code, _ = daemon.stop()
    answered = counts["200"] + counts["503"]
    p99, share = milliseconds(probe.taken, 0.99), counts["503"] / max(1, answered)
    shown = (
        f"10 times {taken * _LOADED_RECORDS:,.0f} records/s offered: {share:.0%} of {answered:,} answers 503 with "
        f"Retry-After, "
        f"{counts['200'] * _LOADED_RECORDS / seconds:,.0f} records/s stored, /healthz p99 {p99} ms, "
        f"memory grew by {growth:.0f} MB"
    )
    figures = {**counts, "p99_ms": p99, "max_ms": milliseconds(probe.taken, 1.0), "growth_mib": round(growth, 1)}
    kept = probe.failed == 0 and p99 < limit_ms and counts["503"] > 0 and not counts["without retry-after"]
    kept = kept and growth < 200 and code == 0 and accepted["accepted"] >= counts["200"] * _LOADED_RECORDS
    return Finding(kept, shown, figures)
