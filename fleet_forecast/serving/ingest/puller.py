"""Pulls the fleet from Prometheus servers after each step and stores it like records that were sent.

Each has a puller of its own. Steps missed while the daemon or Prometheus was down are asked for again, up to the
retention of the store. The time up to which samples were pulled is stored with them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from tenacity import AsyncRetrying, RetryCallState

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.retry import back_off
from fleet_forecast.serving.daemon_thread import on_daemon_thread
from fleet_forecast.serving.ingest.sink import IngestSink
from fleet_forecast.serving.ingest.tally import Protocol
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryUnavailableError
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.shard import Shard
from fleet_forecast.sources.connections_file import ONLY_SERVER
from fleet_forecast.sources.fleet_pull import LeftOut, Owners, own_part
from fleet_forecast.sources.prometheus import PrometheusError, PrometheusServer, TimeRange, pull_range

LOG = logging.getLogger(__name__)
PULL_ERRORS = (PrometheusError, HistoryBusyError, HistoryUnavailableError)
_RECORDS_PER_BATCH = 5_000
_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
SECONDS_PER_PULL = 86_400  # of samples: a longer gap is asked for day by day, so that memory stays bounded


class Puller:
    """Keeps the store up to date from one Prometheus. owners: shared by the pullers of all of them."""

    def __init__(self, sink: IngestSink, server: PrometheusServer, owners: Owners) -> None:
        self.server, self.owners = server, owners
        self.problem: str | None = None  # of the last pull
        self._sink = sink
        self._position = "" if server.name == ONLY_SERVER else server.name
        self._pulled_until: int | None = None  # seconds since 1970; None: not read from the store yet

    async def run(self) -> None:
        """Pull until cancelled; a failed pull is logged, counted and tried again after a pause."""
        policy = back_off(PULL_ERRORS, LONGEST_PAUSE_SECONDS, first_pause_seconds=2 * _PAUSE_SECONDS)
        while True:
            await AsyncRetrying(**policy, before_sleep=self._count_failure)(self.pull_due)
            await asyncio.sleep(_PAUSE_SECONDS)

    def _count_failure(self, state: RetryCallState) -> None:
        problem, name = state.outcome.exception() if state.outcome else None, self.server.name
        self.problem = str(problem)
        self._sink.pulls[name, "failure"] += 1
        if isinstance(problem, PrometheusError):
            self.owners.release(name)  # another Prometheus may have them
        LOG.error("pull failed", extra={"prometheus": name, "reason": self.problem})

    async def pull_due(self) -> int:
        """Store the steps that ended since the last pull, a day of them at most; returns the number of samples."""
        settings, step_seconds = self._sink.settings, self._sink.store.step_seconds
        # After half of the grace time: the samples are on disk when the step counts as complete.
        ended = int((self._sink.clock() - settings.grace_seconds / 2) // step_seconds)
        oldest = ended - math.floor(settings.retention_hours * 3600 / step_seconds) + 1
        first = max(await self._first_step(ended, oldest), oldest)
        if first >= ended:
            return 0
        after = min(ended, first + SECONDS_PER_PULL // step_seconds)
        begin, end = (datetime.fromtimestamp(step * step_seconds, UTC) for step in (first, after))
        time_range, name = TimeRange(begin, end), self.server.name
        frame, refused = await on_daemon_thread(pull_range, self.server, time_range, step_seconds)
        frame, elsewhere = own_part(self.owners, name, of_shard(frame, settings.own_shard))
        for left_out in (*(LeftOut(name, *each) for each in refused.items()), *elsewhere):
            self._sink.tally.note_refused(Protocol.PROMETHEUS, left_out.server, f"{name}: {left_out.reason}")
        stored = 0
        for records in _batches(frame):
            stored += len((await self._sink.take_pulled(records, name)).samples)
        await self._keep_position(after * step_seconds)
        self._sink.pulls[name, "success"] += 1
        self.problem = None
        LOG.info("pulled", extra={"prometheus": name, "from": iso(first * step_seconds), "samples": stored})
        return stored

    @property
    def pulled_until_seconds(self) -> int | None:
        """Samples before this time (since 1970) were pulled; None if none were, or it is not known yet."""
        return self._pulled_until

    async def _first_step(self, ended: int, oldest: int) -> int:
        """The step after the last pull; the oldest one if there was no pull.

        After a pull while the clock was ahead, whose steps were not measured yet: the newest stored step.
        """
        store = self._sink.store
        if self._pulled_until is None:
            self._pulled_until = await asyncio.wrap_future(store.pulled_until(self._position))
        if self._pulled_until is None:
            return oldest
        first = self._pulled_until // store.step_seconds
        return first if first <= ended else newest_stored_step(store, oldest)

    async def _keep_position(self, seconds: int) -> None:
        self._pulled_until = seconds
        try:
            await asyncio.wrap_future(self._sink.store.set_pulled_until(self._position, seconds))
        except HistoryUnavailableError as problem:  # the samples are stored; a restart pulls them again
            LOG.error("position of the pull not stored", extra={"reason": str(problem)})


def of_shard(frame: pd.DataFrame, shard: Shard | None) -> pd.DataFrame:
    """The rows of a shard's servers; None: all."""
    if shard is None:
        return frame
    own = {name for name in frame["server_name"].unique() if shard.has(name)}
    return frame[frame["server_name"].isin(own)]


def newest_stored_step(store: HistoryStore, oldest: int) -> int:
    """The newest step with a measurement of any server; `oldest` if there is none."""
    known = list(store.servers.values())  # a copy: the store's thread adds servers meanwhile
    return max((store.last_step(server.server_id) or oldest for server in known), default=oldest)


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
