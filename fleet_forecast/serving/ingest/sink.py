"""The only entry to the store: checks records, stores the accepted ones, counts accepted and rejected ones."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from fleet_forecast.serving.clients import ANYONE, Client, Right
from fleet_forecast.serving.ingest.bodies import BodyError, ReceivedBody, decompressed
from fleet_forecast.serving.ingest.rows import CheckedRows, check_rows
from fleet_forecast.serving.ingest.senders import SenderChecks
from fleet_forecast.serving.ingest.tally import IngestTally, Protocol
from fleet_forecast.serving.ingest.validation import (
    CheckedBatch,
    RefusalOf,
    TimeLimits,
    Unaccepted,
    check_body,
    check_records,
)
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.shards.forwarding import Forwarded, Forwarder
from fleet_forecast.serving.storage.samples import Correction, Sample
from fleet_forecast.serving.storage.servers import NewNames
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.sources.protocols.received import MalformedBodyError, ReceivedSamples
from server_profiles import BUILT_IN_RULES, ProfileRules

LOG = logging.getLogger(__name__)
MS_PER_HOUR, MS_PER_MINUTE = 3_600_000, 60_000
LOGGED_REJECTIONS = 3  # of each batch that has no client to respond to
Batch = TypeVar("Batch", bound=CheckedBatch)
First = TypeVar("First")
Second = TypeVar("Second")


class Encoded(NamedTuple):
    """A body of another protocol than JSON records, and its decoder, which raises MalformedBodyError."""

    body: ReceivedBody
    decode: Callable[[bytes], ReceivedSamples]


class IngestSink:
    """Checks records, stores the accepted ones and counts accepted and rejected ones.

    Every route and puller that brings samples calls this class.
    """

    def __init__(
        self,
        settings: Settings,
        store: HistoryStore,
        clock: Callable[[], float],
        rules: ProfileRules = BUILT_IN_RULES,
        forwarder: Forwarder | None = None,
    ) -> None:
        """forwarder: takes the samples of other shards; None: they are rejected."""
        self.accepted = 0
        self.rejected: Counter[str] = Counter()  # by the field at fault
        self.left_out_cells: Counter[str] = Counter()  # of accepted records, by metric
        self.tally = IngestTally()
        self.pulls: Counter[tuple[str, str]] = Counter()  # by Prometheus, "success" and "failure"
        self.settings, self.store, self.clock = settings, store, clock
        self.forwarder = forwarder
        self.senders = SenderChecks(store, rules, settings.own_shard, forwarder is not None)
        # One worker thread: the interpreter runs one thread at a time, and each further runnable thread delays
        # the event loop.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="ingest")

    async def take_body(self, body: ReceivedBody, client: Client = ANYONE) -> CheckedBatch:
        """Store the records of a request's JSON body; returns when they are on disk.

        Raises BodyError if the body cannot be used as a whole, HistoryBusyError or HistoryUnavailableError if nothing
        was stored.
        """
        batch = await self._store(partial(self._checked_body, body, client), client)
        self._count_records(Protocol.JSON, batch)
        return batch

    async def take_of_shard(self, body: ReceivedBody, client: Client, any_age: bool) -> CheckedBatch:
        """Store the records that another shard sends; those of a third one are rejected and not sent on.

        any_age: whether they may be older than the retention. Raises as take_body.
        """
        limits = TimeLimits(0, self._limits().latest_ms) if any_age else self._limits()
        batch = await self._store(partial(self._checked_of_shard, body, client, limits), client)
        self._count_records(Protocol.SHARD, batch)
        return batch

    async def take_pulled(self, records: list[Any], prometheus: str) -> CheckedBatch:
        """Store records that the daemon pulled from a Prometheus: of any age, and none from the future.

        Returns when they are on disk and logs the first rejections. Raises HistoryBusyError or
        HistoryUnavailableError if nothing was stored.
        """
        batch = await self._store(partial(self._checked_pull, records, prometheus), ANYONE)
        self._count_records(Protocol.PROMETHEUS, batch)
        for rejection in batch.rejected[:LOGGED_REJECTIONS]:
            LOG.warning("pulled sample rejected", extra={"field": rejection.field, "value": rejection.value})
        return batch

    async def take_encoded(self, protocol: Protocol, body: Encoded, client: Client) -> CheckedRows:
        """Store the samples of a request in another protocol; returns when they are on disk.

        Raises BodyError if the body cannot be used as a whole, HistoryBusyError or HistoryUnavailableError if nothing
        was stored.
        """
        batch = await self._store(partial(self._checked_rows, body, client), client)
        self._count_rows(protocol, batch)
        batch.received.on_stored(batch.refused_servers)
        return batch

    def _limits(self) -> TimeLimits:
        """The accepted times of samples that are sent."""
        settings, now_ms = self.settings, self.clock() * 1000
        earliest_ms = math.ceil(now_ms - settings.retention_hours * MS_PER_HOUR)
        latest_ms = math.floor(now_ms + settings.future_minutes * MS_PER_MINUTE)
        return TimeLimits(earliest_ms, latest_ms, settings.input_timezone)

    def _checked_body(self, body: ReceivedBody, client: Client, names: NewNames) -> CheckedBatch:
        batch = check_body(body, self.settings.max_records, self._limits(), self._refusal_of(client, names))
        self.senders.check_profiles(batch, client)
        self.senders.note_source(batch, client.name)
        return batch

    def _checked_rows(self, encoded: Encoded, client: Client, names: NewNames) -> CheckedRows:
        try:
            samples = encoded.decode(decompressed(encoded.body))
        except MalformedBodyError as problem:
            raise BodyError(str(problem)) from None
        batch = check_rows(samples, self._limits(), self._refusal_of(client, names))
        self.senders.note_source(batch, client.name)
        return batch

    def _checked_pull(self, records: list[Any], prometheus: str, names: NewNames) -> CheckedBatch:
        limits = TimeLimits(0, int(self.clock() * 1000))
        batch = check_records(records, limits, self._refusal_of(ANYONE, names))
        self.senders.note_source(batch, prometheus)
        return batch

    def _checked_of_shard(
        self, body: ReceivedBody, client: Client, limits: TimeLimits, names: NewNames
    ) -> CheckedBatch:
        refusal_of = self._refusal_of(client, names, may_forward=False)
        batch = check_body(body, self.settings.max_records, limits, refusal_of)
        self.senders.check_profiles(batch, client)
        return batch

    def _refusal_of(self, client: Client, names: NewNames, may_forward: bool = True) -> RefusalOf:
        return partial(self.senders.refusal_of, client, names, may_forward)

    async def _store(self, check: Callable[[NewNames], Batch], client: Client) -> Batch:
        names, loop = self.store.new_names(), asyncio.get_running_loop()
        try:
            batch = await loop.run_in_executor(self.worker, check, names)
            if batch.samples:
                own, others = self._places(batch)
                stored, forwarded = await self._accept(batch, own, others, client)
                unaccepted = {}
                if stored:
                    note = self.senders.note_corrections
                    unaccepted = await loop.run_in_executor(self.worker, note, batch, stored, client)
                unaccepted |= {others[place]: Unaccepted(*why) for place, why in forwarded.rejected.items()}
                batch.notices += forwarded.notices
                if unaccepted or others:
                    batch.settle(unaccepted, [place for place in others if place not in unaccepted])
        finally:
            names.release()
        self.accepted += len(batch.samples)
        self.rejected.update(rejection.field for rejection in batch.rejected)
        self.left_out_cells.update(cell.field for cell in batch.left_out)
        return batch

    def _places(self, batch: CheckedBatch) -> tuple[Sequence[int], Sequence[int]]:
        """Places of the samples to store here, and of those to forward."""
        shard = self.settings.own_shard
        if shard is None or self.forwarder is None:
            return range(len(batch.samples)), ()
        own = [shard.has(sample.server_name) for sample in batch.samples]
        return [place for place, is_own in enumerate(own) if is_own], [
            place for place, is_own in enumerate(own) if not is_own
        ]

    async def _accept(
        self, batch: CheckedBatch, own: Sequence[int], others: Sequence[int], client: Client
    ) -> tuple[Sequence[Correction], Forwarded]:
        """Store and forward the samples at these places; returns those that differ from stored ones by their place."""
        if self.forwarder is None or not others:
            return await self._append(batch.samples, client), Forwarded({}, [])
        forward = self.forwarder.send([batch.samples[place] for place in others], client.rights)
        found, forwarded = await both(self._append([batch.samples[place] for place in own], client), forward)
        return [each._replace(place=own[each.place]) for each in found], forwarded

    async def _append(self, samples: Sequence[Sample], client: Client) -> Sequence[Correction]:
        if not samples:
            return ()
        return await asyncio.wrap_future(self.store.append(samples, Right.CORRECT in client.rights))

    def _count_records(self, protocol: Protocol, batch: CheckedBatch) -> None:
        """Count the values of accepted records; values left out and rejected records by the field at fault."""
        values = (sample.values for sample in batch.samples)
        self.tally.stored[protocol] += sum(len(each) - each.count(None) for each in values)
        self.tally.not_stored.update((protocol, each.field) for each in (*batch.rejected, *batch.left_out))
        self._note_names(protocol, batch, batch.ignored_fields)

    def _count_rows(self, protocol: Protocol, batch: CheckedRows) -> None:
        """Count the samples of a request by result."""
        received, counts = batch.received, self.tally.not_stored
        self.tally.stored[protocol] += batch.stored_samples
        reasons = batch.rejected_samples + received.notices
        reasons += Counter(not_measured=received.not_measured, other_name=received.left_out.total())
        counts.update({(protocol, reason): count for reason, count in reasons.items()})
        self._note_names(protocol, batch, received.left_out)

    def _note_names(self, protocol: Protocol, batch: CheckedBatch, names: Iterable[str]) -> None:
        self.tally.note_unused(protocol, names)
        for rejection in batch.rejected:
            if rejection.field == "server_name":
                self.tally.note_refused(protocol, str(rejection.value), rejection.reason)


async def both(first: Coroutine[Any, Any, First], second: Coroutine[Any, Any, Second]) -> tuple[First, Second]:
    """The results of both, after both have ended; raises the error of the first that failed."""
    tasks = asyncio.ensure_future(first), asyncio.ensure_future(second)
    await asyncio.wait(tasks)
    return tasks[0].result(), tasks[1].result()
