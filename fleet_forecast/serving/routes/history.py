"""GET /api/v1/servers/{name}/history: the received samples of one server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime, BaseModel, Field

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.query_parameters import wrong_parameter
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    RunningDaemon,
    UtcTime,
    json_response,
    refusal,
    unknown_server,
)
from fleet_forecast.serving.storage.errors import HistoryUnavailableError
from fleet_forecast.serving.storage.samples import KnownServer, RawSample

MAX_HISTORY_HOURS = 24 * 14
MAX_SAMPLES = 10_000  # as received, in one response: about a megabyte
STEPS_PER_READ, SAMPLES_PER_READ = 100, 1_000  # the store writes waiting samples between two reads

router = APIRouter(tags=["fleet"])


class HistoryQuery(BaseModel):
    """The time, and whether to return means or samples."""

    hours: Annotated[float, Field(gt=0, le=MAX_HISTORY_HOURS, description="hours before now")] = 24.0
    raw: Annotated[bool, Field(description="samples as received instead of means for each step")] = False
    limit: Annotated[int, Field(ge=1, le=MAX_SAMPLES, description="samples as received in one response")] = MAX_SAMPLES
    after: Annotated[AwareDatetime | None, Field(description="`next` of the previous page")] = None


class HistoryResponse(BaseModel):
    """Means for each step, or samples as received: one value for each timestamp and metric."""

    server_name: str
    next: Annotated[str | None, Field(description="`after` of the following page; null on the last one")] = None
    step_seconds: Annotated[int | None, Field(description="missing for samples as received")] = None
    timestamps: list[UtcTime]
    states: Annotated[list[str | None], Field(description="only of samples as received")] = []
    metrics: Annotated[dict[str, list[float | None]], Field(description="null where not measured")]


@router.get(
    "/api/v1/servers/{name:path}/history",
    summary="Received samples of one server",
    response_model=HistoryResponse,
    response_description="one value for each timestamp and metric, null where not measured",
    responses={
        **ACCESS_REFUSALS,
        404: refusal("no such server"),
        503: refusal("the history cannot be read"),
    },
)
async def history(daemon: RunningDaemon, name: str, query: Annotated[HistoryQuery, Query()]) -> Response:
    for parameter in ("limit", "after"):
        if parameter in query.model_fields_set and not query.raw:
            raise wrong_parameter(parameter, "applies to samples as received; add raw=true, or leave it out")
    server = daemon.store.servers.get(name)
    if server is None:
        return unknown_server(name)
    step_seconds = daemon.store.step_seconds
    last_step = int(daemon.clock() // step_seconds) + 2  # timestamps may be ahead of the clock
    first_step = last_step - int(query.hours * 3600 // step_seconds) - 2
    try:
        if query.raw:
            return await _samples_page(daemon, server, first_step, last_step, query)
        means = await step_means(daemon, server, first_step, last_step)
    except HistoryUnavailableError as problem:
        return json_response({"detail": f"the history cannot be read: {problem}"}, 503)
    return json_response(await asyncio.to_thread(_by_step, server, step_seconds, means))


async def step_means(daemon: Daemon, server: KnownServer, first_step: int, last_step: int) -> dict[int, np.ndarray]:
    """Means by step, float32 [metric]: of the samples while they are kept, else the stored ones."""
    found: dict[int, np.ndarray] = {}
    for first in range(first_step, last_step + 1, STEPS_PER_READ):
        asked = server.server_id, first, min(first + STEPS_PER_READ - 1, last_step)
        for read in (daemon.store.server_step_means, daemon.store.server_sample_means):
            means: dict[int, np.ndarray] = await asyncio.wrap_future(read(*asked))
            found.update(means)
    return found


def _by_step(server: KnownServer, step_seconds: int, means: dict[int, np.ndarray]) -> dict[str, Any]:
    steps = sorted(means)
    columns = np.array([means[step] for step in steps], np.float32).reshape(-1, len(METRICS)).T  # (metric, step)
    return {
        "server_name": server.name,
        "next": None,
        "step_seconds": step_seconds,
        "timestamps": [iso(step * step_seconds) for step in steps],
        "metrics": {metric: np.ascontiguousarray(values) for metric, values in zip(METRICS, columns, strict=True)},
    }


async def _samples_page(
    daemon: Daemon, server: KnownServer, first_step: int, last_step: int, query: HistoryQuery
) -> Response:
    after_ms = -1 if query.after is None else _milliseconds(query.after)
    first_step = max(first_step, after_ms // 1000 // daemon.store.step_seconds)
    samples: list[RawSample] = []
    while len(samples) <= query.limit:
        most = min(SAMPLES_PER_READ, query.limit + 1 - len(samples))
        read = await asyncio.wrap_future(
            daemon.store.raw_samples(server.server_id, first_step, last_step, after_ms, most)
        )
        samples += read
        if len(read) < most:
            break
        after_ms = read[-1].timestamp_ms
        first_step = after_ms // 1000 // daemon.store.step_seconds
    return json_response(await asyncio.to_thread(_as_received, server, samples, query.limit))


def _as_received(server: KnownServer, samples: Sequence[RawSample], limit: int) -> dict[str, Any]:
    """samples: those of the page, and one more if there is a following page."""
    page = samples[:limit]
    return {
        "server_name": server.name,
        "next": _iso_received(page[-1].timestamp_ms) if len(samples) > limit else None,
        "timestamps": [_iso_received(sample.timestamp_ms) for sample in page],
        "states": [sample.state for sample in page],
        "metrics": {metric: [s.values[index] for s in page] for index, metric in enumerate(METRICS)},
    }


def _milliseconds(time: datetime) -> int:
    return math.floor(time.timestamp() * 1000 + 0.5)


def _iso_received(instant_ms: int) -> str:
    """UTC time, with milliseconds only where they are not 0."""
    seconds, milliseconds = divmod(instant_ms, 1000)
    return f"{iso(seconds)[:-1]}.{milliseconds:03d}Z" if milliseconds else iso(seconds)
