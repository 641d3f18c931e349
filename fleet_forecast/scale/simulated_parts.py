"""A simulated fleet in parts: each file is simulated by itself, with the bytes of `--parts` on one machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.metadata import Metadata, metadata_text
from fleet_forecast.contract.specs import METADATA_FILE, METRICS_FOLDER
from fleet_forecast.scale.parts import Folder
from fleet_forecast.scale.run import Pool, shown
from fleet_forecast.simulation.output.tally import Tally
from fleet_forecast.simulation.output.writer import part_name, write_part
from fleet_forecast.simulation.scenario import Scenario, World

Servers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SimulatedParts:
    """What the files are made from, and the address of their folder. sparse: offline servers have no rows."""

    world: World
    sparse: bool
    output: str


def simulate_part(servers: Servers, job: SimulatedParts) -> tuple[int, Tally]:
    """Simulate some servers and write their file; the first of them, and counts of the rows. Raises DataFileError."""
    with Folder(job.output).new(_name(servers)) as file:
        return int(servers[0]), write_part(job.world, servers, job.sparse, file)


def simulate_fleet(
    pool: Pool,
    job: SimulatedParts,
    parts: int,
    metadata: Callable[[World, Tally], Metadata],
) -> Tally:
    """Simulate a fleet in a number of files, then write the metadata, which an interrupted run lacks.

    Raises DataFileError if the output cannot be written, or has files that this run does not write.
    """
    scenario: Scenario = job.world.scenario
    groups = np.array_split(np.arange(len(scenario.fleet)), parts)
    output = Folder(job.output)
    output.refuse_other_files([METADATA_FILE, *map(_name, groups)])
    output.remove(METADATA_FILE)
    tally = Tally()
    counted = shown(pool.map(partial(simulate_part, job=job), groups), len(groups), "simulate")
    for _, of_part in sorted(counted, key=lambda each: each[0]):  # sums depend on the order
        tally.add(of_part)
    with output.new(METADATA_FILE) as file:
        file.write_text(metadata_text(metadata(job.world, tally)), encoding="utf-8")
    return tally


def _name(servers: Servers) -> str:
    return f"{METRICS_FOLDER}/{part_name(servers)}"
