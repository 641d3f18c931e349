"""Writes the forecasts of each cycle by Prometheus remote write, with a bounded queue and retries.

Requests are made in a worker thread and sent in the background: a database that is slow or away delays no cycle. Of
each server the first forecast from an origin is written. Later ones from the same origin, after late samples, are not:
the database would keep both. Forecasts of steps that are not complete are not written.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cramjam
import httpx
from tenacity import AsyncRetrying, RetryCallState

from fleet_forecast.name_patterns import compile_whole_name
from fleet_forecast.retry import TransientError, back_off, retry_after_seconds
from fleet_forecast.serving.export.series import Cell, chosen_cells, write_request
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ModelView, ServerForecast
from fleet_forecast.serving.referenced_files import ForecastTarget
from fleet_forecast.sources.bounded_http import BoundedClient, ResponseLimits

LOG = logging.getLogger(__name__)
SAMPLES_PER_REQUEST = 5_000
MAX_QUEUED_BYTES = 64 * 1024 * 1024  # of compressed requests
LONGEST_PAUSE_SECONDS = 30.0
LIMITS = ResponseLimits(max_bytes=64 * 1024, seconds=30.0, needs_content=False)  # the status counts
HEADERS = {
    "content-type": "application/x-protobuf",
    "content-encoding": "snappy",
    "x-prometheus-remote-write-version": "0.1.0",
}


class _Request(NamedTuple):
    body: bytes
    samples: int


class ForecastWriter:
    """Writes the forecasts of one daemon to one database. Counts are of samples, since the start."""

    def __init__(self, target: ForecastTarget, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.address = target.access.address
        self.written = self.failures = 0  # failures: of requests, each is tried again
        self.not_written: Counter[str] = Counter(queue_full=0, refused=0)
        self.series_per_server = 0
        self._table, self._url = target.table, target.access.url
        self._pattern = compile_whole_name(target.table.servers)
        self._client = BoundedClient(LIMITS, target.access.headers, transport, target.access.certificates)
        self._queue: deque[_Request] = deque()
        self._queued_bytes = 0
        self._snapshot = FleetSnapshot()
        self._new_cycle, self._queued = asyncio.Event(), asyncio.Event()
        self._last_origins: dict[str, int] = {}  # of what was queued, by server
        self._model: ModelView | None = None
        self._cells: tuple[Cell, ...] = ()
        self._failure: str | None = None  # of the last request
        self._missing: str | None = None  # what is chosen and the model does not forecast

    @property
    def problem(self) -> str | None:
        """Why the last request failed, or what is chosen and not forecast."""
        return self._failure or self._missing

    @property
    def waiting(self) -> int:
        """Samples in the queue."""
        return sum(request.samples for request in self._queue)

    def on_cycle(self, snapshot: FleetSnapshot) -> None:
        """Listener of the forecast loop."""
        self._snapshot = snapshot
        self._new_cycle.set()

    async def queue_cycles(self) -> None:
        """Queue the new forecasts of each cycle until cancelled."""
        while True:
            await self._new_cycle.wait()
            self._new_cycle.clear()
            for part in self._parts(self._snapshot):
                request = await asyncio.to_thread(self._request, part)
                if request.samples:
                    self._enqueue(request)
                self._last_origins.update({each.server_name: each.origin_seconds for each in part})

    async def send_queue(self) -> None:
        """Send until cancelled; what fails is repeated after pauses that double, what is refused is left out."""
        policy = back_off(TransientError, LONGEST_PAUSE_SECONDS)
        send = AsyncRetrying(**policy, before_sleep=self._count_failure)
        if self._queue:  # after a restart of this task
            self._queued.set()
        while True:
            await self._queued.wait()
            self._queued.clear()
            while self._queue:
                await send(self._send_first)

    async def close(self) -> None:
        """Close the connections, after the work has ended."""
        await self._client.close()

    def _parts(self, snapshot: FleetSnapshot) -> Iterator[Sequence[ServerForecast]]:
        """The forecasts to write, in parts of one request."""
        model = snapshot.model
        chosen = [forecast for forecast in snapshot.forecasts.values() if self._is_new(forecast, model)]
        known = snapshot.forecasts
        self._last_origins = {name: origin for name, origin in self._last_origins.items() if name in known}
        if not chosen or model is None:
            return
        if model != self._model:
            self._use(model, chosen[0].horizon_steps)
        servers = max(1, SAMPLES_PER_REQUEST // max(1, len(self._cells)))
        for start in range(0, len(chosen) if self._cells else 0, servers):
            yield chosen[start : start + servers]

    def _is_new(self, forecast: ServerForecast, model: ModelView | None) -> bool:
        return (
            forecast.model == model
            and not forecast.provisional
            and forecast.origin_seconds > self._last_origins.get(forecast.server_name, -1)
            and self._pattern.match(forecast.server_name) is not None
        )

    def _use(self, model: ModelView, horizon_steps: int) -> None:
        self._cells, missing = chosen_cells(self._table, model, horizon_steps)
        self._model, self.series_per_server = model, len(self._cells)
        self._missing = f"{model.model_id} does not forecast {', '.join(missing)}" if missing else None
        fields = {"to": self.address, "series_per_server": len(self._cells), "not_forecast": missing}
        LOG.log(logging.ERROR if missing else logging.INFO, "forecasts are written", extra=fields)

    def _request(self, forecasts: Sequence[ServerForecast]) -> _Request:
        body, samples = write_request(forecasts, self._cells)
        return _Request(bytes(cramjam.snappy.compress_raw(body)), samples)

    def _enqueue(self, request: _Request) -> None:
        """Add a request; a full queue drops the oldest ones."""
        self._queue.append(request)
        self._queued_bytes += len(request.body)
        while self._queued_bytes > MAX_QUEUED_BYTES and len(self._queue) > 1:
            dropped = self._queue.popleft()
            self._queued_bytes -= len(dropped.body)
            self.not_written["queue_full"] += dropped.samples
        self._queued.set()

    async def _send_first(self) -> None:
        """Send the first request; it leaves the queue when it is accepted or refused. Raises TransientError."""
        if not self._queue:
            return
        request = self._queue[0]
        try:
            response = await self._client.post(self._url, content=request.body, headers=HEADERS)
        except (httpx.HTTPError, OSError, ValueError) as problem:
            raise TransientError(f"{type(problem).__name__}: {problem}") from None
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.status_code >= 500:
            reason = f"status {response.status_code}: {response.text[:200]}"
            raise TransientError(reason, retry_after_seconds(response))
        self._failure = None if response.is_success else f"status {response.status_code}: {response.text[:200]}"
        if not response.is_success:
            LOG.error("forecasts refused", extra={"to": self.address, "reason": self._failure})
        if not self._queue or self._queue[0] is not request:
            return  # dropped meanwhile, and counted
        self._queue.popleft()
        self._queued_bytes -= len(request.body)
        if response.is_success:
            self.written += request.samples
        else:
            self.not_written["refused"] += request.samples

    def _count_failure(self, state: RetryCallState) -> None:
        problem = state.outcome.exception() if state.outcome else None
        self.failures += 1
        self._failure = str(problem)
        LOG.error("forecasts not written", extra={"to": self.address, "reason": self._failure})
