"""Size and time: 10,000 servers with the real network, hours of ingest, clocks that jump."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.testclient import TestClient

from data_contract import METRICS
from fleet_forecast.inference.model_directory import read_config
from fleet_forecast.serving.app import create_app
from fleet_forecast.serving.forecasts.model_manager import ModelLoading
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.serving.storage.store import HistoryStore
from tests.reliability.finding import Finding, growth_mib_per_hour, milliseconds
from tests.reliability.traffic import JSON, Probe
from tests.serving.fake_daemon import DaemonProcess, FakeDaemon
from tests.serving.fake_engine import FakeEngine

# --- 10,000 servers -------------------------------------------------------------------------------------------------

CYCLE_P99_MS, CYCLE_SECONDS, CYCLE_MIB = 50, 15, 2048
ADMIN = "0123456789abcdef"
PREFIXES = ("ppml", "ppdb", "ppweb", "ppcon", "ppetl", "pprisk", "ppgen")


def large_cycle(folder: Path, model: Path, servers: int = 10_000, limit_ms: float = CYCLE_P99_MS) -> Finding:
    """A cycle of a large fleet with a day of history each, in the real engine, with requests to /healthz.

    The history has one sample an hour and those of the last two steps. The encoder's length, on which the time of a
    forecast depends, is determined by a server's first sample.
    """
    config = read_config(model)
    daemon = DaemonProcess(folder, "--admin-token-file", folder / "admin", model=model)
    (folder / "admin").write_text(ADMIN)
    _write_day(daemon.history, config.step_seconds, servers)
    as_admin = {**JSON, "authorization": f"Bearer {ADMIN}"}
    with daemon, httpx.Client(base_url=daemon.url, timeout=60) as client:
        cycles = _wait_for_cycle(client, 0, servers)
        with Probe(daemon.port, 0.01) as probe:
            client.post("/api/v1/reload", headers=as_admin)  # a newly loaded model forecasts the whole fleet
            probing_from = time.perf_counter()
            _wait_for_cycle(client, cycles, servers)
            took = time.perf_counter() - probing_from
        cycle, memory = client.get("/status").json()["cycle"], daemon.memory_mib()
        code, _ = daemon.stop()
    p50, p99 = milliseconds(probe.taken, 0.5), milliseconds(probe.taken, 0.99)
    shown = (
        f"cycle of {servers:,} servers (network {config.hidden_size} wide, {config.context_steps} steps) "
        f"in {cycle['seconds']:.1f} s, {memory:,.0f} MB: /healthz p50 {p50} ms, p99 {p99} ms"
    )
    figures = {"cycle_seconds": cycle["seconds"], "memory_mib": round(memory), "p50_ms": p50, "p99_ms": p99}
    figures |= {"max_ms": milliseconds(probe.taken, 1.0), "probes": len(probe.taken), "seconds": round(took, 1)}
    kept = probe.failed == 0 and p99 < limit_ms and code == 0 and cycle["servers"] == servers and memory < CYCLE_MIB
    return Finding(kept, shown, figures)


def _write_day(path: Path, step_seconds: int, servers: int) -> None:
    store = HistoryStore(path, step_seconds, max_waiting_records=10**9)
    random, now = np.random.default_rng(0), int(time.time())
    names = [f"{PREFIXES[n % len(PREFIXES)]}{n:05d}" for n in range(servers)]
    moments = sorted({now - 3600 * hours for hours in range(1, 25)} | {now - step_seconds * n for n in (1, 2)})
    for moment in moments:
        values = random.uniform(5, 95, (servers, len(METRICS))).round(2).tolist()
        rows = [Sample(n, moment * 1000, None, None, tuple(v)) for n, v in zip(names, values, strict=True)]
        store.append(rows).result(60)
    store.close()


def _wait_for_cycle(client: httpx.Client, cycles: int, servers: int) -> int:
    """Wait for a further cycle of this number of servers; returns the number of cycles so far."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        status = client.get("/status").json()
        if status["cycle"]["cycles"] > cycles and status["servers"]["forecast"] == servers:
            return int(status["cycle"]["cycles"])
        time.sleep(0.1)
    raise AssertionError(f"no cycle of {servers} servers within 300 s: {status}")


# --- soak -----------------------------------------------------------------------------------------------------------

SOAK_SERVERS, SOAK_MIB_PER_HOUR = 1_000, 60.0


def soak(folder: Path, minutes: float = 1.0) -> Finding:
    """Distinct records at the maximum rate, one batch per second of the past; memory is sampled, records are checked.

    Record (server n, second t) holds cpu = (n + 7·t) mod 100, so that the file can be checked by one query.
    """
    first = int(time.time()) - 150 * 3600
    with FakeDaemon(folder, "--max-servers", SOAK_SERVERS) as daemon:
        acknowledged, memory = asyncio.run(_send_seconds(daemon, first, minutes * 60))
        size = daemon.history.stat().st_size
        code, _ = daemon.stop()
    database = sqlite3.connect(daemon.history)
    stored, right = database.execute(
        "SELECT count(*), sum(cpu_pct = (CAST(substr(name, 2) AS INTEGER) + 7 * (timestamp_ms / 1000)) % 100) "
        "FROM samples JOIN servers ON servers.id = server_id"
    ).fetchone()
    whole = database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    later = [mib for moment, mib in memory if moment > minutes * 20]
    slope = growth_mib_per_hour(memory)
    rate = acknowledged / (minutes * 60)
    shown = (
        f"{minutes:g} min at {rate:,.0f} records/s: {right:,} of {acknowledged:,} acknowledged stored correctly, "
        f"memory {later[0]:.0f} to {later[-1]:.0f} MB ({slope:+.1f} MB/h), "
        f"{size / max(1, stored):.0f} bytes a record"
    )
    figures: dict[str, Any] = {
        "records_per_second": round(rate),
        "slope_mib_per_hour": round(slope, 1),
        "acknowledged": acknowledged,
    }
    figures |= {"memory_mib": [round(mib, 1) for _, mib in memory[:: max(1, len(memory) // 20)]], "stored": stored}
    # In a short run a few megabytes of noise are a steep slope, so it is tested from ten minutes on.
    flat = slope < SOAK_MIB_PER_HOUR if minutes >= 10 else later[-1] - later[0] < SOAK_MIB_PER_HOUR
    return Finding(bool(flat and whole and code == 0 and right == stored >= acknowledged), shown, figures)


async def _send_seconds(daemon: FakeDaemon, first: int, seconds: float) -> tuple[int, list[tuple[float, float]]]:
    """Post one batch of all servers for each second from `first` on; (acknowledged records, [(seconds, MiB)])."""
    names = [f's{n}","cpu_pct":' for n in range(SOAK_SERVERS)]
    started, acknowledged = time.perf_counter(), 0
    memory: list[tuple[float, float]] = []
    moments = iter(range(first, first + 140 * 3600))

    async def post(client: httpx.AsyncClient) -> None:
        nonlocal acknowledged
        for moment in moments:
            if time.perf_counter() - started > seconds:
                return
            stamp = f'{{"timestamp":"{datetime.fromtimestamp(moment, UTC).isoformat()}","server_name":"'
            rows = ",".join(f"{stamp}{name}{(n + 7 * moment) % 100}}}" for n, name in enumerate(names))
            answer = await client.post("/api/v1/metrics", content=f'{{"records":[{rows}]}}', headers=JSON)
            assert answer.status_code == 200, answer.text
            acknowledged += answer.json()["accepted"]

    async def watch() -> None:
        while (now := time.perf_counter() - started) < seconds:
            memory.append((now, daemon.memory_mib()))
            await asyncio.sleep(min(5.0, seconds / 30))

    async with httpx.AsyncClient(base_url=daemon.url, timeout=60) as client:
        await asyncio.gather(watch(), *(post(client) for _ in range(4)))
    return acknowledged, memory


# --- clocks ---------------------------------------------------------------------------------------------------------

JUMPS_SECONDS = (
    3_600,
    -3_600,
    86_400,
    -86_400,
    7 * 86_400,
    -7 * 86_400,
    3_650 * 86_400,
    -3_650 * 86_400,
    -7_200,
    7_200,
)


def clock_steps(folder: Path, rounds: int = 3) -> Finding:
    """The system clock of a running daemon jumps forwards and backwards; the samples have correct times."""
    noon = int(time.time()) // 300 * 300
    now = [float(noon)]
    settings = Settings(
        model=folder,
        history=folder / "h.sqlite",
        grace_seconds=0.0,
        recheck_seconds=0.05,
        allowed_hosts=("testserver",),
    )
    statuses: set[int] = set()
    acknowledged: dict[int, float] = {}
    forecast_again = jumps = 0
    app = create_app(settings, loading=ModelLoading(folder, lambda _path: FakeEngine()), clock=lambda: now[0])  # type: ignore[return-value]
    with TestClient(app, raise_server_exceptions=False) as client:

        def measure() -> None:
            value, moment = float(len(acknowledged) % 100), noon - 600 - len(acknowledged)
            stamp = datetime.fromtimestamp(moment, UTC).isoformat()
            record = {"timestamp": stamp, "server_name": "a", "cpu_pct": value}
            answer = client.post("/api/v1/metrics", content=json.dumps({"records": [record]}), headers=JSON)
            statuses.add(answer.status_code)
            if answer.json()["accepted"]:
                acknowledged[moment] = value

        def forecast() -> bool:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                answer = client.get("/api/v1/servers/a/forecast")
                statuses.add(answer.status_code)
                if answer.status_code == 200 and not answer.json()["stale"]:
                    return True
                time.sleep(0.02)
            return False

        measure()
        assert forecast()
        for jump in JUMPS_SECONDS * rounds:
            now[0] += jump
            jumps += 1
            for path in ("/api/v1/forecasts", "/metrics", "/status", "/api/v1/servers/a/history?hours=1"):
                statuses.add(client.get(path).status_code)
            measure()
            time.sleep(0.1)
            now[0] = float(noon)
            measure()
            forecast_again += forecast()
        history = client.get("/api/v1/servers/a/history", params={"hours": 24, "raw": True}).json()
    times = [int(datetime.fromisoformat(text).timestamp()) for text in history["timestamps"]]
    stored = dict(zip(times, history["metrics"]["cpu_pct"], strict=True))
    lost = sum(stored.get(moment) != value for moment, value in acknowledged.items())
    server_errors = sorted(status for status in statuses if status >= 500 and status != 503)
    shown = (
        f"{jumps} jumps of the clock by up to 10 years: {lost} of {len(acknowledged)} acknowledged records lost, "
        f"forecast again after {forecast_again} of {jumps}, {len(server_errors)} server errors"
    )
    return Finding(not lost and forecast_again == jumps and not server_errors, shown, {"statuses": sorted(statuses)})
