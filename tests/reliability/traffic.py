"""Samples sent to a running daemon, a ledger of the acknowledged ones, and a probe of response times."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import httpx

JSON = {"content-type": "application/json"}
BATCH_RECORDS = 50


class Ledger:
    """Numbered batches: batch b holds a record of each of 50 servers at base + b ms, with values that b determines."""

    def __init__(self):
        self.base_ms = (int(time.time()) - 20 * 3600) * 1000
        self.acknowledged: set[int] = set()
        self._next, self._lock = 0, threading.Lock()

    def new_batch(self):
        with self._lock:
            self._next += 1
            return self._next

    def body(self, batch):
        moment = datetime.fromtimestamp((self.base_ms + batch) / 1000, UTC).isoformat(timespec="milliseconds")
        records = [
            {"timestamp": moment, "server_name": f"s{n}", "cpu_pct": (batch * 7 + n) % 100}
            for n in range(BATCH_RECORDS)
        ]
        return json.dumps({"records": records})

    def missing(self, history: Path):
        """Acknowledged batches that are incomplete, batches stored in part, samples without a mean, and damage.

        The daemon must have ended.
        """
        query = (
            "SELECT timestamp_ms - :base, count(*), "
            "sum(cpu_pct = ((timestamp_ms - :base) * 7 + CAST(substr(name, 2) AS INTEGER)) % 100) "
            "FROM samples JOIN servers ON servers.id = server_id "
            "WHERE timestamp_ms > :base AND name GLOB 's[0-9]*' GROUP BY timestamp_ms"
        )
        in_means = "SELECT step FROM pending UNION SELECT step FROM steps"
        behind = f"SELECT count(*) FROM samples WHERE step NOT IN ({in_means})"
        database = sqlite3.connect(history)
        try:
            whole, torn = set(), 0
            for batch, count, right in database.execute(query, {"base": self.base_ms}):
                if count == right == BATCH_RECORDS:
                    whole.add(batch)
                else:
                    torn += 1
            problems = [row for (row,) in database.execute("PRAGMA integrity_check") if row != "ok"]
            without_mean = database.execute(behind).fetchone()[0]
        finally:
            database.close()
        return {
            "acknowledged": len(self.acknowledged) * BATCH_RECORDS,
            "lost": len(self.acknowledged - whole) * BATCH_RECORDS,
            "torn_batches": torn,
            "samples_in_no_mean": without_mean,
            "damage": problems,
        }


def nothing_lost(found):
    """Whether `Ledger.missing` found no loss and no damage."""
    return not (found["lost"] or found["torn_batches"] or found["samples_in_no_mean"] or found["damage"])


class Ingest:
    """Posts batches from several threads until the block ends; acknowledged batches are entered in the ledger."""

    def __init__(self, daemon, ledger, threads=2):
        self.answers: Counter[int] = Counter()
        self.without_retry_after = 0
        self._daemon, self._ledger = daemon, ledger
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._post) for _ in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def _post(self):
        with httpx.Client(base_url=self._daemon.url, timeout=30, verify=False) as client:
            while not self._stopped.is_set():
                batch = self._ledger.new_batch()
                try:
                    answer = client.post("/api/v1/metrics", content=self._ledger.body(batch), headers=JSON)
                except httpx.TransportError:  # the daemon ended
                    self._stopped.wait(0.02)
                    continue
                self.answers[answer.status_code] += 1
                if answer.status_code == 200 and answer.json()["accepted"] == BATCH_RECORDS:
                    self._ledger.acknowledged.add(batch)
                elif answer.status_code == 503:
                    self.without_retry_after += "retry-after" not in answer.headers
                    self._stopped.wait(0.02)

    def until(self, condition, seconds=60.0):
        """Continue until `condition(self)` holds."""
        deadline = time.monotonic() + seconds
        while not condition(self):
            assert time.monotonic() < deadline, f"answers so far: {dict(self.answers)}"
            time.sleep(0.01)

    def __exit__(self, *_):
        self._stopped.set()
        for thread in self._threads:
            thread.join()


_PROBE = """
import http.client, json, sys, time
port, pause = int(sys.argv[1]), float(sys.argv[2])
taken, failed = [], 0
import threading
stopped = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
print("ready", flush=True)
while not stopped.is_set():
    begun = time.perf_counter()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/healthz")
        failed += connection.getresponse().status != 200
        connection.close()
    except OSError:
        failed += 1
    taken.append(time.perf_counter() - begun)
    stopped.wait(max(0.0, pause - taken[-1]))
print(json.dumps([taken, failed]))
"""


class Probe:
    """Requests /healthz repeatedly on new connections from a separate process; taken: response times in seconds."""

    def __init__(self, port, pause_seconds=0.02):
        self.taken: list[float] = []
        self.failed = 0
        self._command = [sys.executable, "-c", _PROBE, str(port), str(pause_seconds)]

    def __enter__(self):
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_):
        try:
            output, _ = self._process.communicate(timeout=30)
        finally:
            self._process.kill()
        self.taken, self.failed = json.loads(output)
