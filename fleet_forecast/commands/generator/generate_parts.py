"""A simulated fleet in parts: metrics_generator.py --engine ray, or --out_dir ADDRESS."""

from __future__ import annotations

import argparse
import sys
import time

from fleet_forecast.commands.generator.generate_fleet import result_line
from fleet_forecast.commands.generator.scenario_of_flags import HOURS, START, scenario_of, wrong
from fleet_forecast.scale.run import pool_of
from fleet_forecast.scale.simulated_parts import SimulatedParts, simulate_fleet
from fleet_forecast.simulation.output.tally import metadata_of, summary
from fleet_forecast.simulation.scenario import World

SERVERS_OF_PART = 500


def generate_parts(arguments: argparse.Namespace) -> dict[str, object]:
    """Simulate a fleet and write its files, each with all rows of its servers.

    Raises DataFileError as simulate_fleet does, and UsageError.
    """
    began = time.perf_counter()
    hours = HOURS if arguments.hours is None else arguments.hours
    scenario = scenario_of(arguments, hours, arguments.start or START)
    servers = len(scenario.fleet)
    parts = -(-servers // SERVERS_OF_PART) if arguments.parts is None else arguments.parts
    if not 1 <= parts <= servers:
        raise wrong("--parts", parts, f"give 1 to {servers}, the number of servers")
    if arguments.workers is not None and arguments.workers < 1:
        raise wrong("--workers", arguments.workers, "give 1 or more")
    engine = "ray" if arguments.engine == "ray" else "parts"
    address = str(arguments.out_dir)
    with pool_of(engine, arguments.ray_address, arguments.workers, threads=1) as pool:
        job = SimulatedParts(World.of(scenario), arguments.offline_mode == "sparse", address)
        tally = simulate_fleet(pool, job, parts, lambda world, tally: metadata_of(world, tally, hours))
    print(summary(scenario, tally), file=sys.stderr)
    return result_line(int(tally.rows.sum()), servers, time.perf_counter() - began, address)
