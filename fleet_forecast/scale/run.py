"""Forecasts of a fleet in parts, from the names to the manifest; a pool does the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from fleet_forecast.inference.engine import Engine
from fleet_forecast.scale.forecast_parts import PartForecaster, PartResult, PartsJob
from fleet_forecast.scale.parts import MANIFEST_FILE, Folder, Part
from fleet_forecast.scale.peers_of_parts import (
    FleetPeerTable,
    choose_members,
    rows_of_members,
    servers_of,
    table_of,
)
from fleet_forecast.scale.ray_cluster import ray_cluster

T = TypeVar("T")
Result = TypeVar("Result")


class Pool(Protocol):
    """Runs functions over items: in this process, or on a cluster. The order of the results is free."""

    def map(self, function: Callable[[T], Result], items: Sequence[T]) -> Iterator[Result]:
        """The results of a function of each item."""

    def forecast(self, job: PartsJob, peers: FleetPeerTable | None, parts: Sequence[Part]) -> Iterator[PartResult]:
        """The results of a PartForecaster of each part."""


class InThisProcess:
    """One part after the other; threads: of the network, None: one per core."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads

    def map(self, function: Callable[[T], Result], items: Sequence[T]) -> Iterator[Result]:
        """The results in order."""
        return map(function, items)

    def forecast(self, job: PartsJob, peers: FleetPeerTable | None, parts: Sequence[Part]) -> Iterator[PartResult]:
        """The results in order."""
        return map(PartForecaster(job, peers, self._threads), parts)


def forecast_fleet(pool: Pool, job: PartsJob, engine: Engine, parts: Sequence[Part]) -> dict[str, Any]:
    """Forecast all parts, and write the manifest; returns what it says.

    A part whose data cannot be used is listed under `failed`, and the others are forecast. Raises DataFileError if a
    server is in two parts, or if the output cannot be written.
    """
    output = Folder(job.output)
    output.refuse_other_files([MANIFEST_FILE, *(part.name for part in parts)])
    output.remove(MANIFEST_FILE)  # an interrupted run has none
    peers, unreadable = _peers(pool, job, engine, parts)
    readable = [part for part in parts if part not in unreadable]
    results = [PartResult(part.name, problem=problem) for part, problem in unreadable.items()]
    results += shown(pool.forecast(job, peers, readable), len(readable), "forecast")
    results.sort(key=lambda each: each.part)
    manifest = {
        "model": job.model.model_id,
        "rows": sum(each.rows for each in results),
        "servers": sum(each.servers for each in results),
        "forecasts": sum(each.forecasts for each in results),
        "members_of_peers": 0 if peers is None else len(peers.members),
        "parts": [asdict(each) for each in results if each.problem is None],
        "failed": {each.part: each.problem for each in results if each.problem is not None},
    }
    output.write_manifest(manifest)
    return manifest


def _peers(
    pool: Pool, job: PartsJob, engine: Engine, parts: Sequence[Part]
) -> tuple[FleetPeerTable | None, dict[Part, str]]:
    """The table of peers, and the problem of each part whose names cannot be read."""
    names = partial(servers_of, reading=job.reading)
    fleet = list(shown(pool.map(names, parts), len(parts), "names"))
    members = choose_members(fleet)
    rows = partial(rows_of_members, reading=job.reading)
    frames = shown(pool.map(rows, members), len(members), "peers")
    unreadable = {each.part: each.problem for each in fleet if each.problem is not None}
    return table_of(frames, engine.config, job.reading.rules), unreadable


@contextmanager
def pool_of(engine: str, address: str | None, workers: int | None, threads: int | None) -> Iterator[Pool]:
    """The pool of an --engine that is parts or ray. Raises UsageError if there is no Ray or no such cluster."""
    if engine == "parts":
        yield InThisProcess(threads)
        return
    with ray_cluster(address, workers):
        from fleet_forecast.scale.ray_pool import RayPool  # needs Ray

        yield RayPool(workers)


def shown(results: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The results, with progress on stderr."""
    yield from tqdm(results, total=total, desc=what, unit="part", file=sys.stderr, disable=None)
