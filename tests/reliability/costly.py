"""Requests and names that cost much: raw history, thousands of names, careless patterns, wide spans of time."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from fleet_forecast.iso_time import iso, iso_milliseconds
from tests.reliability.finding import Finding, milliseconds
from tests.reliability.traffic import JSON, Probe
from tests.serving.fake_daemon import DaemonProcess, FakeDaemon

GROWTH_MIB, NAMES_MIB = 300, 1_500
PROBE_P99_MS = 200


def raw_history(folder: Path, samples: int = 300_000, clients: int = 6, limit_ms: float = PROBE_P99_MS) -> Finding:
    """Clients that read all samples of a server with many: memory and probes meanwhile."""
    with FakeDaemon(folder) as daemon, httpx.Client(base_url=daemon.url, timeout=60) as client:
        first = int(time.time() - 7200)
        for start in range(0, samples, 10_000):
            records = [
                {"timestamp": iso_milliseconds(first + n / 100), "server_name": "a", "cpu_pct": 1}
                for n in range(start, min(start + 10_000, samples))
            ]
            assert client.post("/api/v1/metrics", json={"records": records}).status_code == 200
        before = daemon.memory_mib()
        with Probe(daemon.port) as probe, ThreadPoolExecutor(clients) as pool:
            read = list(pool.map(_read_all, [daemon.url] * clients))
        growth = daemon.memory_mib() - before
    p99 = milliseconds(probe.taken, 0.99)
    shown = f"{clients} clients read {samples:,} samples each: {growth:+.0f} MB, /healthz p99 {p99} ms"
    kept = set(read) == {samples} and growth < GROWTH_MIB and p99 < limit_ms and probe.failed == 0
    return Finding(kept, shown, {"growth_mib": round(growth), "p99_ms": p99, "read": read})


def _read_all(url: str) -> int:
    """Number of samples on all pages."""
    found, query = 0, {"raw": "true", "hours": "24"}
    with httpx.Client(base_url=url, timeout=60) as client:
        while True:
            page = client.get("/api/v1/servers/a/history", params=query).json()
            found += len(page["timestamps"])
            if page["next"] is None:
                return found
            query["after"] = page["next"]


def many_names(folder: Path, names: int = 20_000, limit_mib: float = NAMES_MIB) -> Finding:
    """As many long names as the limit allows, each with a profile of its own: memory, /metrics, and a new server."""
    with FakeDaemon(folder, "--max-servers", names) as daemon, httpx.Client(base_url=daemon.url, timeout=60) as client:
        moment = iso(time.time() - 700)
        for start in range(0, names, 10_000):
            records = [
                {"timestamp": moment, "server_name": f"h{n:05d}-{'x' * 200}", "cpu_pct": 1, "profile": f"p{n}"}
                for n in range(start, min(start + 10_000, names))
            ]
            assert client.post("/api/v1/metrics", json={"records": records}).json()["accepted"] == len(records)
        deadline = time.monotonic() + 120
        while client.get("/status").json()["servers"]["forecast"] < names and time.monotonic() < deadline:
            time.sleep(0.2)
        with client.stream("GET", "/metrics") as page:
            size = sum(len(piece) for piece in page.iter_raw())
        profiles = client.get("/api/v1/profiles").json()["profiles"]
        records = [
            {"timestamp": iso(time.time()), "server_name": n, "cpu_pct": 1} for n in ("h00000-" + "x" * 200, "n")
        ]
        client.post("/api/v1/metrics", json={"records": records[:1]})
        new = client.post("/api/v1/metrics", json={"records": records[1:]}).json()["accepted"]
        memory = daemon.memory_mib()
    shown = (
        f"{names:,} names: {memory:,.0f} MB, /metrics {size / 1e6:,.0f} MB, a new server {'got' if new else 'no'} place"
    )
    kept = bool(new) and memory < limit_mib and len(profiles) < 200
    return Finding(kept, shown, {"memory_mib": round(memory), "metrics_mb": round(size / 1e6), "new": new})


def careless_pattern(folder: Path) -> Finding:
    """A pattern with nested repetition, and a name that a backtracking matcher would not finish."""
    (folder / "fleet.toml").write_text("[profiles.database]\npatterns = ['([a-z0-9]+[-.]?)+-db\\d+']\n")
    with FakeDaemon(folder, "--fleet", folder / "fleet.toml") as daemon:
        with httpx.Client(base_url=daemon.url, timeout=10) as client:
            record = {"timestamp": iso(time.time() - 60), "server_name": "a" * 250 + "_", "cpu_pct": 1}
            accepted = client.post("/api/v1/metrics", json={"records": [record]}).json()
            time.sleep(2)
            status = client.get("/healthz").status_code
        code, took = daemon.stop()
    shown = f"a name chosen for a careless pattern: /healthz {status}, SIGTERM exit code {code} after {took:.1f} s"
    return Finding(status == 200 and code == 0 and took < 10, shown, {"answer": accepted})


def date_span(folder: Path, model: Path) -> Finding:
    """A forecast of two servers, one of 1970 and one of 2099."""
    with DaemonProcess(folder, model=model) as daemon, httpx.Client(base_url=daemon.url, timeout=60) as client:
        moments = {"old": "1970-01-02T00:00:00Z", "new": "2099-12-30T00:00:00Z"}
        records = [{"timestamp": at, "server_name": name, "cpu_pct": 5} for name, at in moments.items()]
        client.post("/api/v1/forecast", content=json.dumps({"records": records[:1]}), headers=JSON)
        before, started = daemon.memory_mib(), time.perf_counter()
        status = client.post("/api/v1/forecast", content=json.dumps({"records": records}), headers=JSON).status_code
        took, growth = time.perf_counter() - started, daemon.memory_mib() - before
    shown = f"a forecast from 1970 to 2099: {status} after {took:.2f} s, {growth:+.0f} MB"
    return Finding(status == 422 and growth < 50 and took < 5, shown, {"growth_mib": round(growth)})
