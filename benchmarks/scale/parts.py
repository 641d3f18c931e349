"""A fleet in parts against the whole fleet in memory: processor time, wall time, memory, by number of Ray workers.

    python benchmarks/scale/parts.py --model models/current                           # 10,000 servers, a week each
    python benchmarks/scale/parts.py --model models/current --servers 100000 --hours 26 --engines parts --rounds 1
    python benchmarks/scale/parts.py --model models/current --blocks                  # processor time of one file

The servers are copies of a simulated fleet under other names, in parquet files of 500 servers. Every engine forecasts
all of them in processes of its own, the engines in turn in each round. Processor time and memory are those of all
processes of an engine, Ray's own included, looked up ten times a second; memory counts what processes share more than
once. overhead is the processor time divided by that of the engine `memory`, the median of the rounds. The last line
on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fleet_forecast.contract.definitions import fleet_in_use  # noqa: E402 - in the parent folder
from fleet_forecast.contract.reading import read_metrics  # noqa: E402
from fleet_forecast.flags import positive_float, positive_int  # noqa: E402
from fleet_forecast.scale.forecast_parts import ModelFiles, PartForecaster, PartsJob  # noqa: E402
from fleet_forecast.scale.parts import Folder  # noqa: E402
from fleet_forecast.scale.peers_of_parts import (  # noqa: E402
    Reading,
    choose_members,
    rows_of_members,
    servers_of,
    table_of,
)

Result = TypeVar("Result")

SIMULATED_SERVERS_FLAGS = ("--seed", "7")
LOOK_SECONDS = 0.1
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
    parser.add_argument("--rounds", type=positive_int, default=2, help="runs of each engine (%(default)s)")
    parser.add_argument("--blocks", action="store_true", help="measure the steps of one file of --part-servers instead")
    arguments = parser.parse_args(argv)
    if arguments.blocks:
        print(json.dumps(block_costs(arguments)))
        return 0
    engines = arguments.engines.split(",")
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as folder:
        fleet = make_parts(Path(folder), arguments)
        for _ in range(arguments.rounds):
            for engine in engines:
                with tempfile.TemporaryDirectory(dir=folder) as output:
                    target = Path(output) / ("forecasts.parquet" if engine == "memory" else "forecasts")
                    flags = ["--model", arguments.model.resolve(), "--input", fleet, "--output", target]
                    runs[engine].append(measured([str(word) for word in (*flags, *ENGINES[engine])]))
                print(f"{engine}: {runs[engine][-1]}", file=sys.stderr, flush=True)
    print(json.dumps(summary(runs, arguments.servers, arguments.hours)))
    return 0


def summary(runs: dict[str, list[dict[str, float]]], servers: int, hours: float) -> dict[str, Any]:
    """Medians by engine, and the ratio of processor times to the engine `memory` in the same round."""
    engines = {}
    for engine, of_engine in runs.items():
        median: dict[str, Any] = {name: statistics.median(run[name] for run in of_engine) for name in of_engine[0]}
        pairs = zip(of_engine, runs.get("memory", []), strict=False)
        ratios = [run["cpu_seconds"] / whole["cpu_seconds"] for run, whole in pairs]
        engines[engine] = median | {
            "servers_per_second": round(servers / median["wall_seconds"]),
            "servers_per_cpu_second": round(servers / median["cpu_seconds"]),
            "overhead": round(statistics.median(ratios), 3) if ratios else None,
        }
    load = round(os.getloadavg()[0], 1)
    rounds = len(next(iter(runs.values())))
    return {"servers": servers, "hours": hours, "cores": os.cpu_count(), "load": load, "rounds": rounds} | engines


def block_costs(arguments: argparse.Namespace) -> dict[str, float]:
    """Processor seconds of each step of one file in this process, one thread; megabytes of input and output."""
    arguments.servers = arguments.part_servers
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Result]) -> Result:
        began = time.process_time()
        result = work()
        seconds[f"{name}_cpu_seconds"] = round(time.process_time() - began, 2)
        return result

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fleet, reading, model = make_parts(folder, arguments), Reading(fleet_in_use().rules, None), folder / "model"
        (part,) = Folder(str(fleet)).parts()
        (members,) = choose_members([timed("names", lambda: servers_of(part, reading))])
        rows = timed("members", lambda: rows_of_members(members, reading))
        files = ModelFiles.read(arguments.model)
        model.mkdir()
        config = files.load(model, 1).config
        table = timed("table_of_peers", lambda: table_of([rows], config, reading.rules))
        forecaster = PartForecaster(PartsJob(files, reading, str(folder / "out")), table, 1)
        timed("reading", lambda: read_metrics(fleet, *reading))
        timed("reading_and_forecast", lambda: forecaster(part))
        megabytes = {
            "input_mb": sum(file.stat().st_size for file in fleet.glob("*.parquet")) / 1e6,
            "output_mb": sum(file.stat().st_size for file in (folder / "out").glob("*.parquet")) / 1e6,
        }
    return {"servers": arguments.servers, "hours": arguments.hours, **seconds, **megabytes}


def make_parts(folder: Path, arguments: argparse.Namespace) -> Path:
    """Simulate a fleet and copy its servers under other names; returns the folder of the parts."""
    simulated, parts = folder / "simulated", folder / "fleet"
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


def measured(flags: list[str]) -> dict[str, float]:
    """Run tft_inference.py; processor time of all its processes, and their largest memory together."""
    started, peak = time.perf_counter(), 0
    cpu_of: dict[int, float] = {}
    command = [sys.executable, "tft_inference.py", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            memory = 0
            for each in family(process.pid):
                try:
                    cpu_of[each.pid] = sum(each.cpu_times()[:2])
                    memory += each.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, memory)
            time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise SystemExit(f"error: tft_inference.py ended with {process.returncode}")
    wall = time.perf_counter() - started
    return {"cpu_seconds": round(sum(cpu_of.values()), 1), "wall_seconds": round(wall, 1), "peak_mib": peak >> 20}


def family(pid: int) -> list[psutil.Process]:
    """A process and all that come from it; none if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    raise SystemExit(main())
