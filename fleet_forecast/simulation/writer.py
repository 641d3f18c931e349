"""A simulated scenario into files: in parallel, in bounded memory, and as a whole or not at all.

Servers are simulated in groups, a group by one worker from beginning to end. Up to ROWS_IN_ONE_FILE rows become one
file sorted by server and time; more become a folder of part files, each with a group's rows of some days. Groups and
parts depend on the scenario alone, so any number of workers writes the same bytes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fleet_forecast.atomic_write import sync
from fleet_forecast.contract.metadata import Metadata, write_metadata
from fleet_forecast.contract.specs import METADATA_FILE, METRICS, METRICS_FILE, METRICS_FOLDER, arrow_schema
from fleet_forecast.simulation.fleet import PROFILE_ORDER
from fleet_forecast.simulation.incidents import LABELS
from fleet_forecast.simulation.physics import OFFLINE, STATE_NAMES, Scenario, Simulator, World, portions

ROWS_IN_ONE_FILE = 8_000_000
ROWS_IN_ONE_PART = 1_000_000
ROWS_IN_ONE_GROUP = 131_072  # small scenarios: servers are grouped up to about so many rows
SERVERS_IN_ONE_GROUP = 16  # at least
ROW_GROUP_ROWS = 262_144
ROWS_WORTH_A_WORKER = 3_000_000  # starting one takes as long as simulating so many rows
MOST_WORKERS = 4  # unless asked for: each takes about 200 MB

Result = TypeVar("Result")
Progress = Callable[[int], object]  # rows since the last call


@dataclass
class Tally:
    """What was written; arrays [profile, ...]."""

    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(PROFILE_ORDER), dtype=np.int64))
    states: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((len(PROFILE_ORDER), len(STATE_NAMES)), dtype=np.int64)
    )
    measured: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(PROFILE_ORDER), dtype=np.int64))
    sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(PROFILE_ORDER), len(METRICS))))

    def add(self, other: Tally) -> None:
        """Count what another tally has, too."""
        self.rows += other.rows
        self.states += other.states
        self.measured += other.measured
        self.sums += other.sums


class Rows(NamedTuple):
    """Rows of a group, by server and time: arrays [row]."""

    step: npt.NDArray[np.int32]
    server: npt.NDArray[np.int32]  # position in the group
    states: npt.NDArray[np.int8]
    incidents: npt.NDArray[np.int8]
    metrics: npt.NDArray[np.float32]  # [metric, row]


def write_scenario(
    scenario: Scenario,
    folder: Path,
    metadata: Callable[[World, Tally], Metadata],
    *,
    sparse: bool = False,
    workers: int = 1,
    progress: Progress = lambda _rows: None,
    rows_in_one_file: int = ROWS_IN_ONE_FILE,
) -> tuple[Path, Tally]:
    """Simulate and write metrics and metadata into a folder; returns the path of the metrics and what was written.

    What the folder held before is replaced at the end, at once; an interrupted run leaves it as it was.
    Raises OSError if the folder cannot be written.
    """
    world, rows = World.of(scenario), scenario.steps * len(scenario.fleet)
    one_file = rows <= rows_in_one_file
    jobs = [_Job(group, sparse, None) for group in _groups(scenario)]
    with working_folder(folder) as temporary:
        target = temporary / (METRICS_FILE if one_file else METRICS_FOLDER)
        tally = Tally()
        if one_file:
            names = list(scenario.fleet.names)
            with pq.ParquetWriter(target, arrow_schema(), **_PARQUET) as file:
                for group, part in zip(_groups(scenario), _run(world, _simulate_group, jobs, workers), strict=True):
                    tally.add(_count(scenario, group, part))
                    _write(file, scenario, group, part, names, group)
                    progress(group.size * scenario.steps)
        else:
            target.mkdir()
            jobs = [job._replace(target=target) for job in jobs]
            for group, part_tally in zip(_groups(scenario), _run(world, _write_group, jobs, workers), strict=True):
                tally.add(part_tally)
                progress(group.size * scenario.steps)
        document = metadata(world, tally)
        write_metadata(temporary, document)
        return publish(temporary, folder), tally


# Rates are incompressible in their low bits; splitting the bytes of floats lets zstd see what is regular in them.
_PARQUET = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": ["server_name", "profile", "state", "incident"],
    "column_encoding": {"timestamp": "DELTA_BINARY_PACKED", **dict.fromkeys(METRICS, "BYTE_STREAM_SPLIT")},
    "write_page_index": False,
}


class _Job(NamedTuple):
    servers: npt.NDArray[np.int64]
    sparse: bool
    target: Path | None  # folder of the part files


def _groups(scenario: Scenario) -> list[npt.NDArray[np.int64]]:
    size = int(np.clip(ROWS_IN_ONE_GROUP // scenario.steps, SERVERS_IN_ONE_GROUP, 512))
    servers = np.arange(len(scenario.fleet))
    return [servers[first : first + size] for first in range(0, servers.size, size)]


def _run(world: World, work: Callable[[World, _Job], Result], jobs: list[_Job], workers: int) -> Iterator[Result]:
    """Results in the order of the jobs, from this process or from several."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from (work(world, job) for job in jobs)
        return
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(world,)) as pool:
        try:
            with _signals_held():  # interrupted half-way, a worker's start would end in a traceback of its own
                results = pool.map(_work, [work] * len(jobs), jobs)
            yield from results
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise


_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def _signals_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_world_of_worker: list[World] = []


def _start_worker(world: World) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)  # held while the worker was started
    end_with_parent = getattr(ctypes.CDLL(None), "prctl", None)
    if end_with_parent is not None:  # Linux: no worker outlives a parent that was killed
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
    day_steps = max(1, 86_400 // scenario.step_seconds)
    days = max(1, ROWS_IN_ONE_PART // (day_steps * len(job.servers)))
    for number, rows in enumerate(_parts(world, job, days * day_steps)):
        begin = scenario.timestamps(number * days * day_steps, 1)[0].astype(datetime)
        part = f"{begin:%Y%m%dT%H%M%SZ}-{job.servers[0]:06d}.parquet"
        tally.add(_count(scenario, job.servers, rows))
        with pq.ParquetWriter(f"{job.target}/{part}", arrow_schema(), **_PARQUET) as file:
            _write(file, scenario, job.servers, rows, names, job.servers - job.servers[0])
    return tally


def _parts(world: World, job: _Job, part_steps: int) -> Iterator[Rows]:
    """Rows of a group, so many steps at a time."""
    simulator, count, steps = Simulator(world, job.servers), len(job.servers), world.scenario.steps
    for first in range(0, steps, part_steps):
        length = min(part_steps, steps - first)
        metrics = np.empty((len(METRICS), count, length), dtype=np.float32)
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
            metrics.reshape(len(METRICS), -1),
        )
        yield _without_offline(rows) if job.sparse else rows


def _without_offline(rows: Rows) -> Rows:
    there = rows.states != OFFLINE
    if there.all():
        return rows
    return Rows(rows.step[there], rows.server[there], rows.states[there], rows.incidents[there], rows.metrics[:, there])


def _write(
    file: pq.ParquetWriter,
    scenario: Scenario,
    group: npt.NDArray[np.int64],
    rows: Rows,
    names: list[str],
    positions: npt.NDArray[np.int64],
) -> None:
    """Write a group's rows, a row group at a time; `positions` are the places of its servers in `names`."""
    for first in range(0, rows.step.size, ROW_GROUP_ROWS):
        at = slice(first, first + ROW_GROUP_ROWS)
        few = Rows(rows.step[at], rows.server[at], rows.states[at], rows.incidents[at], rows.metrics[:, at])
        file.write_table(_table(scenario, group, few, names, positions))


def _table(
    scenario: Scenario,
    group: npt.NDArray[np.int64],
    rows: Rows,
    names: list[str],
    positions: npt.NDArray[np.int64],
) -> pa.Table:
    """Rows as the contract has them."""
    schema = arrow_schema()
    codes = scenario.fleet.profile_codes[group].astype(np.int32)
    instants = scenario.start + rows.step * np.timedelta64(scenario.step_seconds, "s")

    def labels(positions: npt.NDArray[np.int32], values: list[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(positions, mask=positions < 0), pa.array(values, pa.string()))

    columns = {
        "timestamp": pa.array(instants.astype("datetime64[ns]"), schema.field("timestamp").type),
        "server_name": labels(positions.astype(np.int32)[rows.server], names),
        "profile": labels(codes[rows.server], [str(profile) for profile in PROFILE_ORDER]),
        "state": labels(rows.states.astype(np.int32), list(STATE_NAMES)),
        **{name: pa.array(values, from_pandas=True) for name, values in zip(METRICS, rows.metrics, strict=True)},
        "incident": labels(rows.incidents.astype(np.int32), list(LABELS)),
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _count(scenario: Scenario, group: npt.NDArray[np.int64], rows: Rows) -> Tally:
    tally, codes = Tally(), scenario.fleet.profile_codes[group]
    by_server = np.bincount(
        rows.server.astype(np.int64) * len(STATE_NAMES) + rows.states, minlength=len(group) * len(STATE_NAMES)
    ).reshape(len(group), len(STATE_NAMES))
    np.add.at(tally.states, codes, by_server)
    np.add.at(tally.rows, codes, by_server.sum(axis=1))
    np.add.at(tally.measured, codes, by_server.sum(axis=1) - by_server[:, OFFLINE])
    ends = np.cumsum(by_server.sum(axis=1))
    for server, (first, last) in enumerate(zip(ends - by_server.sum(axis=1), ends, strict=True)):
        tally.sums[codes[server]] += np.nansum(rows.metrics[:, first:last], axis=1, dtype=np.float64)
    return tally


def write_measured(frame: pd.DataFrame, folder: Path, metadata: Metadata) -> Path:
    """Write measured rows (timestamp, server_name, profile, some metrics) and metadata; returns the metrics' path."""
    schema = arrow_schema([name for name in METRICS if name in frame.columns])
    complete = frame.assign(**{name: None for name in schema.names if name not in frame.columns})
    table = pa.Table.from_pandas(complete[schema.names], preserve_index=False).cast(schema)
    with working_folder(folder) as temporary:
        pq.write_table(table, temporary / METRICS_FILE, row_group_size=ROW_GROUP_ROWS)
        write_metadata(temporary, metadata)
        return publish(temporary, folder)


# --- all or nothing -------------------------------------------------------------------------------------------------

_TEMPORARY = ".server_metrics-"


@contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, beside what it will replace; it is gone afterwards, whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(f"{_TEMPORARY}*"):  # of a run that was killed
        if not Path(f"/proc/{abandoned.name.removeprefix(_TEMPORARY)}").exists():
            shutil.rmtree(abandoned, ignore_errors=True)
    temporary = folder / f"{_TEMPORARY}{os.getpid()}"
    if temporary.exists():  # of one that was killed and had this number, as all have in a container
        shutil.rmtree(temporary)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> Path:
    """Move metrics and metadata from a working folder to their place, each in one step and the metrics first.

    Who reads between the two finds new metrics beside the earlier metadata.
    """
    for file in temporary.rglob("*"):
        sync(file)
    new = next(path for path in (temporary / METRICS_FILE, temporary / METRICS_FOLDER) if path.exists())
    target = folder / new.name
    if new.is_dir() and target.is_dir():
        _exchange(new, target)
    else:
        new.replace(target)
    (temporary / METADATA_FILE).replace(folder / METADATA_FILE)
    if new.name == METRICS_FOLDER:  # a single file would be read first
        (folder / METRICS_FILE).unlink(missing_ok=True)
    elif (folder / METRICS_FOLDER).is_dir():
        (folder / METRICS_FOLDER).rename(temporary / "replaced")
    sync(folder)
    return target


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders in one step where the system can (Linux), in two where it cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_working_directory, exchange = -100, 2
    if renameat2 is not None:
        paths = (at_working_directory, os.fsencode(first), at_working_directory, os.fsencode(second))
        if renameat2(*paths, exchange) == 0:
            return
    aside = first.with_name("replaced")
    second.rename(aside)
    first.rename(second)
