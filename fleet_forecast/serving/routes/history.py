"""GET /api/v1/servers/{name}/history: the received samples of one server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.features.step_means import step_means
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    INVALID_PARAMETER,
    RunningDaemon,
    UtcTime,
    json_response,
    refusal,
    unknown_server,
)
from fleet_forecast.serving.storage.errors import HistoryUnavailableError
from fleet_forecast.serving.storage.samples import KnownServer, RawSample

MAX_HISTORY_HOURS = 24 * 14
STEPS_PER_READ = 100  # the store writes waiting samples between two reads

router = APIRouter(tags=["fleet"])


class HistoryResponse(BaseModel):
    """Means for each step, or samples as received: one value for each timestamp and metric."""

    server_name: str
    step_seconds: Annotated[int | None, Field(description="missing for samples as received")] = None
    timestamps: list[UtcTime]
    states: Annotated[list[str | None], Field(description="only of samples as received")] = []
    metrics: Annotated[dict[str, list[float | None]], Field(description="null where not measured")]


@router.get(
    "/api/v1/servers/{name}/history",
    summary="Received samples of one server",
    response_model=HistoryResponse,
    response_description="one value for each timestamp and metric, null where not measured",
    responses={
        **ACCESS_REFUSALS,
        404: refusal("no such server"),
        422: INVALID_PARAMETER,
        503: refusal("the history cannot be read"),
    },
)
async def history(
    daemon: RunningDaemon,
    name: str,
    hours: Annotated[float, Query(gt=0, le=MAX_HISTORY_HOURS, description="hours before now")] = 24.0,
    raw: Annotated[bool, Query(description="samples as received instead of means for each step")] = False,
) -> Response:
    server = daemon.store.servers.get(name)
    if server is None:
        return unknown_server()
    step_seconds = daemon.store.step_seconds
    last_step = int(daemon.clock() // step_seconds) + 2  # timestamps may be ahead of the clock
    first_step = last_step - int(hours * 3600 // step_seconds) - 2
    try:
        samples = await asyncio.wrap_future(daemon.store.raw_samples(server.server_id, first_step, last_step))
        stored = {} if raw else await _stored_means(daemon, server, first_step, last_step)
    except HistoryUnavailableError as problem:
        return json_response({"detail": f"the history cannot be read: {problem}"}, 503)
    if raw:
        return json_response(await asyncio.to_thread(_as_received, server, samples))
    return json_response(await asyncio.to_thread(_by_step, server, step_seconds, samples, stored))


async def _stored_means(daemon: Daemon, server: KnownServer, first_step: int, last_step: int) -> dict[int, np.ndarray]:
    """Stored means by step: float32 [metric]."""
    stored: dict[int, np.ndarray] = {}
    for first in range(first_step, last_step + 1, STEPS_PER_READ):
        last = min(first + STEPS_PER_READ - 1, last_step)
        means = await asyncio.wrap_future(daemon.store.server_step_means(server.server_id, first, last))
        stored.update(means)
    return stored


def _by_step(
    server: KnownServer, step_seconds: int, samples: Sequence[RawSample], stored: dict[int, np.ndarray]
) -> dict[str, Any]:
    """Means by step: the stored ones, and means of the samples for steps that still change."""
    rows: dict[int, list[float | None]] = {
        step: [None if np.isnan(value) else value for value in means.tolist()] for step, means in stored.items()
    }
    by_step: dict[int, list[RawSample]] = {}
    for sample in samples:
        by_step.setdefault(sample.timestamp_ms // 1000 // step_seconds, []).append(sample)
    for step, own in by_step.items():
        values = np.array([sample.values for sample in own], dtype=np.float64)  # None becomes NaN
        means = step_means(np.zeros(len(own), dtype=np.int64), values, 1)[0]
        rows[step] = [None if np.isnan(value) else value for value in means.tolist()]
    steps = sorted(rows)
    return {
        "server_name": server.name,
        "step_seconds": step_seconds,
        "timestamps": [iso(step * step_seconds) for step in steps],
        "metrics": {metric: [rows[step][index] for step in steps] for index, metric in enumerate(METRICS)},
    }


def _as_received(server: KnownServer, samples: Sequence[RawSample]) -> dict[str, Any]:
    return {
        "server_name": server.name,
        "timestamps": [_iso_received(sample.timestamp_ms) for sample in samples],
        "states": [sample.state for sample in samples],
        "metrics": {metric: [s.values[index] for s in samples] for index, metric in enumerate(METRICS)},
    }


def _iso_received(instant_ms: int) -> str:
    """UTC time, with milliseconds only where they are not 0."""
    seconds, milliseconds = divmod(instant_ms, 1000)
    return f"{iso(seconds)[:-1]}.{milliseconds:03d}Z" if milliseconds else iso(seconds)
