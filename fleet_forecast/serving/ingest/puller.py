"""Pulls the fleet from a Prometheus after each step and stores it like records that were sent.

Steps missed while the daemon or Prometheus was down are asked for again, up to the retention of the store.
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
from tenacity import AsyncRetrying, RetryCallState

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.retry import back_off
from fleet_forecast.serving.ingest.sink import IngestSink
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryUnavailableError
from fleet_forecast.sources.prometheus import PrometheusClient, PrometheusError, QuerySet, TimeRange, pull_range

LOG = logging.getLogger(__name__)
PULL_ERRORS = (PrometheusError, HistoryBusyError, HistoryUnavailableError)
Result = TypeVar("Result")
_RECORDS_PER_BATCH = 5_000
_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
SECONDS_PER_PULL = 86_400  # of samples: a longer gap is asked for day by day, so that memory stays bounded


class Puller:
    """Keeps the store up to date from one Prometheus."""

    def __init__(self, sink: IngestSink, client: PrometheusClient, queries: QuerySet) -> None:
        self._sink, self._client, self._queries = sink, client, queries
        self._next_step: int | None = None

    async def run(self) -> None:
        """Pull until cancelled; a failed pull is logged, counted and tried again after a pause."""
        policy = back_off(PULL_ERRORS, LONGEST_PAUSE_SECONDS, first_pause_seconds=2 * _PAUSE_SECONDS)
        while True:
            await AsyncRetrying(**policy, before_sleep=self._count_failure)(self.pull_due)
            await asyncio.sleep(_PAUSE_SECONDS)

    def _count_failure(self, state: RetryCallState) -> None:
        problem = state.outcome.exception() if state.outcome else None
        self._sink.pulls["failure"] += 1
        LOG.error("pull failed", extra={"reason": str(problem)})

    async def pull_due(self) -> int:
        """Store the steps that ended since the last pull, a day of them at most; returns the number of samples."""
        settings, step_seconds = self._sink.settings, self._sink.store.step_seconds
        # After half of the grace time: the samples are on disk when the step counts as complete.
        ended = int((self._sink.clock() - settings.grace_seconds / 2) // step_seconds)
        oldest = ended - math.floor(settings.retention_hours * 3600 / step_seconds) + 1
        if self._next_step is not None and self._next_step > ended:
            self._next_step = None  # the clock was ahead at the last pull: those steps were not measured yet
        first = max(self._first_step(oldest), oldest)
        if first >= ended:
            return 0
        after = min(ended, first + SECONDS_PER_PULL // step_seconds)
        begin, end = (datetime.fromtimestamp(step * step_seconds, UTC) for step in (first, after))
        frame = await _on_daemon_thread(pull_range, self._client, self._queries, TimeRange(begin, end), step_seconds)
        stored = 0
        for records in _batches(frame):
            stored += len((await self._sink.take_pulled(records)).samples)
        self._next_step = after
        self._sink.pulls["success"] += 1
        LOG.info("pulled", extra={"from": iso(first * step_seconds), "samples": stored})
        return stored

    def _first_step(self, oldest: int) -> int:
        """The step after the last pull, or the newest stored one."""
        if self._next_step is not None:
            return self._next_step
        store = self._sink.store
        known = list(store.servers.values())  # a copy: other threads add servers meanwhile
        return max((store.last_step(server.server_id) or oldest for server in known), default=oldest)


async def _on_daemon_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    """asyncio.to_thread on a daemon thread, so that the process can end while a Prometheus does not answer."""
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()  # not cancellable: only the thread sets its result

    def run() -> None:
        try:
            done.set_result(work(*arguments))
        except BaseException as problem:
            done.set_exception(problem)

    threading.Thread(target=run, name="pull", daemon=True).start()
    return await asyncio.wrap_future(done)


def _batches(frame: pd.DataFrame) -> Iterator[list[dict[str, Any]]]:
    """The rows as records in the order of time, in batches."""
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
