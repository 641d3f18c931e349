"""Routes about the fleet and the model: servers, profiles, a server's history, the model and its reload."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response

from fleet_forecast.contract.profile_rules import profile_of
from fleet_forecast.contract.specs import METRIC_SPECS, METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.daemon import Daemon, daemon_of, json_answer
from fleet_forecast.serving.routes import schemas as documents
from fleet_forecast.serving.storage.integrity import KnownServer
from fleet_forecast.serving.storage.store import HistoryUnavailableError, RawSample
from server_profiles import PROFILES

MAX_HISTORY_HOURS = 24 * 14
STEPS_PER_READ = 100  # of a history; samples that wait for the disk are written in between


def add_fleet_routes(app: FastAPI) -> None:
    """Add the routes to the application."""

    @app.get("/api/v1/servers", tags=["fleet"], summary="Known servers", responses=documents.SERVERS)
    async def servers(
        request: Request,
        profile: Annotated[list[str] | None, Query(description="only these profiles")] = None,
        limit: Annotated[int, Query(ge=1, le=10_000, description="servers in one answer")] = 1_000,
        after: Annotated[str, Query(description="the last answer's `next`, for the following page")] = "",
    ) -> Response:
        daemon = daemon_of(request)
        return json_answer(await asyncio.to_thread(_servers_page, daemon, profile, limit, after))

    @app.get("/api/v1/profiles", tags=["fleet"], summary="Profiles and their servers", responses=documents.PROFILES)
    async def profiles(request: Request) -> Response:
        return json_answer(await asyncio.to_thread(_profiles, daemon_of(request)))

    @app.get(
        "/api/v1/servers/{name}/history",
        tags=["fleet"],
        summary="What was received of one server",
        responses=documents.HISTORY,
    )
    async def history(
        request: Request,
        name: str,
        hours: Annotated[float, Query(gt=0, le=MAX_HISTORY_HOURS, description="how far back")] = 24.0,
        raw: Annotated[bool, Query(description="samples as received instead of means per step")] = False,
    ) -> Response:
        daemon = daemon_of(request)
        server = daemon.store.servers.get(name)
        if server is None:
            return json_answer({"detail": "no such server: no sample of this name was received"}, 404)
        step_seconds = daemon.store.step_seconds
        last_step = int(daemon.clock() // step_seconds) + 2  # a sample may be somewhat ahead
        first_step = last_step - int(hours * 3600 // step_seconds) - 2
        try:
            found = await asyncio.wrap_future(daemon.store.raw_samples(server.server_id, first_step, last_step))
            if not raw:
                old: dict[int, np.ndarray] = {}
                for first in range(first_step, last_step + 1, STEPS_PER_READ):
                    last = min(first + STEPS_PER_READ - 1, last_step)
                    means = await asyncio.wrap_future(daemon.store.server_step_means(server.server_id, first, last))
                    old.update(means)
                return json_answer(await asyncio.to_thread(_on_step, server, step_seconds, found, old))
        except HistoryUnavailableError as problem:
            return json_answer({"detail": f"the history cannot be read: {problem}"}, 503)
        return json_answer(await asyncio.to_thread(_as_received, server, found))

    @app.get("/api/v1/model", tags=["model"], summary="The model in use", responses=documents.MODEL)
    async def model(request: Request) -> Response:
        return json_answer(_model(daemon_of(request)))

    @app.post("/api/v1/reload", tags=["model"], summary="Load the model again", responses=documents.RELOAD)
    async def reload(request: Request) -> Response:
        daemon = daemon_of(request)
        result = await daemon.model.load()
        document = {"loaded": result.problem is None, "problem": result.problem, **_model(daemon)}
        return json_answer(document, 200 if result.problem is None else 409)


def _servers_page(daemon: Daemon, profiles: list[str] | None, limit: int, after: str) -> dict[str, Any]:
    known = sorted(daemon.store.servers.values(), key=lambda server: server.name)
    described = (_described(daemon, server) for server in known if server.name > after)
    chosen = []
    for server in described:
        if profiles is None or server["profile"] in profiles:
            chosen.append(server)
        if len(chosen) > limit:
            break
    following = chosen[limit - 1]["server_name"] if len(chosen) > limit else None
    return {"servers": chosen[:limit], "next": following}


def _described(daemon: Daemon, server: KnownServer) -> dict[str, Any]:
    profile, rule = profile_of(server.name, server.profile, daemon.rules)
    forecast = daemon.forecasts.snapshot.forecasts.get(server.name)
    last_step = daemon.store.last_step(server.server_id)
    return {
        "server_name": server.name,
        "profile": profile,
        "profile_rule": rule,
        "last_measured_step": None if last_step is None else iso(last_step * daemon.store.step_seconds),
        "forecast_origin": None if forecast is None else iso(forecast.origin_seconds),
        "stale": None if forecast is None else daemon.forecasts.is_stale(forecast),
    }


def _profiles(daemon: Daemon) -> dict[str, Any]:
    matches = [profile_of(server.name, server.profile, daemon.rules) for server in list(daemon.store.servers.values())]
    counts = Counter(profile for profile, _ in matches)
    trained = daemon.forecasts.engine.config.profiles if daemon.forecasts.engine else ()
    others = sorted({*counts, *trained} - set(PROFILES))
    return {
        "profiles": [
            {
                "profile": str(profile),
                "servers": counts[str(profile)],
                "trained": str(profile) in trained,
                "name_patterns": spec.name_patterns,
                "usual": {
                    metric: {"mean": baseline.mean, "spread": baseline.spread, "unit": METRIC_SPECS[metric].unit}
                    for metric, baseline in spec.baselines.items()
                },
            }
            for profile, spec in PROFILES.items()
        ]
        + [
            {"profile": name, "servers": counts[name], "trained": name in trained, "name_patterns": [], "usual": {}}
            for name in others
        ],
        "unmatched_names": sum(rule is None for _, rule in matches),
    }


def _on_step(
    server: KnownServer, step_seconds: int, samples: list[RawSample], old: dict[int, np.ndarray]
) -> dict[str, Any]:
    """Means per step: those stored (float32 [metric] by step), and for the steps still changing the samples'."""
    rows: dict[int, list[float | None]] = {
        step: [None if np.isnan(value) else value for value in means.tolist()] for step, means in old.items()
    }
    by_step: dict[int, list[RawSample]] = {}
    for sample in samples:
        by_step.setdefault(sample.timestamp_ms // 1000 // step_seconds, []).append(sample)
    for step, own in by_step.items():
        values = np.array([sample.values for sample in own], dtype=np.float64)  # None becomes NaN
        count = (~np.isnan(values)).sum(axis=0)
        total = np.nansum(values, axis=0)
        rows[step] = [float(np.float32(t / n)) if n else None for t, n in zip(total, count, strict=True)]
    steps = sorted(rows)
    return {
        "server_name": server.name,
        "step_seconds": step_seconds,
        "timestamps": [iso(step * step_seconds) for step in steps],
        "metrics": {metric: [rows[step][index] for step in steps] for index, metric in enumerate(METRICS)},
    }


def _as_received(server: KnownServer, samples: list[RawSample]) -> dict[str, Any]:
    return {
        "server_name": server.name,
        "timestamps": [_milliseconds_iso(sample.timestamp_ms) for sample in samples],
        "states": [sample.state for sample in samples],
        "metrics": {metric: [s.values[index] for s in samples] for index, metric in enumerate(METRICS)},
    }


def _milliseconds_iso(instant_ms: int) -> str:
    seconds, milliseconds = divmod(instant_ms, 1000)
    return f"{iso(seconds)[:-1]}.{milliseconds:03d}Z" if milliseconds else iso(seconds)


def _model(daemon: Daemon) -> dict[str, Any]:
    engine, last = daemon.forecasts.engine, daemon.model.last_load
    document: dict[str, Any] = {
        "model": None,
        "last_load": None if last is None else {"at": iso(last.at_seconds), "problem": last.problem},
    }
    if engine is not None:
        config = engine.config
        document |= {
            "model": engine.model_id,
            "metrics": config.targets,
            "quantiles": config.quantiles,
            "step_seconds": config.step_seconds,
            "horizon_steps": config.horizon_steps,
            "history_steps": config.history_steps,
            "profiles": config.profiles,
        }
    return document
