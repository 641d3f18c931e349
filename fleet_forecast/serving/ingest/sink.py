"""The one way into the store: records are checked, the accepted ones are stored, both are counted."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from fleet_forecast.serving.clients import ANYONE, Client
from fleet_forecast.serving.ingest.rows import CheckedRows, check_rows
from fleet_forecast.serving.ingest.senders import SenderChecks
from fleet_forecast.serving.ingest.tally import NOT_USED, IngestTally, Protocol
from fleet_forecast.serving.ingest.validation import BodyError, CheckedBatch, check_records, parse_records
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.servers import NewNames
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.sources.protocols.received import MalformedBodyError, ReceivedSamples
from server_profiles import BUILT_IN_RULES, ProfileRules

LOG = logging.getLogger(__name__)
MS_PER_HOUR, MS_PER_MINUTE = 3_600_000, 60_000
LOGGED_REJECTIONS = 3  # of each batch that has no client to answer
Decode = Callable[[], ReceivedSamples]  # raises MalformedBodyError
Batch = TypeVar("Batch", bound=CheckedBatch)


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
    ) -> None:
        self.accepted = 0
        self.rejected: Counter[str] = Counter()  # by the field at fault
        self.tally = IngestTally()
        self.pulls: Counter[str] = Counter()  # from Prometheus, by "success" and "failure"
        self.settings, self.store, self.clock = settings, store, clock
        self.senders = SenderChecks(store, rules)
        # One worker thread: the interpreter runs one thread at a time, and each further runnable thread delays
        # the event loop.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="ingest")

    async def take_body(self, body: bytes, client: Client = ANYONE) -> CheckedBatch:
        """Store the records of a request's JSON body; returns when they are on disk.

        Raises BodyError if the body cannot be used as a whole, HistoryBusyError or HistoryUnavailableError if nothing
        was stored.
        """
        batch = await self._store(self._checked_body, (body, client))
        self._count_records(Protocol.JSON, batch)
        return batch

    async def take_pulled(self, records: list[Any]) -> CheckedBatch:
        """Store records that the daemon pulled: of any age, and none from the future.

        Returns when they are on disk and logs the first rejections. Raises HistoryBusyError or
        HistoryUnavailableError if nothing was stored.
        """
        batch = await self._store(self._checked_pull, records)
        self._count_records(Protocol.PROMETHEUS, batch)
        for rejection in batch.rejected[:LOGGED_REJECTIONS]:
            LOG.warning("pulled sample rejected", extra={"field": rejection.field, "value": rejection.value})
        return batch

    async def take_received(self, protocol: Protocol, decode: Decode, client: Client) -> CheckedRows:
        """Store the samples that `decode` finds in a request's body; returns when they are on disk.

        decode: runs in the worker thread. Raises BodyError if the body cannot be used as a whole, HistoryBusyError or
        HistoryUnavailableError if nothing was stored.
        """
        batch = await self._store(self._checked_received, (decode, client))
        self._count_received(protocol, batch)
        batch.received.on_stored(batch.refused_servers)
        return batch

    def _bounds_ms(self) -> tuple[int, int]:
        """The earliest and the latest time of samples that are sent."""
        settings, now_ms = self.settings, self.clock() * 1000
        earliest_ms = math.ceil(now_ms - settings.retention_hours * MS_PER_HOUR)
        return earliest_ms, math.floor(now_ms + settings.future_minutes * MS_PER_MINUTE)

    def _checked_body(self, received: tuple[bytes, Client], names: NewNames) -> CheckedBatch:
        body, client = received
        records = parse_records(body, self.settings.max_records)
        batch = check_records(records, *self._bounds_ms(), partial(self.senders.refusal_of, client, names))
        self.senders.check_profiles(batch, client)
        self.senders.note_source(batch, client)
        return batch

    def _checked_received(self, received: tuple[Decode, Client], names: NewNames) -> CheckedRows:
        decode, client = received
        try:
            samples = decode()
        except MalformedBodyError as problem:
            raise BodyError(str(problem)) from None
        batch = check_rows(samples, *self._bounds_ms(), partial(self.senders.refusal_of, client, names))
        self.senders.note_source(batch, client)
        return batch

    def _checked_pull(self, records: list[Any], names: NewNames) -> CheckedBatch:
        return check_records(records, 0, int(self.clock() * 1000), partial(self.senders.refusal_of, ANYONE, names))

    async def _store(self, check: Callable[[Any, NewNames], Batch], received: Any) -> Batch:
        names = self.store.new_names()
        try:
            batch = await asyncio.get_running_loop().run_in_executor(self.worker, check, received, names)
            if batch.samples:
                await asyncio.wrap_future(self.store.append(batch.samples))
        finally:
            names.release()
        self.accepted += len(batch.samples)
        self.rejected.update(rejection.field for rejection in batch.rejected)
        return batch

    def _count_records(self, protocol: Protocol, batch: CheckedBatch) -> None:
        """Count the values of accepted records, and rejected records by the field at fault."""
        values = (sample.values for sample in batch.samples)
        self.tally.stored[protocol] += sum(len(each) - each.count(None) for each in values)
        self.tally.not_stored.update((protocol, rejection.field) for rejection in batch.rejected)
        self._leave_out(protocol, batch, batch.ignored_fields)

    def _count_received(self, protocol: Protocol, batch: CheckedRows) -> None:
        """Count the samples of a request by what became of them."""
        received, counts = batch.received, self.tally.not_stored
        self.tally.stored[protocol] += batch.stored_samples
        reasons = batch.rejected_samples + received.notices
        reasons += Counter(not_measured=received.not_measured, other_name=received.left_out.total())
        counts.update({(protocol, reason): count for reason, count in reasons.items()})
        self._leave_out(protocol, batch, received.left_out)

    def _leave_out(self, protocol: Protocol, batch: CheckedBatch, names: Iterable[str]) -> None:
        self.tally.leave_out(protocol, names, NOT_USED)
        for rejection in batch.rejected:
            if rejection.field == "server_name":
                self.tally.leave_out(protocol, [str(rejection.value)], rejection.reason)
