"""Writes a simulated scenario to files, in parallel and in bounded memory.

Servers are simulated in groups; one worker simulates a whole group. Up to ROWS_IN_ONE_FILE rows become one file sorted
by server and time. More rows become a folder of part files, each with the rows of a group and some days, or a wished
number of files, each with all rows of its servers, as fleets in parts are forecast. Groups and parts depend on the
scenario and the options alone, so the bytes do not depend on the number of workers.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fleet_forecast.contract.definitions import FleetDefinition, fleet_in_use, start_with
from fleet_forecast.contract.metadata import Metadata, write_metadata
from fleet_forecast.contract.publishing import publish, working_folder
from fleet_forecast.contract.specs import (
    METRICS_FILE,
    METRICS_FOLDER,
    ROW_GROUP_ROWS,
    STATES,
    arrow_schema,
)
from fleet_forecast.simulation.incident_kinds import LABELS
from fleet_forecast.simulation.metric_model import profile_order, simulated
from fleet_forecast.simulation.output.tally import Rows, Tally, count_rows
from fleet_forecast.simulation.scenario import Scenario, World
from fleet_forecast.simulation.simulator import Simulator, portions
from fleet_forecast.simulation.states import OFFLINE

ROWS_IN_ONE_FILE = 8_000_000
ROWS_IN_ONE_PART = 1_000_000
ROWS_IN_ONE_GROUP = 131_072  # servers of a small scenario are grouped up to about this number of rows
SERVERS_IN_ONE_GROUP = 16  # at least
ROWS_PER_WORKER = 3_000_000  # starting a worker takes as long as simulating this number of rows
MOST_WORKERS = 4  # by default: each takes about 200 MB

Result = TypeVar("Result")
Progress = Callable[[int], object]  # rows since the last call


@dataclass(frozen=True)
class WriteOptions:
    """sparse: offline servers have no rows. workers: processes; the files do not depend on it.

    parts: number of files, each of whole servers (one file, or files of some days).
    """

    sparse: bool = False
    workers: int = 1
    rows_in_one_file: int = ROWS_IN_ONE_FILE
    parts: int | None = None


def write_scenario(
    scenario: Scenario,
    folder: Path,
    metadata: Callable[[World, Tally], Metadata],
    options: WriteOptions = WriteOptions(),
    progress: Progress = lambda _rows: None,
) -> tuple[Path, Tally]:
    """Simulate and write metrics and metadata into a folder; returns the path of the metrics and counts of the rows.

    The earlier content of the folder is replaced at the end; an interrupted run does not change it.
    Raises OSError if the folder cannot be written.
    """
    world, rows = World.of(scenario), scenario.steps * len(scenario.fleet)
    one_file = rows <= options.rows_in_one_file and options.parts is None
    work, groups = _write_group, _groups(np.arange(len(scenario.fleet)), scenario.steps)
    if options.parts is not None:
        work, groups = _write_part, np.array_split(np.arange(len(scenario.fleet)), options.parts)
    jobs = [_Job(group, options.sparse, None) for group in groups]
    with working_folder(folder) as temporary:
        target = temporary / (METRICS_FILE if one_file else METRICS_FOLDER)
        tally = Tally()
        if one_file:
            names = list(scenario.fleet.names)
            with pq.ParquetWriter(target, arrow_schema(simulated().names), **_parquet()) as file:
                for group, part in zip(groups, _run(world, _simulate_group, jobs, options.workers), strict=True):
                    tally.add(count_rows(scenario, group, part))
                    _write(file, scenario, _Group(group, names, group), part)
                    progress(group.size * scenario.steps)
        else:
            target.mkdir()
            jobs = [job._replace(target=target) for job in jobs]
            tallies = _run(world, work, jobs, options.workers)
            for group, part_tally in zip(groups, tallies, strict=True):
                tally.add(part_tally)
                progress(group.size * scenario.steps)
        document = metadata(world, tally)
        write_metadata(temporary, document)
        return publish(temporary, folder), tally


# The low bits of rates are incompressible; with the bytes of floats split, zstd compresses the other bytes.
def _parquet() -> dict[str, Any]:
    split = dict.fromkeys(simulated().names, "BYTE_STREAM_SPLIT")
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": ["server_name", "profile", "state", "incident"],
        "column_encoding": {"timestamp": "DELTA_BINARY_PACKED", **split},
        "write_page_index": False,
    }


class _Job(NamedTuple):
    servers: npt.NDArray[np.int64]
    sparse: bool
    target: Path | None  # folder of the part files


def _groups(servers: npt.NDArray[np.int64], steps: int) -> list[npt.NDArray[np.int64]]:
    size = int(np.clip(ROWS_IN_ONE_GROUP // steps, SERVERS_IN_ONE_GROUP, 512))
    return [servers[first : first + size] for first in range(0, servers.size, size)]


def _run(world: World, work: Callable[[World, _Job], Result], jobs: list[_Job], workers: int) -> Iterator[Result]:
    """Results in the order of the jobs, from this process or from worker processes."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from (work(world, job) for job in jobs)
        return
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(world, fleet_in_use())) as pool:
        try:
            with _signals_blocked():  # a signal during the start of a worker would print the worker's traceback
                results = pool.map(_work, [work] * len(jobs), jobs)
            yield from results
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise


_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_world_of_worker: list[World] = []


def _start_worker(world: World, fleet: FleetDefinition) -> None:
    start_with(fleet)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)  # blocked while the worker was started
    end_with_parent = getattr(ctypes.CDLL(None), "prctl", None)
    if end_with_parent is not None:  # Linux: workers end when the parent is killed
        parent_death_signal = 1
        end_with_parent(parent_death_signal, signal.SIGKILL)
    _world_of_worker.append(world)


def _work(work: Callable[[World, _Job], Result], job: _Job) -> Result:
    return work(_world_of_worker[0], job)


def _simulate_group(world: World, job: _Job) -> Rows:
    return next(_parts(world, job, world.scenario.steps))


def _write_group(world: World, job: _Job) -> Tally:
    """Part files named by the first time and the first server in them."""
    scenario, tally = world.scenario, Tally()
    names = [scenario.fleet.names[server] for server in job.servers]
    part_steps = _steps_of_whole_days(scenario, len(job.servers))
    for number, rows in enumerate(_parts(world, job, part_steps)):
        begin = scenario.timestamps(number * part_steps, 1)[0].astype(datetime)
        part = f"{begin:%Y%m%dT%H%M%SZ}-{job.servers[0]:06d}.parquet"
        tally.add(count_rows(scenario, job.servers, rows))
        with pq.ParquetWriter(f"{job.target}/{part}", arrow_schema(simulated().names), **_parquet()) as file:
            _write(file, scenario, _Group(job.servers, names, job.servers - job.servers[0]), rows)
    return tally


def _write_part(world: World, job: _Job) -> Tally:
    return write_part(world, job.servers, job.sparse, Path(f"{job.target}/{part_name(job.servers)}"))


def part_name(servers: npt.NDArray[np.int64]) -> str:
    """Name of a file of whole servers, by the first of them."""
    return f"servers-{servers[0]:07d}.parquet"


def write_part(world: World, servers: npt.NDArray[np.int64], sparse: bool, path: Path) -> Tally:
    """Simulate some servers and write all their rows to a file; servers: positions in the fleet, sorted.

    Raises OSError if the file cannot be written.
    """
    scenario, tally = world.scenario, Tally()
    names = [scenario.fleet.names[server] for server in servers]
    with pq.ParquetWriter(path, arrow_schema(simulated().names), **_parquet()) as file:
        for some in _groups(servers, scenario.steps):
            group = _Group(some, names, some - servers[0])
            for rows in _parts(world, _Job(some, sparse, None), _steps_of_whole_days(scenario, len(some))):
                tally.add(count_rows(scenario, some, rows))
                _write(file, scenario, group, rows)
    return tally


def _steps_of_whole_days(scenario: Scenario, servers: int) -> int:
    """Steps of as many days as have about ROWS_IN_ONE_PART rows, which bounds the memory."""
    day_steps = max(1, 86_400 // scenario.step_seconds)
    return day_steps * max(1, ROWS_IN_ONE_PART // (day_steps * servers))


def _parts(world: World, job: _Job, part_steps: int) -> Iterator[Rows]:
    """Rows of a group, `part_steps` steps at a time."""
    simulator, count, steps = Simulator(world, job.servers), len(job.servers), world.scenario.steps
    for first in range(0, steps, part_steps):
        length = min(part_steps, steps - first)
        metrics = np.empty((len(simulated()), count, length), dtype=np.float32)
        states, incidents = np.empty((2, count, length), dtype=np.int8)
        for portion in portions(length, count):
            chunk = simulator.advance(portion)
            at = slice(chunk.first_step - first, chunk.first_step - first + portion)
            metrics[:, :, at], states[:, at], incidents[:, at] = chunk.metrics, chunk.states, chunk.incidents
        rows = Rows(
            np.tile(np.arange(first, first + length, dtype=np.int32), count),
            np.repeat(np.arange(count, dtype=np.int32), length),
            states.ravel(),
            incidents.ravel(),
            metrics.reshape(len(simulated()), -1),
        )
        yield _without_offline(rows) if job.sparse else rows


def _without_offline(rows: Rows) -> Rows:
    online = rows.states != OFFLINE
    return rows if online.all() else rows.where(online)


class _Group(NamedTuple):
    """Servers that are written together; names: the file's dictionary of names, in which theirs are at `positions`."""

    servers: npt.NDArray[np.int64]
    names: list[str]
    positions: npt.NDArray[np.int64]


def _write(file: pq.ParquetWriter, scenario: Scenario, group: _Group, rows: Rows) -> None:
    """Write a group's rows, a row group at a time."""
    for first in range(0, rows.step.size, ROW_GROUP_ROWS):
        row_group = rows.where(slice(first, first + ROW_GROUP_ROWS))
        file.write_table(_table(scenario, group, row_group))


def _table(scenario: Scenario, group: _Group, rows: Rows) -> pa.Table:
    schema = arrow_schema(simulated().names)
    codes = scenario.fleet.profile_codes[group.servers].astype(np.int32)
    instants = scenario.start + rows.step * np.timedelta64(scenario.step_seconds, "s")

    def labels(positions: npt.NDArray[np.int32], values: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(positions, mask=positions < 0), pa.array(values, pa.string()))

    columns = {
        "timestamp": pa.array(instants.astype("datetime64[ns]"), schema.field("timestamp").type),
        "server_name": labels(group.positions.astype(np.int32)[rows.server], group.names),
        "profile": labels(codes[rows.server], [str(profile) for profile in profile_order()]),
        "state": labels(rows.states.astype(np.int32), list(STATES)),
        **{
            name: pa.array(values, from_pandas=True)
            for name, values in zip(simulated().names, rows.metrics, strict=True)
        },
        "incident": labels(rows.incidents.astype(np.int32), list(LABELS)),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
