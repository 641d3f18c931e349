"""A fleet in parts against the whole fleet in memory: processor time, wall time, memory, by number of Ray workers.

    python benchmarks/serving/scale.py --model models/current                           # 10,000 servers, a week each
    python benchmarks/serving/scale.py --model models/current --servers 100000 --hours 26 --engines parts,ray

The servers are copies of a simulated fleet under other names, in parquet files of 500 servers. Every engine forecasts
all of them in a process of its own. overhead is its processor time, with all its processes, divided by that of the
engine `memory`. Ray's own processes are counted too. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fleet_forecast.flags import positive_float, positive_int  # noqa: E402 - in the parent folder

SIMULATED_SERVERS_FLAGS = ("--seed", "7")
ENGINES = {
    "memory": ("--engine", "memory", "--threads", "1"),
    "parts": ("--engine", "parts", "--threads", "1"),
    "ray_1": ("--engine", "ray", "--workers", "1"),
    "ray_2": ("--engine", "ray", "--workers", "2"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the fleet, run each engine, print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "current", help="model directory (%(default)s)")
    parser.add_argument("--servers", type=positive_int, default=10_000, help="servers of the fleet (%(default)s)")
    parser.add_argument("--part-servers", type=positive_int, default=500, help="servers in one file (%(default)s)")
    parser.add_argument("--hours", type=positive_float, default=170.0, help="history of each server (%(default)s)")
    parser.add_argument("--engines", default=",".join(ENGINES), help="comma-separated (%(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        parts = make_parts(Path(folder), arguments)
        runs = {}
        for engine in arguments.engines.split(","):
            output = Path(folder) / (f"{engine}.parquet" if engine == "memory" else engine)
            command = ["--model", arguments.model.resolve(), "--input", parts, "--output", output, *ENGINES[engine]]
            runs[engine] = measured([str(word) for word in command])
            print(f"{engine}: {runs[engine]}", file=sys.stderr)
    whole = runs.get("memory")
    for run in runs.values():
        run["servers_per_second"] = round(arguments.servers / run["wall_seconds"])
        run["overhead"] = round(run["cpu_seconds"] / whole["cpu_seconds"], 3) if whole else None
    print(
        json.dumps({"servers": arguments.servers, "hours": arguments.hours, "cores": os.cpu_count(), "engines": runs})
    )
    return 0


def make_parts(folder: Path, arguments: argparse.Namespace) -> Path:
    """Simulate a fleet and copy its servers under other names; returns the folder of the parts."""
    simulated, parts = folder / "simulated", folder / "parts"
    parts.mkdir()
    command = [sys.executable, "metrics_generator.py", *SIMULATED_SERVERS_FLAGS, "--hours", str(arguments.hours)]
    subprocess.run([*command, "--out_dir", str(simulated)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    fleet = pd.read_parquet(simulated / "server_metrics.parquet")
    names = sorted(fleet["server_name"].unique())
    by_server = dict(iter(fleet.astype({"server_name": str}).groupby("server_name", sort=False)))
    for first in range(0, arguments.servers, arguments.part_servers):
        chosen = range(first, min(first + arguments.part_servers, arguments.servers))
        rows = [
            by_server[names[server % len(names)]].assign(server_name=f"{names[server % len(names)]}-{server:07d}")
            for server in chosen
        ]
        pd.concat(rows, ignore_index=True).to_parquet(parts / f"part-{first:07d}.parquet", index=False)
    return parts


def measured(flags: list[str]) -> dict[str, Any]:
    """Run tft_inference.py in a process of its own; processor time with its children's, and peak memory of one."""
    program = (
        "import json, resource, sys, tft_inference\n"
        "code = tft_inference.main(sys.argv[1:])\n"
        "own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
        "print(json.dumps({'code': code, 'peak_mib': max(own.ru_maxrss, children.ru_maxrss) // 1024}))\n"
    )
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    *_, line = done.stdout.splitlines()
    result = json.loads(line)
    if result["code"]:
        raise SystemExit(f"error: tft_inference.py ended with {result['code']}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_seconds": round(cpu, 1), "wall_seconds": round(wall, 1), "peak_mib": result["peak_mib"]}


if __name__ == "__main__":
    raise SystemExit(main())
