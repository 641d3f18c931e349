"""The daemon's HTTP routes: parse, call, answer. What they call does the work."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from fleet_forecast.contract.profile_rules import profile_of
from fleet_forecast.contract.specs import CONTRACT_VERSION, METRICS
from fleet_forecast.inference.engine import Engine
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.loop import AlertLoop, AlertSinks
from fleet_forecast.serving.alerting.notifiers import AlertmanagerNotifier, Notifier
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.background import keep_running
from fleet_forecast.serving.daemon import JSON, Daemon, daemon_of, json_answer, no_forecast, try_again
from fleet_forecast.serving.forecasts.cycle import FleetForecasts
from fleet_forecast.serving.forecasts.model_manager import LoadEngine, LoadResult, ModelSlot
from fleet_forecast.serving.forecasts.selection import Selection, horizon_seconds, refuse_beyond
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ServerForecast, forecast_servers
from fleet_forecast.serving.forecasts.tables import encoded, fleet_table, wanted_table
from fleet_forecast.serving.http.middleware import RequestGuard
from fleet_forecast.serving.ingest.puller import Puller
from fleet_forecast.serving.ingest.validation import BodyError, CheckedBatch, check_records, parse_records
from fleet_forecast.serving.json_bytes import joined_list, to_json
from fleet_forecast.serving.monitoring.events import EventHub
from fleet_forecast.serving.monitoring.exposition import OPENMETRICS, TEXT, Exposition, wants_openmetrics
from fleet_forecast.serving.monitoring.scores import ForecastScores
from fleet_forecast.serving.routes import schemas as documents
from fleet_forecast.serving.routes.dashboard import add_dashboard_routes
from fleet_forecast.serving.routes.explain import add_explain_routes
from fleet_forecast.serving.routes.fleet import add_fleet_routes
from fleet_forecast.serving.routes.live import add_live_routes
from fleet_forecast.serving.routes.responses import forecast_document, rejection_documents
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.serving.storage.store import HistoryBusyError, HistoryStore, HistoryUnavailableError
from fleet_forecast.sources.prometheus import PrometheusClient, QuerySet
from server_profiles import BUILT_IN_RULES, ProfileRules

EARLIEST_MS = 0  # 1970; a history sent for one forecast may be of any age
LATEST_MS = 4_102_444_800_000  # the year 2100
MAX_STRUCTURES_PER_RECORD = 4  # objects and lists in a body; a record is one, further ones are in unknown fields
MAX_FORECAST_SERVERS = 256  # in one POST /api/v1/forecast
MAX_WAITING_FORECASTS = 8
DEFAULT_STEP_SECONDS = 300  # of a new history, until a model says otherwise


def create_app(
    settings: Settings,
    load_engine: LoadEngine | None = None,
    rules: ProfileRules = BUILT_IN_RULES,
    token: bytes | None = None,
    admin_token: bytes | None = None,
    pull_from: tuple[PrometheusClient, QuerySet] | None = None,
    alert_rules: AlertRules | None = None,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The application; the store is opened and the model loaded when it starts, not here.

    clock gives the seconds since 1970 that samples, steps and ages are judged by.
    """

    def load(path: Any) -> Engine:
        return Engine.load(path, device=settings.device, threads=settings.threads or None)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        daemon = await asyncio.to_thread(_open, settings, rules, alert_rules, load_engine or load, clock)
        daemon.deliveries += _deliveries(daemon)
        app.state.daemon = daemon
        state_file = settings.history.with_name(settings.history.name + ".alerts.json")
        sinks = AlertSinks(daemon.events, daemon.deliveries, state_file)
        alert_loop = AlertLoop(daemon.alerts, daemon.scores, daemon.forecasts, sinks, daemon.clock)
        _tell_events(daemon)
        work = [("model", daemon.model.watch), ("forecasts", daemon.forecasts.run), ("alerts", alert_loop.run)]
        work += [("delivery", delivery.run) for delivery in daemon.deliveries]
        if pull_from is not None:
            work.append(("pull", Puller(daemon, *pull_from).run))
        tasks = [asyncio.create_task(keep_running(name, run, daemon.background_failures)) for name, run in work]
        _reload_on_hangup(daemon.model)
        try:
            yield
        finally:
            daemon.events.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(delivery.close() for delivery in daemon.deliveries), return_exceptions=True)
            for worker in (daemon.judge, daemon.forecasts.worker):
                await asyncio.to_thread(worker.shutdown, True, cancel_futures=True)
            await asyncio.to_thread(daemon.store.close)

    app = FastAPI(
        title="Server fleet forecasts",
        version=CONTRACT_VERSION,
        description=documents.DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from a third-party host
        redoc_url=None,
        exception_handlers={RequestValidationError: _invalid_query},
    )
    _add_probes(app)
    _add_ingest(app)
    _add_forecasts(app)
    add_explain_routes(app)
    add_fleet_routes(app)
    add_live_routes(app)
    add_dashboard_routes(app)

    def end_streams() -> None:
        app.state.daemon.events.close()

    app.state.before_shutdown = end_streams
    app.add_middleware(RequestGuard, settings=settings, token=token, admin_token=admin_token)
    return app


def _open(
    settings: Settings,
    rules: ProfileRules,
    alert_rules: AlertRules | None,
    load: LoadEngine,
    clock: Callable[[], float],
) -> Daemon:
    """Open the store and put the parts together; a damaged store delays this by its check, at most."""
    store = HistoryStore(settings.history, DEFAULT_STEP_SECONDS, settings.max_waiting_records, settings.max_servers)
    forecasts = FleetForecasts(settings, store, rules, clock)
    model = ModelSlot(settings.model, load, forecasts)
    book = AlertBook(alert_rules or AlertRules())
    return Daemon(settings, rules, store, forecasts, model, book, ForecastScores(), EventHub(), [], clock)


def _deliveries(daemon: Daemon) -> list[Notifier]:
    settings, book = daemon.settings, daemon.alerts
    found: list[Notifier] = []
    if settings.alertmanager is not None:
        url, seconds = settings.alertmanager, settings.alert_seconds
        found.append(AlertmanagerNotifier(url, lambda: list(book.firing.values()), seconds))
    if settings.webhook is not None:
        found.append(Notifier(settings.webhook))
    return found


def _tell_events(daemon: Daemon) -> None:
    """Tell the event streams of cycles and of models."""

    def on_cycle(snapshot: FleetSnapshot) -> None:
        origin = None if snapshot.origin_seconds is None else iso(snapshot.origin_seconds)
        daemon.events.publish("cycle", {"origin": origin, "servers": len(snapshot.forecasts)})

    def on_model(result: LoadResult) -> None:
        daemon.events.publish("model", {"model": result.model_id, "problem": result.problem})

    daemon.forecasts.listeners.append(on_cycle)
    daemon.model.listeners.append(on_model)


def _reload_on_hangup(model: ModelSlot) -> None:
    """Load the model again on SIGHUP; only where the loop runs in the main thread."""
    running: set[asyncio.Task[Any]] = set()

    def reload() -> None:
        task = asyncio.get_running_loop().create_task(model.load())
        running.add(task)
        task.add_done_callback(running.discard)

    with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread, as in some tests
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


async def _invalid_query(_request: Request, error: Exception) -> Response:
    """422 that names the parameter and the reason, and never echoes the value (it may not be encodable)."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [{"field": ".".join(str(part) for part in p["loc"][1:]), "reason": p["msg"]} for p in problems]
    return Response(to_json({"detail": detail}), 422, media_type=JSON)


# --- probes and status ----------------------------------------------------------------------------------------------


def _add_probes(app: FastAPI) -> None:
    @app.get("/healthz", tags=["probes"], summary="The process answers")
    async def healthz() -> Response:
        return Response(b"ok\n", media_type="text/plain")

    @app.get("/readyz", tags=["probes"], summary="It can forecast", responses=documents.NOT_READY)
    async def readyz(request: Request) -> Response:
        model = daemon_of(request).model
        if model.ready:
            return Response(b"ready\n", media_type="text/plain")
        last = model.last_load
        reason = last.problem if last and last.problem else "the model is still loading"
        return Response(f"not ready: {reason}\n".encode(), 503, media_type="text/plain")

    exposition, rendering = Exposition(), asyncio.Lock()

    @app.get("/metrics", tags=["probes"], summary="For Prometheus to scrape", responses=documents.METRICS_PAGE)
    async def metrics(request: Request) -> Response:
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        async with rendering:
            page = await asyncio.to_thread(exposition.render, daemon_of(request), openmetrics)
        return Response(page, headers={"content-type": OPENMETRICS if openmetrics else TEXT})

    @app.get("/status", tags=["probes"], summary="What the daemon does, for people", responses=documents.STATUS)
    async def status(request: Request) -> Response:
        return json_answer(await asyncio.to_thread(_status, daemon_of(request)))


def _status(daemon: Daemon) -> dict[str, Any]:
    snapshot, figures, store = daemon.forecasts.snapshot, daemon.forecasts.figures, daemon.store
    last = daemon.model.last_load
    return {
        "ready": daemon.model.ready,
        "model": daemon.forecasts.engine.model_id if daemon.forecasts.engine else None,
        "last_load_problem": last.problem if last else None,
        "uptime_seconds": round(time.monotonic() - daemon.started_monotonic, 1),
        "servers": {
            "known": len(store.servers),
            "forecast": len(snapshot.forecasts),
            "stale": daemon.forecasts.stale_servers(),
            "unmatched_names": snapshot.unmatched[:100],
        },
        "cycle": {
            "origin": None if snapshot.origin_seconds is None else iso(snapshot.origin_seconds),
            "made_at": None if snapshot.made_at_seconds is None else iso(snapshot.made_at_seconds),
            "seconds": round(figures.last_seconds, 3),
            "servers": figures.last_servers,
            "cycles": figures.cycles,
            "skipped_steps": figures.skipped,
            "failed": figures.failed,
        },
        "records": {
            "accepted": daemon.accepted,
            "rejected": daemon.rejected.total(),
            "waiting": store.waiting_records(),
        },
        "history": {
            "file": str(store.path),
            "bytes": store.size_bytes(),
            "writable": store.failure is None,
            "problem": store.failure,
            "damaged_file_set_aside": None if store.set_aside is None else str(store.set_aside),
        },
    }


# --- ingest ---------------------------------------------------------------------------------------------------------


def _add_ingest(app: FastAPI) -> None:
    @app.post("/feed/data", tags=["samples"], include_in_schema=False)
    @app.post(
        "/api/v1/metrics",
        tags=["samples"],
        summary="Store samples; answered when they are on disk",
        responses=documents.INGEST,
        openapi_extra=documents.RECORDS_BODY,
    )
    async def ingest(request: Request) -> Response:
        daemon = daemon_of(request)
        body = await _body(request)
        judging = asyncio.get_running_loop().run_in_executor(daemon.judge, _checked_for_storage, daemon, body)
        batch = await judging
        if batch.samples:
            try:
                await asyncio.wrap_future(daemon.store.append(batch.samples))
            except (HistoryBusyError, HistoryUnavailableError) as problem:
                return try_again(f"not stored: {problem}")
        daemon.accepted += len(batch.samples)
        daemon.rejected.update(rejection.field for rejection in batch.rejected)
        return Response(to_json({"accepted": len(batch.samples), **_notes(batch)}), media_type=JSON)


def _checked_for_storage(daemon: Daemon, body: bytes) -> CheckedBatch:
    settings = daemon.settings
    now_ms = daemon.clock() * 1000
    records = _records(body, settings.max_records)
    earliest_ms = math.ceil(now_ms - settings.retention_hours * 3_600_000)
    latest_ms = math.floor(now_ms + settings.future_minutes * 60_000)
    return check_records(records, earliest_ms, latest_ms, daemon.store.may_add)


def _records(body: bytes, most: int) -> list[Any]:
    """The records in a body, at most so many; raises 400 saying what is wrong with it."""
    structures = body.count(b"{") + body.count(b"[")
    if structures > MAX_STRUCTURES_PER_RECORD * (most + 1):  # the parser would build them all and hold everybody up
        raise HTTPException(400, f"{structures} objects and lists in one request; send at most {most} records")
    try:
        return parse_records(body, most)
    except BodyError as problem:
        raise HTTPException(400, str(problem)) from None


def _notes(batch: CheckedBatch) -> dict[str, Any]:
    notes: dict[str, Any] = {"rejected": rejection_documents(batch.rejected)}
    if batch.ignored_fields:
        notes["ignored_fields"] = sorted(batch.ignored_fields)[:100]
    return notes


async def _body(request: Request) -> bytes:
    """The whole body; the guard bounds its size and time."""
    return b"".join([chunk async for chunk in request.stream()])


# --- forecasts ------------------------------------------------------------------------------------------------------


def _add_forecasts(app: FastAPI) -> None:
    @app.get(
        "/api/v1/servers/{name}/forecast",
        tags=["forecasts"],
        summary="Forecast of one server, from the last cycle",
        responses=documents.FORECAST,
    )
    async def server_forecast(
        request: Request,
        name: str,
        metric: Annotated[list[str] | None, Query(description="only these metrics")] = None,
        quantile: Annotated[list[float] | None, Query(description="only these quantiles, such as 0.5")] = None,
        horizon: Annotated[list[str] | None, Query(description="only these distances, such as 15m or 8h")] = None,
    ) -> Response:
        daemon = daemon_of(request)
        selection = _selection(daemon, metric, quantile, horizon)
        forecast = daemon.forecasts.snapshot.forecasts.get(name)
        if forecast is None:
            return no_forecast(daemon, name)
        refuse_beyond(forecast, selection)
        return Response(_forecast_json(daemon, forecast, selection), media_type=JSON)

    @app.get("/predictions/current", tags=["forecasts"], include_in_schema=False)
    @app.get(
        "/api/v1/forecasts",
        tags=["forecasts"],
        summary="Forecasts of the fleet, from the last cycle",
        responses=documents.FORECASTS,
    )
    async def fleet_forecasts(
        request: Request,
        server: Annotated[list[str] | None, Query(description="only these servers")] = None,
        profile: Annotated[list[str] | None, Query(description="only these profiles")] = None,
        metric: Annotated[list[str] | None, Query(description="only these metrics")] = None,
        quantile: Annotated[list[float] | None, Query(description="only these quantiles, such as 0.5")] = None,
        horizon: Annotated[list[str] | None, Query(description="only these distances, such as 15m or 8h")] = None,
        limit: Annotated[int, Query(ge=1, le=1_000, description="servers in one answer")] = 100,
        after: Annotated[str, Query(description="the last answer's `next`, for the following page")] = "",
    ) -> Response:
        daemon = daemon_of(request)
        selection = _selection(daemon, metric, quantile, horizon)
        page, following = await asyncio.to_thread(_chosen, daemon, server, profile, limit, after)
        if page:
            refuse_beyond(page[0], selection)
        media_type = wanted_table(request.headers.get("accept", ""))
        if media_type is None:
            body = await asyncio.to_thread(_page_json, daemon, page, following, selection)
            return Response(body, media_type=JSON)
        table = await asyncio.to_thread(_page_table, daemon, page, selection, media_type)
        if table is None:
            return Response(status_code=204, headers={"x-next": following or ""})
        return Response(table, headers={"x-next": following or ""}, media_type=media_type)

    @app.post(
        "/api/v1/forecast",
        tags=["forecasts"],
        summary="Forecast the history in the request; nothing is stored",
        responses=documents.FORECAST_OF_HISTORY,
        openapi_extra=documents.RECORDS_BODY,
    )
    async def forecast_of_history(request: Request) -> Response:
        daemon = daemon_of(request)
        body = await _body(request)
        engine = daemon.forecasts.engine
        if engine is None:
            return try_again("no model is loaded; see /readyz")
        records = await asyncio.to_thread(_records, body, daemon.settings.max_records)
        batch = await asyncio.to_thread(check_records, records, EARLIEST_MS, LATEST_MS)
        servers = {sample.server_name for sample in batch.samples}
        if not servers or len(servers) > MAX_FORECAST_SERVERS:
            reason = "no record was accepted" if not servers else f"{len(servers)} servers; send at most 256 at once"
            return Response(to_json({"detail": reason, **_notes(batch)}), 422, media_type=JSON)
        if daemon.waiting_forecasts >= MAX_WAITING_FORECASTS:
            return try_again("other forecasts wait already")
        daemon.waiting_forecasts += 1
        try:
            loop = asyncio.get_running_loop()
            made = await loop.run_in_executor(
                daemon.forecasts.worker, forecast_samples, engine, batch.samples, daemon.rules
            )
        finally:
            daemon.waiting_forecasts -= 1
        answer = await asyncio.to_thread(_own_forecasts_json, made, batch)
        return Response(answer, media_type=JSON)


def _forecast_json(daemon: Daemon, forecast: ServerForecast, selection: Selection) -> bytes:
    age_seconds = daemon.clock() - forecast.origin_seconds
    return to_json(forecast_document(forecast, age_seconds, daemon.forecasts.is_stale(forecast), selection))


def _chosen(
    daemon: Daemon, servers: list[str] | None, profiles: list[str] | None, limit: int, after: str
) -> tuple[list[ServerForecast], str | None]:
    """One page of the fleet's forecasts in the order of names, and where the following one starts."""
    forecasts = daemon.forecasts.snapshot.forecasts
    wanted = set(servers) if servers is not None else None
    names = sorted(
        name
        for name, forecast in forecasts.items()
        if name > after and (wanted is None or name in wanted) and (profiles is None or forecast.profile in profiles)
    )
    page = names[:limit]
    return [forecasts[name] for name in page], page[-1] if len(names) > limit else None


def _page_json(daemon: Daemon, page: list[ServerForecast], following: str | None, selection: Selection) -> bytes:
    snapshot = daemon.forecasts.snapshot
    head = {
        "model": snapshot.model.model_id if snapshot.model else None,
        "origin": None if snapshot.origin_seconds is None else iso(snapshot.origin_seconds),
        "made_at": None if snapshot.made_at_seconds is None else iso(snapshot.made_at_seconds),
        "servers": len(page),
        "next": following,
    }
    return joined_list(head, "forecasts", (_forecast_json(daemon, forecast, selection) for forecast in page))


def _page_table(daemon: Daemon, page: list[ServerForecast], selection: Selection, media_type: str) -> bytes | None:
    """Forecasts of the model in use; those another model made are left to the next cycle. None: no row is left."""
    model = daemon.forecasts.snapshot.model
    forecasts = [forecast for forecast in page if forecast.model == model]
    return encoded(fleet_table(forecasts, selection), media_type) if forecasts else None


def forecast_samples(engine: Engine, samples: list[Sample], rules: ProfileRules) -> list[ServerForecast | None]:
    """Forecast each server of some samples from these alone; a server's origin is the step of its newest sample."""
    step_seconds, length = engine.config.step_seconds, engine.config.history_steps
    columns = [METRICS.index(metric) for metric in engine.config.targets]
    by_server: dict[str, list[Sample]] = {}
    for sample in _one_a_time(samples):
        by_server.setdefault(sample.server_name, []).append(sample)
    names = sorted(by_server)
    origin_steps = np.array([max(s.timestamp_ms for s in by_server[name]) // (step_seconds * 1000) for name in names])
    first_steps = [min(s.timestamp_ms for s in by_server[name]) // (step_seconds * 1000) for name in names]
    length = min(length, max(int(origin) - first + 1 for origin, first in zip(origin_steps, first_steps, strict=True)))
    history = np.full((len(names), length, len(columns)), np.nan, dtype=np.float32)
    profiles = []
    for row, name in enumerate(names):
        own = by_server[name]
        history[row] = _step_means(own, int(origin_steps[row]), length, step_seconds)[:, columns]
        sent = next((s.profile for s in sorted(own, key=lambda s: -s.timestamp_ms) if s.profile is not None), None)
        profiles.append(profile_of(name, sent, rules))
    return forecast_servers(engine, names, profiles, history, origin_steps * step_seconds)


def _one_a_time(samples: list[Sample]) -> Iterable[Sample]:
    """Samples of one server and time as one, as the history keeps them: of each metric the last value that was sent."""
    merged: dict[tuple[str, int], Sample] = {}
    for sample in samples:
        before = merged.get((sample.server_name, sample.timestamp_ms), sample)
        values = tuple(old if new is None else new for new, old in zip(sample.values, before.values, strict=True))
        merged[sample.server_name, sample.timestamp_ms] = sample._replace(
            values=values, profile=sample.profile or before.profile
        )
    return merged.values()


def _step_means(samples: list[Sample], origin_step: int, length: int, step_seconds: int) -> np.ndarray:
    """float64 [length, METRICS]: means of one server's samples on the steps up to `origin_step`."""
    values = np.array([sample.values for sample in samples], dtype=np.float64)  # None becomes NaN
    column = np.array([s.timestamp_ms // (step_seconds * 1000) for s in samples]) - (origin_step - length + 1)
    inside = column >= 0
    values, column = values[inside], column[inside]
    measured = ~np.isnan(values)
    total, count = np.zeros((length, len(METRICS))), np.zeros((length, len(METRICS)))
    np.add.at(total, column, np.where(measured, values, 0.0))
    np.add.at(count, column, measured)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _own_forecasts_json(made: list[ServerForecast | None], batch: CheckedBatch) -> bytes:
    good = [forecast for forecast in made if forecast is not None]
    if not good:
        raise HTTPException(503, "the model gave no finite forecast", headers={"Retry-After": "60"})
    items = (to_json(forecast_document(f, f.made_at_seconds - f.origin_seconds, stale=False)) for f in good)
    return joined_list({"model": good[0].model.model_id, **_notes(batch)}, "forecasts", items)


def _selection(
    daemon: Daemon, metrics: list[str] | None, quantiles: list[float] | None, horizons: list[str] | None
) -> Selection:
    """Check the query against what is forecast; raises 422 naming the parameter."""
    model = daemon.forecasts.snapshot.model
    for metric in metrics or ():
        if metric not in METRICS:
            raise HTTPException(422, f"metric: {metric[:100]!r} is unknown; use {', '.join(METRICS)}")
    for quantile in quantiles or ():
        if model is not None and quantile not in model.quantiles:
            raise HTTPException(
                422, f"quantile: {quantile} is not forecast; use {', '.join(map(str, model.quantiles))}"
            )
    return Selection(
        None if metrics is None else tuple(metrics),
        None if quantiles is None else tuple(quantiles),
        None if horizons is None else tuple(horizon_seconds(text) for text in horizons),
    )
