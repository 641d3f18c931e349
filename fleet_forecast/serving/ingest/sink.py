"""The one way into the store: records are checked, the accepted ones are stored, both are counted."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fleet_forecast.serving.clients import ANYONE, Client
from fleet_forecast.serving.ingest.bodies import ReceivedBody, parse_records, unpacked
from fleet_forecast.serving.ingest.senders import SenderChecks
from fleet_forecast.serving.ingest.validation import CheckedBatch, TimeLimits, check_records
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.servers import NewNames
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import BUILT_IN_RULES, ProfileRules

LOG = logging.getLogger(__name__)
MS_PER_HOUR, MS_PER_MINUTE = 3_600_000, 60_000
MAX_REFUSED_NAMES = 100  # kept for the status
LOGGED_REJECTIONS = 3  # of each batch that has no client to answer


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
        self.left_out_cells: Counter[str] = Counter()  # of accepted records, by metric
        self.refused_names: dict[str, str] = {}  # the first names of servers that were left out -> the reason
        self.pulls: Counter[str] = Counter()  # from Prometheus, by "success" and "failure"
        self.settings, self.store, self.clock = settings, store, clock
        self.senders = SenderChecks(store, rules)
        # One worker thread: the interpreter runs one thread at a time, and each further runnable thread delays
        # the event loop.
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="ingest")

    async def take_body(self, body: ReceivedBody, client: Client = ANYONE) -> CheckedBatch:
        """Store the records of a request's JSON body; returns when they are on disk.

        Raises BodyError if the body cannot be used as a whole, HistoryBusyError or HistoryUnavailableError if nothing
        was stored.
        """
        return await self._store(self._checked_body, (body, client))

    async def take_pulled(self, records: list[Any]) -> CheckedBatch:
        """Store records that the daemon pulled: of any age, and none from the future.

        Returns when they are on disk and logs the first rejections. Raises HistoryBusyError or
        HistoryUnavailableError if nothing was stored.
        """
        batch = await self._store(self._checked_pull, records)
        for rejection in batch.rejected[:LOGGED_REJECTIONS]:
            LOG.warning("pulled sample rejected", extra={"field": rejection.field, "value": rejection.value})
        return batch

    def _checked_body(self, received: tuple[ReceivedBody, Client], names: NewNames) -> CheckedBatch:
        body, client = received
        settings, now_ms = self.settings, self.clock() * 1000
        earliest_ms = math.ceil(now_ms - settings.retention_hours * MS_PER_HOUR)
        latest_ms = math.floor(now_ms + settings.future_minutes * MS_PER_MINUTE)
        records = parse_records(unpacked(body), settings.max_records)
        limits = TimeLimits(earliest_ms, latest_ms, settings.input_timezone)
        batch = check_records(records, limits, partial(self.senders.refusal_of, client, names))
        self.senders.check_profiles(batch, client)
        self.senders.note_source(batch, client)
        return batch

    def _checked_pull(self, records: list[Any], names: NewNames) -> CheckedBatch:
        limits = TimeLimits(0, int(self.clock() * 1000))
        return check_records(records, limits, partial(self.senders.refusal_of, ANYONE, names))

    async def _store(self, check: Callable[[Any, NewNames], CheckedBatch], received: Any) -> CheckedBatch:
        names = self.store.new_names()
        try:
            batch = await asyncio.get_running_loop().run_in_executor(self.worker, check, received, names)
            if batch.samples:
                await asyncio.wrap_future(self.store.append(batch.samples))
        finally:
            names.release()
        self.accepted += len(batch.samples)
        self.rejected.update(rejection.field for rejection in batch.rejected)
        self.left_out_cells.update(cell.field for cell in batch.left_out)
        for rejection in batch.rejected:
            if rejection.field == "server_name":
                self.note_refused_name(str(rejection.value), rejection.reason)
        return batch

    def note_refused_name(self, name: str, reason: str) -> None:
        """Keep the name of a server that was left out, for the status."""
        if len(self.refused_names) < MAX_REFUSED_NAMES:
            self.refused_names.setdefault(name, reason)
