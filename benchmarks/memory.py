"""Peak memory of training on about 50 million rows: few servers at a fine step, and many at the default step.

    python benchmarks/memory.py             # both cases, about a quarter of an hour on 2 cores
    python benchmarks/memory.py --quick     # the same with a fortieth of the rows

Each case is simulated into a temporary folder, and tft_trainer.py runs on it in a process of its own: reading, checks,
grid, a few steps of both models, evaluation, publication. The peak is the maximum resident memory that the kernel
reports for that process. floor_bytes is the size of the two arrays that training needs in any case: the grid and its
transformed values. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from server_profiles import DEFAULT_SERVERS  # noqa: E402 - in the parent folder

# --- settings -------------------------------------------------------------------------------------------------------

MEMORY_LIMIT_BYTES = 6_000_000_000
MODEL_STEP_SECONDS, METRICS, FLOAT_BYTES = 300, 6, 4
TRAINING_FLAGS = ("--max-minutes", "0.5", "--holdout-servers", "0.01", "--no-promote", "--device", "cpu")


class Case(NamedTuple):
    """fleets: number of servers, as a multiple of the default fleet's 90."""

    fleets: float
    hours: float
    tick_seconds: int

    def fleet(self) -> dict[str, int]:
        """Servers by profile."""
        return {profile: max(1, round(count * self.fleets)) for profile, count in DEFAULT_SERVERS.items()}


CASES = {
    "90 servers, 720 h at 5 s": Case(1, 720, 5),
    "5,800 servers, 720 h at 5 min": Case(5_800 / 90, 720, 300),
}
QUICK_CASES = {
    "18 servers, 90 h at 5 s": Case(0.2, 90, 5),
    "1,159 servers, 90 h at 5 min": Case(1_160 / 90, 90, 300),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases; returns 1 if one exceeds the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fortieth of the rows")
    arguments = parser.parse_args(argv)
    results = {}
    for name, case in (QUICK_CASES if arguments.quick else CASES).items():
        results[name] = measure(case)
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr)
    reached = all(result["peak_bytes"] <= MEMORY_LIMIT_BYTES for result in results.values())
    print(json.dumps({"limit_bytes": MEMORY_LIMIT_BYTES, "cases": results, "reached": reached}))
    return 0 if reached else 1


def measure(case: Case) -> dict[str, Any]:
    """Simulate and train; returns the number of rows, the size on disk, and the memory and time of training."""
    with tempfile.TemporaryDirectory() as folder:
        training, models = Path(folder) / "training", Path(folder) / "models"
        flags = [text for profile, count in case.fleet().items() for text in (f"--num_{profile}", str(count))]
        length = ["--hours", str(case.hours), "--tick_seconds", str(case.tick_seconds)]
        written = _run("metrics_generator.py", *length, *flags, "--out_dir", str(training))
        trained = _run("tft_trainer.py", "--training-dir", str(training), "--models-dir", str(models), *TRAINING_FLAGS)
        if not Path(trained.report["model_dir"]).is_dir():
            raise RuntimeError(f"tft_trainer.py published nothing: {trained.report}")
        on_disk = sum(file.stat().st_size for file in training.rglob("*") if file.is_file())
    steps = int(case.hours * 3600 / MODEL_STEP_SECONDS)
    return {
        "rows": written.report["rows"],
        "bytes_on_disk": on_disk,
        "peak_bytes": trained.peak_bytes,
        "floor_bytes": 2 * sum(case.fleet().values()) * steps * METRICS * FLOAT_BYTES,
        "seconds": round(trained.seconds, 1),
        "cpu_seconds": round(trained.cpu_seconds, 1),
        "training_minutes": trained.report["minutes"],
        "windows": trained.report["windows"],
    }


class _Finished(NamedTuple):
    report: dict[str, Any]
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def _run(script: str, *flags: str) -> _Finished:
    """Run a script in a process of its own; the last line of its output, and the resources it used."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, script, *flags], cwd=ROOT, stdout=out, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)  # usage of this child only
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        out.seek(0)
        errors.seek(0)
        if child.returncode:
            raise RuntimeError(f"{script} ended with {child.returncode}: {errors.read()[-2000:]}")
        report = json.loads(out.read().splitlines()[-1])
    kibibyte = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes
    return _Finished(report, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * kibibyte)


if __name__ == "__main__":
    sys.exit(main())
