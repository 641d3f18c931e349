"""A pool of workers on a Ray cluster, by Ray Data: it restarts what a lost worker or node had not finished."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import ray
import ray.data

from fleet_forecast.contract.definitions import fleet_in_use, start_with
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.scale.forecast_parts import PartForecaster, PartResult, PartsJob
from fleet_forecast.scale.parts import Part
from fleet_forecast.scale.peers_of_parts import FleetPeerTable
from fleet_forecast.scale.ray_cluster import cores_of_cluster

T = TypeVar("T")
Result = TypeVar("Result")
Batch = dict[str, Any]


class RayPool:
    """Ray Data over the cluster that this process has joined, with one block for each item."""

    def __init__(self, workers: int | None) -> None:
        """workers: processes, each of one core; None: one for each core of the cluster."""
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
        ray.data.DataContext.get_current().enable_progress_bars = False
        self._workers = workers or cores_of_cluster()

    def map(self, function: Callable[[T], Result], items: Sequence[T]) -> Iterator[Result]:
        """The results of a function of each item, as they come."""
        sent = ray.put((function, list(items), fleet_in_use()))  # once for all workers of a machine

        def call(batch: Any) -> Batch:
            to_call, sent_items, fleet = ray.get(sent)
            start_with(fleet)
            return _column([_outcome(to_call, sent_items[place]) for place in batch["place"]])

        tasks = ray.data.TaskPoolStrategy(size=max(1, min(self._workers, len(items))))
        yield from self._results(_blocks(len(items)).map_batches(call, batch_size=1, compute=tasks))

    def forecast(self, job: PartsJob, peers: FleetPeerTable | None, parts: Sequence[Part]) -> Iterator[PartResult]:
        """The results of a PartForecaster of each part, as they come; each worker has one engine."""
        sent = ray.put((job, peers, list(parts), fleet_in_use()))
        workers = max(1, min(self._workers, len(parts)))
        blocks = _blocks(len(parts)).map_batches(
            _Worker, fn_constructor_args=(_Boxed(sent),), batch_size=1, compute=ray.data.ActorPoolStrategy(size=workers)
        )
        yield from self._results(blocks)

    def _results(self, blocks: ray.data.Dataset) -> Iterator[Any]:
        for row in blocks.iter_rows():
            outcome = row["result"].content
            if isinstance(outcome, DataFileError):
                raise outcome
            yield outcome


class _Boxed:
    """An object that Ray passes on as it is: it would turn a named tuple into a list, and resolve a reference."""

    def __init__(self, content: Any) -> None:
        self.content = content


class _Worker:
    """A process with an engine."""

    def __init__(self, sent: _Boxed) -> None:
        job, peers, self._parts, fleet = ray.get(sent.content)
        start_with(fleet)
        self._forecast = PartForecaster(job, peers)

    def __call__(self, batch: Any) -> Batch:
        return _column([_outcome(self._forecast, self._parts[place]) for place in batch["place"]])


def _blocks(count: int) -> ray.data.Dataset:
    """The places 0 .. count - 1, each a block: what is repeated if its worker is lost."""
    return ray.data.from_items([{"place": place} for place in range(count)], override_num_blocks=max(1, count))


def _outcome(function: Callable[[T], Result], item: T) -> Result | DataFileError:
    """The result, or the error that a user can act on: raised here, Ray would wrap it in two of its own."""
    try:
        return function(item)
    except DataFileError as problem:
        return problem


def _column(results: Sequence[Any]) -> Batch:
    return {"result": np.array([_Boxed(result) for result in results], dtype=object)}
