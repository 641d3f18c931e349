"""The daemon's own scraper: after each step it asks Prometheus for the fleet and stores what comes as if it were sent.

What it missed (the daemon or Prometheus was down) is asked for again, as far back as samples are kept.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, TypeVar

import pandas as pd

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.ingest.validation import check_records
from fleet_forecast.serving.storage.store import HistoryBusyError, HistoryUnavailableError
from fleet_forecast.sources.prometheus import PrometheusClient, PrometheusError, QuerySet, pull_range

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")
_RECORDS_PER_BATCH = 5_000
_PAUSE_SECONDS = 1.0
SECONDS_PER_PULL = (
    86_400  # of samples; what was missed for longer is asked for day by day, so that memory stays bounded
)


class Puller:
    """Keeps the history up to date from one Prometheus."""

    def __init__(self, daemon: Daemon, client: PrometheusClient, queries: QuerySet) -> None:
        self._daemon, self._client, self._queries = daemon, client, queries
        self._next_step: int | None = None

    async def run(self) -> None:
        """Pull for ever; a Prometheus that does not answer is logged, counted and asked again."""
        pause = _PAUSE_SECONDS
        while True:
            try:
                await self.pull_due()
                pause = _PAUSE_SECONDS
            except (PrometheusError, HistoryBusyError, HistoryUnavailableError) as problem:
                self._daemon.pulls["failure"] += 1
                LOG.error("pull failed", extra={"reason": str(problem)})
                pause = min(pause * 2, 60.0)
            await asyncio.sleep(pause)

    async def pull_due(self) -> int:
        """Store the steps that ended since the last pull, a day of them at most; gives the number of samples."""
        settings, store = self._daemon.settings, self._daemon.store
        step_seconds = store.step_seconds
        # Half of the grace: what is pulled is on disk when the step counts as complete.
        ended = int((self._daemon.clock() - settings.grace_seconds / 2) // step_seconds)
        oldest = ended - math.floor(settings.retention_hours * 3600 / step_seconds) + 1
        if self._next_step is not None and self._next_step > ended:
            self._next_step = None  # the clock was ahead; what was asked for then had not been measured
        first = max(self._first_step(oldest), oldest)
        if first >= ended:
            return 0
        after = min(ended, first + SECONDS_PER_PULL // step_seconds)
        begin, end = (datetime.fromtimestamp(step * step_seconds, UTC) for step in (first, after))
        frame = await _on_daemon_thread(pull_range, self._client, self._queries, begin, end, step_seconds)
        stored = 0
        for records in _batches(frame):
            stored += await self._store(records)
        self._next_step = after
        self._daemon.pulls["success"] += 1
        LOG.info("pulled", extra={"from": iso(first * step_seconds), "samples": stored})
        return stored

    def _first_step(self, oldest: int) -> int:
        """Where to go on: after the last pull, or after what is stored already."""
        if self._next_step is not None:
            return self._next_step
        store = self._daemon.store
        known = list(store.servers.values())  # a copy: other threads add servers meanwhile
        return max((store.last_step(server.server_id) or oldest for server in known), default=oldest)

    async def _store(self, records: list[dict[str, Any]]) -> int:
        daemon = self._daemon
        batch = await asyncio.to_thread(check_records, records, 0, int(daemon.clock() * 1000), daemon.store.may_add)
        if batch.samples:
            await asyncio.wrap_future(daemon.store.append(batch.samples))
        daemon.accepted += len(batch.samples)
        daemon.rejected.update(rejection.field for rejection in batch.rejected)
        for rejection in batch.rejected[:3]:
            LOG.warning("pulled sample rejected", extra={"field": rejection.field, "value": rejection.value})
        return len(batch.samples)


async def _on_daemon_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    """As asyncio.to_thread, but when cancelled the end of the process does not wait for the work.

    A Prometheus that hangs holds its thread for minutes.
    """
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()  # from here on only the thread ends it

    def run() -> None:
        try:
            done.set_result(work(*arguments))
        except BaseException as problem:
            done.set_exception(problem)

    threading.Thread(target=run, name="pull", daemon=True).start()
    return await asyncio.wrap_future(done)


def _batches(frame: pd.DataFrame) -> Iterator[list[dict[str, Any]]]:
    """Rows as records of the ingest, oldest first."""
    metrics = [metric for metric in METRICS if metric in frame.columns]
    ordered = frame.sort_values("timestamp", kind="stable")
    for start in range(0, len(ordered), _RECORDS_PER_BATCH):
        part = ordered.iloc[start : start + _RECORDS_PER_BATCH]
        moments = [iso(moment.timestamp()) for moment in part["timestamp"]]
        rows = zip(moments, part["server_name"], part[metrics].astype(float).to_numpy().tolist(), strict=True)
        yield [
            {
                "timestamp": moment,
                "server_name": name,
                **{m: None if math.isnan(value) else value for m, value in zip(metrics, values, strict=True)},
            }
            for moment, name, values in rows
        ]
