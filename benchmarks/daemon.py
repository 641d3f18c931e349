"""Speed of the daemon over HTTP: ingest, reads during a forecast cycle, restart.

    python benchmarks/daemon.py --model models/current
    python benchmarks/daemon.py --model models/current --servers 1000 --ingest-seconds 3600

Ingest: batches of 1,000 records, each answered after its fsync. Reads: 200 requests a second during a forecast cycle.
Restart: kill -9, then the time until every server has a forecast. Processor times are those of the daemon: they depend
less on other load of the machine. Prints one JSON line. The upper limit of ingest is
SQLite's rate with one commit per 1,000 rows, about 50,000 rows a second on a machine with two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_contract import METRICS  # noqa: E402
from fleet_forecast.iso_time import iso  # noqa: E402

BATCH_RECORDS = 1_000
READS_PER_SECOND = 200
STEP_SECONDS = 300
PREFIXES = ("ppml", "ppdb", "ppweb", "ppcon", "ppetl", "pprisk", "ppgen")


class DaemonProcess:
    """The daemon on a free port, with its own history file."""

    def __init__(self, model: Path, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        flags = ["--model", model, "--history", folder / "h.sqlite", "--port", self.port, "--recheck-seconds", 1]
        self.command = [sys.executable, str(ROOT / "tft_inference.py"), "--daemon", *map(str, flags)]
        self.log = folder / "log"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, stderr=log)

    def restart(self) -> None:
        """Kill -9 and start again."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self._start()

    def wait_until(self, condition: Any, seconds: float = 60.0) -> float:
        """Seconds until `condition(client)` holds."""
        started = time.perf_counter()
        with httpx.Client(base_url=self.url, timeout=10.0) as client:
            while time.perf_counter() - started < seconds:
                try:
                    if condition(client):
                        return time.perf_counter() - started
                except httpx.TransportError:
                    if self.process.poll() is not None:
                        raise RuntimeError(f"the daemon ended: {self.log.read_text()[-2000:]}") from None
                time.sleep(0.05)
        raise RuntimeError(f"not within {seconds} s: {self.log.read_text()[-2000:]}")

    def memory_mib(self) -> float:
        """Resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(text.split("VmRSS:")[1].split()[0]) / 1024

    def cpu_seconds(self) -> float:
        """Processor time that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> float:
        """Send SIGTERM; returns the seconds until the process ends."""
        started = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.perf_counter() - started


def server_names(count: int) -> list[str]:
    """Names of servers of all profiles in turn."""
    return [f"{PREFIXES[n % len(PREFIXES)]}{n:05d}" for n in range(count)]


def batches(names: Sequence[str], first_second: int, ticks: int, tick_seconds: int) -> list[bytes]:
    """Request bodies of 1,000 records: all servers at one tick, then at the next."""
    random = np.random.default_rng(0)
    bodies: list[bytes] = []
    records: list[str] = []
    for tick in range(ticks):
        moment = iso(first_second + tick * tick_seconds)
        values = random.uniform(5, 95, (len(names), len(METRICS))).round(2)
        for name, row in zip(names, values.tolist(), strict=True):
            fields = ",".join(f'"{metric}":{value}' for metric, value in zip(METRICS, row, strict=True))
            records.append(f'{{"timestamp":"{moment}","server_name":"{name}",{fields}}}')
            if len(records) == BATCH_RECORDS:
                bodies.append(f'{{"records":[{",".join(records)}]}}'.encode())
                records = []
    if records:
        bodies.append(f'{{"records":[{",".join(records)}]}}'.encode())
    return bodies


async def ingest(url: str, bodies: Sequence[bytes], seconds: float | None, connections: int = 4) -> dict[str, Any]:
    """Post the bodies (repeatedly for `seconds`, if given): records per second and response times."""
    response_seconds: list[float] = []
    accepted = 0
    queue = iter(range(len(bodies) if seconds is None else 10**12))
    started = time.perf_counter()

    async def post(client: httpx.AsyncClient) -> None:
        nonlocal accepted
        for index in queue:
            if seconds is not None and time.perf_counter() - started > seconds:
                return
            sent = time.perf_counter()
            headers = {"content-type": "application/json"}
            response = await client.post("/api/v1/metrics", content=bodies[index % len(bodies)], headers=headers)
            response_seconds.append(time.perf_counter() - sent)
            if response.status_code != 200 or response.json()["rejected"]:
                raise RuntimeError(f"not accepted: {response.status_code} {response.text[:500]}")
            accepted += response.json()["accepted"]

    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
        await asyncio.gather(*(post(client) for _ in range(connections)))
    took = time.perf_counter() - started
    return {
        "records": accepted,
        "records_per_second": round(accepted / took),
        "batch_p99_ms": _quantile_ms(response_seconds, 0.99),
    }


async def read(port: int, names: Sequence[str], seconds: float, connections: int = 20) -> list[float]:
    """Read single forecasts at a steady rate; returns the seconds from the scheduled time to each response.

    Uses plain sockets: an HTTP client needs more CPU time than the daemon.
    """
    taken: list[float] = []
    queue = iter(range(round(seconds * READS_PER_SECOND)))
    started = time.perf_counter()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for index in queue:
            due = started + index / READS_PER_SECOND
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            path = f"/api/v1/servers/{names[index % len(names)]}/forecast?metric=cpu_pct"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            taken.append(time.perf_counter() - due)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(body[:300].decode())
        writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))
    return taken


def _quantile_ms(seconds: Sequence[float], quantile: float) -> float:
    return round(float(np.quantile(seconds, quantile)) * 1000, 2)


def forecast_count(client: httpx.Client) -> int:
    """Number of servers that the daemon has a forecast of."""
    return int(client.get("/status").json()["servers"]["forecast"])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/current", help="model directory")
    parser.add_argument("--servers", type=int, default=1_000, help="size of the fleet")
    parser.add_argument(
        "--ingest-seconds", "--ingest_seconds", type=float, default=20.0, help="length of the ingest run"
    )
    parser.add_argument("--hours", type=float, default=24.0, help="history each server gets before the restart")
    arguments = parser.parse_args(argv)
    if not arguments.model.exists():
        print(
            f"error: {arguments.model} does not exist; train one with tft_trainer.py or give --model", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(DaemonProcess(arguments.model, Path(folder)), arguments)))
    return 0


def measure(daemon: DaemonProcess, arguments: argparse.Namespace) -> dict[str, Any]:
    """All measurements of one daemon."""
    names = server_names(arguments.servers)
    figures: dict[str, Any] = {"servers": len(names), "cores": os.cpu_count()}
    try:
        figures["ready_seconds"] = round(daemon.wait_until(lambda c: c.get("/readyz").status_code == 200), 2)
        now = int(time.time()) // STEP_SECONDS * STEP_SECONDS
        print("backfill", file=sys.stderr)
        ticks = int(arguments.hours * 3600 / STEP_SECONDS)
        history = batches(names, now - ticks * STEP_SECONDS, ticks, STEP_SECONDS)
        figures["backfill"] = asyncio.run(ingest(daemon.url, history, None))
        daemon.wait_until(lambda client: forecast_count(client) == len(names), seconds=300.0)

        print("ingest", file=sys.stderr)
        live = batches(names, now, max(2, 50_000 // len(names)), 1)
        figures["memory_mib_before"] = round(daemon.memory_mib(), 1)
        used = daemon.cpu_seconds()
        figures["ingest"] = asyncio.run(ingest(daemon.url, live, arguments.ingest_seconds))
        figures["ingest"]["cpu_us_per_record"] = round(
            1e6 * (daemon.cpu_seconds() - used) / figures["ingest"]["records"]
        )
        figures["memory_mib_after"] = round(daemon.memory_mib(), 1)

        print("restart", file=sys.stderr)
        daemon.restart()
        restarted = time.perf_counter()
        daemon.wait_until(lambda client: client.get("/readyz").status_code == 200)
        # The restarted daemon computes its first cycle now; reads are measured during a cycle.
        print("reads", file=sys.stderr)
        daemon.wait_until(lambda client: forecast_count(client) == len(names), seconds=300.0)
        figures["restart_to_all_forecast_seconds"] = round(time.perf_counter() - restarted, 2)
        with httpx.Client(base_url=daemon.url) as client:
            figures["cycle"] = client.get("/status").json()["cycle"]
        # Late samples of every server start the next cycle at once.
        asyncio.run(ingest(daemon.url, batches(names, now - STEP_SECONDS + 7, 1, 1), None))
        seconds = max(3.0, figures["cycle"]["seconds"] + 1.5)
        used = daemon.cpu_seconds()
        taken = asyncio.run(read(daemon.port, names, seconds))
        figures["cycle_and_reads_cpu_seconds"] = round(daemon.cpu_seconds() - used, 2)
        figures["reads"] = {"count": len(taken), **{f"p{q}_ms": _quantile_ms(taken, q / 100) for q in (50, 95, 99)}}
        figures["stop_seconds"] = round(daemon.stop(), 2)
    finally:
        daemon.process.kill()
        daemon.process.wait()
    return figures


if __name__ == "__main__":
    sys.exit(main())
