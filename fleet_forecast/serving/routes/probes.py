"""Probes for orchestrators and Prometheus, and the status for people."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse

from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.inference.model_directory import is_starter
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.export.writer import ForecastWriter
from fleet_forecast.serving.ingest.puller import Puller
from fleet_forecast.serving.monitoring.exposition import OPENMETRICS, TEXT, page_parts, wants_openmetrics
from fleet_forecast.serving.routes.responses import ACCESS_REFUSALS, RunningDaemon, Starter, UtcTime, json_response
from fleet_forecast.serving.streaming import bounded_response

MAX_UNMATCHED_NAMES = 100  # in the status

router = APIRouter(tags=["probes"])


class ServersStatus(BaseModel):
    """Numbers of servers."""

    known: int
    forecast: int
    with_risks: Annotated[
        int, Field(description="of those forecast, those whose risk of a breach is known: a complete step was measured")
    ]
    stale: int
    newest_step: Annotated[UtcTime | None, Field(description="the newest step in which a server measured something")]
    unmatched_names: Annotated[list[str], Field(description="the first names that no profile rule matches")]


class CycleStatus(BaseModel):
    """The last forecast cycle with something to forecast, and counts since the start."""

    origin: UtcTime | None
    made_at: UtcTime | None
    seconds: float
    servers: int
    cycles: int
    skipped_steps: Annotated[int, Field(description="steps that ended while a cycle was running")]
    failed: int


class RecordsStatus(BaseModel):
    """Records since the start."""

    accepted: int
    rejected: int
    waiting: Annotated[int, Field(description="accepted and not on disk yet")]
    left_out_cells: Annotated[int, Field(description="values of accepted records, counted as not measured")]


class LeftOut(BaseModel):
    """A metric, field or server that was received and not stored."""

    protocol: str
    name: str
    reason: str


class PrometheusStatus(BaseModel):
    """A Prometheus that the fleet is pulled from."""

    name: str
    address: str
    servers: Annotated[int, Field(description="servers that are taken from it now")]
    conflicts: Annotated[int, Field(description="servers that it has too and pulls left out, since the start")]
    pulled_until: UtcTime | None
    problem: Annotated[str | None, Field(description="why the last pull failed; null if it did not")]


class ExportStatus(BaseModel):
    """The database that forecasts are written to; samples since the start."""

    address: str
    series_per_server: int
    written: int
    waiting: int
    not_written: dict[str, int]
    problem: Annotated[str | None, Field(description="of the last request, or what is chosen and not forecast")]


class HistoryStatus(BaseModel):
    """The file of received samples."""

    file: str
    bytes: int
    writable: bool
    problem: str | None
    damaged_file_set_aside: str | None


class NeighbourStatus(BaseModel):
    """Another shard of the fleet."""

    number: int
    address: str
    missing: Annotated[bool, Field(description="its servers are not among the peers")]
    peers: Annotated[int, Field(description="its servers in the tables of peers")]
    problem: Annotated[str | None, Field(description="why the last request failed; null if it did not")]


class ShardStatus(BaseModel):
    """The part of the fleet that the daemon has."""

    number: int
    count: int
    forward: Annotated[bool, Field(description="records of other shards are sent to these")]
    leaving_servers: Annotated[int, Field(description="of other shards, in the history until these have their samples")]
    leaving_problem: Annotated[str | None, Field(description="why they are not handed over; null if they are")]
    neighbours: Annotated[list[NeighbourStatus], Field(description="the other shards whose addresses are known")]


class StatusResponse(BaseModel):
    """The state of the daemon."""

    ready: bool
    model: str | None
    starter: Starter
    last_load_problem: str | None
    uptime_seconds: float
    servers: ServersStatus
    cycle: CycleStatus
    records: RecordsStatus
    left_out: Annotated[
        list[LeftOut], Field(description="since the start, of each protocol the first 100 servers and other names")
    ]
    prometheus: list[PrometheusStatus]
    forecast_export: ExportStatus | None
    shard: ShardStatus | None
    history: HistoryStatus
    metric_labels: Annotated[dict[str, str], Field(description="of the fleet's metrics that have one, by name")]
    metric_units: Annotated[dict[str, str], Field(description="of the fleet's metrics, by name")]


@router.get("/-/healthy", include_in_schema=False)  # the paths of Prometheus and Alertmanager
@router.get("/healthz", summary="The process is alive", response_class=PlainTextResponse)
async def healthz() -> Response:
    return Response(b"ok\n", media_type="text/plain")


@router.get("/-/ready", include_in_schema=False)
@router.get(
    "/readyz",
    summary="The daemon can forecast",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "a model is loaded and checked"},
        421: ACCESS_REFUSALS[421],
        503: {"description": "no model is loaded; the text gives the reason", "content": {"text/plain": {}}},
    },
)
async def readyz(daemon: RunningDaemon) -> Response:
    if daemon.model.ready:
        return Response(b"ready\n", media_type="text/plain")
    last = daemon.model.last_load
    reason = last.problem if last and last.problem else "the model is still loading"
    return Response(f"not ready: {reason}\n".encode(), 503, media_type="text/plain")


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses={
        200: {"description": "Prometheus text, or OpenMetrics by the Accept header", "content": {"text/plain": {}}},
        **ACCESS_REFUSALS,
    },
)
async def metrics(request: Request, daemon: RunningDaemon) -> Response:
    openmetrics = wants_openmetrics(request.headers.get("accept", ""))
    state = request.app.state
    async with state.rendering:  # one at a time
        blocks = await asyncio.to_thread(state.exposition.update, daemon)
    return await bounded_response(page_parts(blocks, daemon, openmetrics), OPENMETRICS if openmetrics else TEXT)


@router.get(
    "/status",
    summary="The state of the daemon, for people",
    response_model=StatusResponse,
    response_description="the status",
    responses=ACCESS_REFUSALS,
)
async def status(daemon: RunningDaemon) -> Response:
    return json_response(await asyncio.to_thread(_status, daemon))


def _status(daemon: Daemon) -> dict[str, Any]:
    engine, last = daemon.forecasts.engine, daemon.model.last_load
    snapshot, store = daemon.forecasts.snapshot, daemon.store
    return {
        "ready": daemon.model.ready,
        "model": engine.model_id if engine else None,
        "starter": engine is not None and is_starter(engine.model_id),
        "last_load_problem": last.problem if last else None,
        "uptime_seconds": round(time.monotonic() - daemon.started_monotonic, 1),
        "servers": {
            "known": len(store.servers),
            "forecast": len(snapshot.forecasts),
            "with_risks": _with_risks(daemon),
            "stale": daemon.forecasts.stale_servers(),
            "newest_step": _newest_step(daemon),
            "unmatched_names": snapshot.unmatched[:MAX_UNMATCHED_NAMES],
        },
        "cycle": _cycle_status(daemon),
        "records": {
            "accepted": daemon.ingest.accepted,
            "rejected": daemon.ingest.rejected.total(),
            "waiting": store.waiting_records(),
            "left_out_cells": daemon.ingest.left_out_cells.total(),
        },
        "left_out": daemon.ingest.tally.left_out(),
        "prometheus": [_prometheus_status(puller) for puller in daemon.pullers],
        "forecast_export": _export_status(daemon.forecast_writer),
        "shard": _shard_status(daemon),
        "history": {
            "file": str(store.path),
            "bytes": store.size_bytes(),
            "writable": store.failure is None,
            "problem": store.failure,
            "damaged_file_set_aside": None if store.set_aside is None else str(store.set_aside),
        },
        "metric_labels": {name: spec.label for name, spec in METRIC_SPECS.items() if spec.label},
        "metric_units": {name: spec.unit for name, spec in METRIC_SPECS.items()},
    }


def _with_risks(daemon: Daemon) -> int:
    """Number of forecast servers that were assessed after a complete step with a measurement."""
    assessed = daemon.alerts.probabilities.keys()
    return sum(
        name in assessed and forecast.has_complete_step
        for name, forecast in daemon.forecasts.snapshot.forecasts.items()
    )


def _newest_step(daemon: Daemon) -> str | None:
    store = daemon.store
    servers = list(store.servers.values())  # a copy: other threads add servers meanwhile
    newest = max((store.last_step(server.server_id) or 0 for server in servers), default=0)
    return iso(newest * store.step_seconds) if newest else None


def _shard_status(daemon: Daemon) -> dict[str, Any] | None:
    own, exchange = daemon.settings.own_shard, daemon.exchange
    if own is None:
        return None
    neighbours = [
        {
            "number": number,
            "address": neighbour.address,
            "missing": exchange is None or exchange.exchanged[number].missing,
            "peers": 0 if exchange is None else exchange.peers.count_of(number),
            "problem": neighbour.problem,
        }
        for number, neighbour in daemon.neighbours.items()
    ]
    return {
        "number": own.number,
        "count": own.count,
        "forward": daemon.ingest.forwarder is not None,
        "leaving_servers": len(daemon.store.leaving),
        "leaving_problem": daemon.hand_over.problem,
        "neighbours": neighbours,
    }


def _prometheus_status(puller: Puller) -> dict[str, Any]:
    name, pulled_until = puller.server.name, puller.pulled_until_seconds
    return {
        "name": name,
        "address": puller.server.client.address,
        "servers": puller.owners.count(name),
        "conflicts": puller.owners.conflicts[name],
        "pulled_until": None if pulled_until is None else iso(pulled_until),
        "problem": puller.problem,
    }


def _export_status(writer: ForecastWriter | None) -> dict[str, Any] | None:
    if writer is None:
        return None
    return {
        "address": writer.address,
        "series_per_server": writer.series_per_server,
        "written": writer.written,
        "waiting": writer.waiting,
        "not_written": writer.not_written,
        "problem": writer.problem,
    }


def _cycle_status(daemon: Daemon) -> dict[str, Any]:
    snapshot, statistics = daemon.forecasts.snapshot, daemon.forecasts.statistics
    return {
        "origin": None if snapshot.origin_seconds is None else iso(snapshot.origin_seconds),
        "made_at": None if snapshot.made_at_seconds is None else iso(snapshot.made_at_seconds),
        "seconds": round(statistics.last_seconds, 3),
        "servers": statistics.last_servers,
        "cycles": statistics.cycles,
        "skipped_steps": statistics.skipped,
        "failed": statistics.failed,
    }
