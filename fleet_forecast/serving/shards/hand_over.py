"""Hands the history of servers over to the shards that have them now, after the number of shards changed.

Such servers stay in the file, without forecasts, until their shard has all their samples on disk. Samples that are sent
again are the same, so a restart in between neither loses nor duplicates any.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping

import numpy as np
from tenacity import AsyncRetrying, RetryCallState

from fleet_forecast.retry import back_off
from fleet_forecast.serving.shards.forwarding import SAMPLES_PATH, parse_response, record_of, records_per_request
from fleet_forecast.serving.shards.neighbours import Neighbour, ShardError
from fleet_forecast.serving.storage.errors import HistoryUnavailableError
from fleet_forecast.serving.storage.samples import KnownServer, Sample
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.shard import owner_of

LOG = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
STEPS_PER_READ = 288  # of one server: a day of steps of 5 minutes
QUERY = {"history": "true"}
NO_ADDRESS = "the addresses of the other shards are missing; add shard_peers"
# What a rejection may be about if the shard has the server: it has another value of this time already, which stays.
_LEFT = frozenset({"server_name", "wrong_shard", "timestamp", "record", "metrics", "profile"})


class HandOver:
    """Sends the servers of `store.leaving`. problem: of the last attempt. Used on the event loop."""

    def __init__(self, store: HistoryStore, neighbours: Mapping[int, Neighbour], seconds: float) -> None:
        """seconds: for one request."""
        self.problem: str | None = None
        self._store, self._neighbours, self._seconds = store, neighbours, seconds

    async def run(self) -> None:
        """Send until every server was taken, shard by shard at once; a failure is tried again after a pause."""
        by_owner: dict[int, list[KnownServer]] = {}
        if self._store.leaving and not self._neighbours:
            self.problem = NO_ADDRESS
            LOG.error("servers of other shards", extra={"servers": len(self._store.leaving), "reason": self.problem})
        elif self._store.leaving:
            count = next(iter(self._neighbours.values())).shard.count
            for name, server in sorted(self._store.leaving.items()):
                by_owner.setdefault(owner_of(name, count), []).append(server)
        errors = ShardError, HistoryUnavailableError
        policy = back_off(errors, LONGEST_PAUSE_SECONDS, first_pause_seconds=FIRST_PAUSE_SECONDS)
        send = AsyncRetrying(**policy, before_sleep=self._note_failure)
        await asyncio.gather(*(send.copy()(self._send_all, owner, servers) for owner, servers in by_owner.items()))
        await asyncio.Event().wait()

    def _note_failure(self, state: RetryCallState) -> None:
        self.problem = str(state.outcome.exception()) if state.outcome else None
        LOG.error("history not handed over", extra={"reason": self.problem})

    async def _send_all(self, owner: int, servers: list[KnownServer]) -> None:
        """Send servers that are still here to their shard, and delete each here when it is on disk there."""
        sent = 0
        for server in servers:
            if server.name in self._store.leaving:
                await self._send(self._neighbours[owner], server)
                await asyncio.wrap_future(self._store.delete_server(server.name))
                sent += 1
        self.problem = None
        LOG.info("history handed over", extra={"shard": owner, "servers": sent})

    async def _send(self, neighbour: Neighbour, server: KnownServer) -> None:
        """Send all samples of a server. Raises ShardError if the shard does not have all of them then."""
        waiting: list[Sample] = []
        step_seconds, most = self._store.step_seconds, records_per_request()
        async for samples in self._samples_of(server):
            waiting += samples
            while len(waiting) >= most:
                await self._post(neighbour, waiting[:most])
                waiting = waiting[most:]
        if waiting:
            await self._post(neighbour, waiting)
        if self._store.step_seconds != step_seconds:  # with other steps some samples may not have been read
            raise HistoryUnavailableError("the step of the history changed meanwhile")

    async def _post(self, neighbour: Neighbour, samples: list[Sample]) -> None:
        document = {"records": [record_of(sample) for sample in samples]}
        response = parse_response(neighbour, await neighbour.post(SAMPLES_PATH, document, self._seconds, QUERY))
        refused = next((why for why in response.rejected.values() if why[0] in _LEFT), None)
        if refused is not None:
            raise ShardError(f"shard {neighbour.shard} rejects history of {samples[0].server_name}: {refused[2]}")

    async def _samples_of(self, server: KnownServer) -> AsyncIterator[list[Sample]]:
        """The samples of a server in the order of time; of steps whose samples were deleted, their means."""
        store, step_ms = self._store, self._store.step_seconds * 1000
        first, last = await asyncio.wrap_future(store.step_range())
        for begin in range(first, last + 1, STEPS_PER_READ):
            end = min(begin + STEPS_PER_READ - 1, last)
            means = await asyncio.wrap_future(store.server_step_means(server.server_id, begin, end))
            after_ms, sampled = -1, set[int]()
            found: list[Sample] = []
            while page := await asyncio.wrap_future(store.raw_samples(server.server_id, begin, end, after_ms)):
                after_ms = page[-1].timestamp_ms
                sampled.update(sample.timestamp_ms // step_ms for sample in page)
                found += [Sample(server.name, at, server.profile, state, values) for at, state, values in page]
            old = [
                Sample(server.name, step * step_ms, server.profile, None, _values(mean))
                for step, mean in means.items()
                if step not in sampled
            ]
            yield old + found


def _values(mean: np.ndarray) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in mean)
