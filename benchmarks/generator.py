"""Speed and memory of the generator, from the command line to files on disk.

    python benchmarks/generator.py             # the three cases below, about a minute on 2 cores
    python benchmarks/generator.py --quick     # the same fleets, a tenth as long

Each case runs metrics_generator.py in separate processes; memory is the sampled sum over all of them. The rows are
counted and their schema is checked. Rows per second are wall-clock; rows per CPU second do not depend on other load of
the machine. The limit is the rate at which one core draws normal numbers, one per noise source and row: no simulation
is faster. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_contract import arrow_schema, read_metadata  # noqa: E402 - in the parent folder
from fleet_forecast.simulation.metric_model import simulated  # noqa: E402
from fleet_forecast.simulation.noise import sources  # noqa: E402
from server_profiles import DEFAULT_SERVERS, ServerProfile  # noqa: E402

# --- settings: case, flags, targets ---------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "90 servers, 720 h at 5 s, all cores": {"hours": 720, "tick": 5, "scale": 1, "workers": None, "seconds": 120},
    "90 servers, 240 h at 5 s, one core": {
        "hours": 240, "tick": 5, "scale": 1, "workers": 1, "rows_per_cpu_second": 1e6
    },
    "10,000 servers, 24 h at 5 min, all cores": {
        "hours": 24, "tick": 300, "scale": 10_000 / 90, "workers": None, "seconds": 10
    },
}  # fmt: skip
MEMORY_LIMIT_BYTES = 1_000_000_000
SAMPLE_SECONDS = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases; returns 0 if all reach their targets, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of each length, without targets")
    arguments = parser.parse_args(argv)
    results = {name: measure(case, 0.1 if arguments.quick else 1.0) for name, case in CASES.items()}
    for name, result in results.items():
        print(f"{name}: {json.dumps(result)}", file=sys.stderr)
    reached = arguments.quick or all(result["reached"] for result in results.values())
    print(
        json.dumps(
            {
                "cores": os.cpu_count(),
                "limit_rows_per_second_and_core": normal_limit(),
                "cases": results,
                "reached": reached,
            }
        )
    )
    return 0 if reached else 1


def measure(case: dict[str, Any], share: float) -> dict[str, Any]:
    """One case: rows, seconds, rows per second, peak memory, bytes per row."""
    hours = case["hours"] * share
    fleet = {profile: round(count * case["scale"]) for profile, count in DEFAULT_SERVERS.items()}
    servers = 10_000 if case["scale"] > 1 else sum(fleet.values())
    fleet[ServerProfile.GENERIC] += servers - sum(fleet.values())
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "metrics_generator.py", "--hours", str(hours), "--tick_seconds", str(case["tick"])]
        command += [text for profile, count in fleet.items() for text in (f"--num_{profile}", str(count))]
        command += ["--out_dir", folder] + (["--workers", str(case["workers"])] if case["workers"] else [])
        began, cpu_before = time.perf_counter(), _cpu_seconds_of_children()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            memory = PeakMemory(child.pid)
            out, err = child.communicate()
            seconds = time.perf_counter() - began
            peak = memory.stop()
        cpu_seconds = _cpu_seconds_of_children() - cpu_before
        if child.returncode != 0:
            raise RuntimeError(f"metrics_generator.py ended with {child.returncode}: {err}")
        report = json.loads(out.splitlines()[-1])
        rows, size = _check(Path(report["path"]), Path(folder), servers * int(hours * 3600 / case["tick"] + 1e-6))
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "rows_per_cpu_second": round(rows / cpu_seconds),
        "peak_memory_bytes": peak,
        "bytes_per_row": round(size / rows, 1),
        "reached": bool(
            seconds <= case.get("seconds", np.inf)
            and rows / cpu_seconds >= case.get("rows_per_cpu_second", 0)
            and peak <= MEMORY_LIMIT_BYTES
        ),
    }


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _check(path: Path, folder: Path, expected_rows: int) -> tuple[int, int]:
    """Rows and bytes on disk; raises RuntimeError if rows or schema are not the expected ones."""
    data = ds.dataset(path, format="parquet")
    rows = data.count_rows()
    if rows != expected_rows or read_metadata(folder).rows != rows:
        raise RuntimeError(f"{rows} rows written, {expected_rows} expected, {read_metadata(folder).rows} in metadata")
    if not data.schema.equals(arrow_schema(simulated().names)):
        raise RuntimeError(f"schema is not the contract's: {data.schema}")
    files = [path] if path.is_file() else list(path.iterdir())
    return rows, sum(file.stat().st_size for file in files)


class PeakMemory:
    """Highest sum of the resident memory of a process and its descendants, sampled."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._ended = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """End the sampling; returns bytes."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, sum(_resident(pid) for pid in _tree(self._pid)))


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # the process has ended
        return [pid]
    return [pid, *(descendant for child in children for descendant in _tree(child))]


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def normal_limit(numbers: int = 20_000_000) -> int:
    """Rows per second and core if only their normal numbers were drawn."""
    stream = np.random.Generator(np.random.SFC64(1))
    buffer = np.empty(numbers // 20, dtype=np.float32)
    began = time.perf_counter()
    for _ in range(20):
        stream.standard_normal(dtype=np.float32, out=buffer)
    return round(numbers / (time.perf_counter() - began) / len(sources().correlation_minutes))


if __name__ == "__main__":
    sys.exit(main())
