"""Files and pictures of a simulated fleet: metrics_generator.py without a mode, and with --plot."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from fleet_forecast.commands.generator.scenario_of_flags import HOURS, START, refuse_unwritable, scenario_of, wrong
from fleet_forecast.simulation.output.tally import metadata_of, summary
from fleet_forecast.simulation.output.writer import MOST_WORKERS, ROWS_PER_WORKER, WriteOptions, write_scenario
from fleet_forecast.usage import UsageError

PLOT_HOURS = 168.0


def generate(arguments: argparse.Namespace) -> dict[str, object]:
    """Simulate a fleet and write its files."""
    began = time.perf_counter()
    hours = HOURS if arguments.hours is None else arguments.hours
    scenario = scenario_of(arguments, hours, arguments.start or START)
    rows = scenario.steps * len(scenario.fleet)
    if arguments.workers is not None and arguments.workers < 1:
        raise wrong("--workers", arguments.workers, "give 1 or more")
    if arguments.parts is not None and not 1 <= arguments.parts <= len(scenario.fleet):
        raise wrong("--parts", arguments.parts, f"give 1 to {len(scenario.fleet)}, the number of servers")
    cores = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    workers = min(arguments.workers or cores, 1 + rows // ROWS_PER_WORKER)
    refuse_unwritable(arguments.out_dir)
    with tqdm(total=rows, unit="row", unit_scale=True, desc="simulating", disable=None, leave=False) as bar:
        path, tally = write_scenario(
            scenario,
            arguments.out_dir,
            lambda world, tally: metadata_of(world, tally, hours),
            WriteOptions(sparse=arguments.offline_mode == "sparse", workers=workers, parts=arguments.parts),
            bar.update,
        )
    seconds = time.perf_counter() - began
    print(summary(scenario, tally), file=sys.stderr)
    return result_line(int(tally.rows.sum()), len(scenario.fleet), seconds, path)


def result_line(rows: int, servers: int, seconds: float, path: Path | str) -> dict[str, object]:
    return {
        "rows": rows,
        "servers": servers,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds),
        "path": str(path),
    }


def plot(arguments: argparse.Namespace) -> dict[str, object]:
    """Draw a week of the fleet the flags describe."""
    from fleet_forecast.simulation.output.plot import plot_week  # matplotlib is slow to import

    hours = PLOT_HOURS if arguments.hours is None else arguments.hours
    scenario = scenario_of(arguments, hours, arguments.start or START)
    try:
        servers = plot_week(scenario, arguments.plot)
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    return {"path": str(arguments.plot), "servers": servers}
