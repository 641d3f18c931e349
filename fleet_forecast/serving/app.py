"""The daemon's HTTP application: its routes, its middleware and its start and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from inspect import isclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from fleet_forecast.contract.specs import CONTRACT_VERSION
from fleet_forecast.serving.access_tokens import AccessTokens
from fleet_forecast.serving.forecasts.model_manager import ModelLoading
from fleet_forecast.serving.forecasts.model_trial import ModelTrial
from fleet_forecast.serving.forecasts.selection import SelectionError
from fleet_forecast.serving.http.certificate import TlsCertificate
from fleet_forecast.serving.http.invalid_requests import problems_of
from fleet_forecast.serving.http.middleware import STREAMS, RequestGuard
from fleet_forecast.serving.ingest.bodies import BodyError, BodyTooLargeError
from fleet_forecast.serving.lifespan import DaemonConfig, model_loading, running
from fleet_forecast.serving.monitoring.exposition import Exposition
from fleet_forecast.serving.monitoring.http_counters import HttpCounters
from fleet_forecast.serving.referenced_files import ReferencedFiles
from fleet_forecast.serving.routes import (
    alerts,
    dashboard,
    events,
    explain,
    forecasts,
    history,
    model,
    probes,
    samples,
    servers,
    silences,
)
from fleet_forecast.serving.routes.protocols import otlp, remote_write
from fleet_forecast.serving.routes.record_bodies import RECORDS, body_schema
from fleet_forecast.serving.routes.responses import json_response
from fleet_forecast.serving.routes.shards import peers as shard_peers
from fleet_forecast.serving.routes.shards import samples as shard_samples
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.errors import HistoryLockedError, HistoryVersionError
from fleet_forecast.serving.views import heat_map, model_evaluation, past_forecasts, peer_band, risks, series

DESCRIPTION = (
    "Receives server metrics and forecasts each server's next hours as quantiles. "
    "All times are UTC; null means not measured."
)
PROTOCOLS = (remote_write, otlp)
VIEWS = (heat_map, risks, past_forecasts, peer_band, series, model_evaluation)
PARTS = (probes, samples, forecasts, explain, servers, history, model, alerts, silences, events, dashboard)
SHARDS = (shard_samples, shard_peers)
TOPICS = (*PARTS, *PROTOCOLS, *VIEWS, *SHARDS)


def create_app(
    settings: Settings,
    files: ReferencedFiles | None = None,
    loading: ModelLoading | None = None,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The application. The store is opened and the model is loaded when it starts, not here.

    The arguments are those of DaemonConfig; files None: rules and tokens of settings that name no file. loading
    None: that of the settings.
    """
    files = files or ReferencedFiles()
    tokens = AccessTokens(files.token, files.admin_token, files.clients, files.shard_token)
    counters = HttpCounters()
    certificate = TlsCertificate(settings)
    loading = loading or model_loading(settings, ModelTrial.of(settings))
    config = DaemonConfig(settings, files, loading, clock, tokens, counters, certificate)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await _start(app, config, stack)
            yield

    def end_event_streams() -> None:
        app.state.daemon.events.close()

    app = FastAPI(
        title="Server fleet forecasts",
        version=CONTRACT_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from a third-party host
        redoc_url=None,
        exception_handlers={
            RequestValidationError: _invalid_request,
            HTTPException: _refused,
            SelectionError: _invalid_selection,
            BodyError: _invalid_body,
        },
    )
    for topic in TOPICS:  # not include_router: matching through one more router per topic costs 0.1 ms a request
        app.router.routes.extend(topic.router.routes)
    app.state.exposition, app.state.rendering = Exposition(), asyncio.Lock()
    app.state.before_shutdown, app.state.http_counters = end_event_streams, counters
    app.state.certificate = certificate
    app.add_middleware(RequestGuard, settings=settings, tokens=tokens, counters=counters)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _start(app: FastAPI, config: DaemonConfig, stack: contextlib.AsyncExitStack) -> None:
    """Run the daemon until the stack ends; `start_problem` of the state is why its history cannot be used."""
    try:
        app.state.daemon = await stack.enter_async_context(running(config))
    except (HistoryLockedError, HistoryVersionError, OSError) as problem:
        app.state.start_problem = str(problem)
        logging.getLogger("uvicorn.error").addFilter(_is_no_traceback)  # the command says why, in one line
        raise


def _is_no_traceback(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Traceback")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the records of the fleet."""
    document = FastAPI.openapi(app)
    document["components"]["schemas"][RECORDS] = body_schema()
    return document


async def _invalid_request(request: Request, error: Exception) -> Response:
    """422 with parameter or field of the body, value and reason."""
    if not isinstance(error, RequestValidationError):
        raise error
    return json_response({"detail": problems_of(error, _body_model(request))}, 422)


def _body_model(request: Request) -> type[BaseModel] | None:
    """The model of the body that the request's route takes, None without one."""
    field = getattr(request.scope.get("route"), "body_field", None)
    kind = None if field is None else field.field_info.annotation
    return kind if isclass(kind) and issubclass(kind, BaseModel) else None


async def _refused(request: Request, error: Exception) -> Response:
    """An error of HTTP; for a wrong path or method with the remedy."""
    if not isinstance(error, HTTPException):
        raise error
    details = {
        404: "no such path; GET /openapi.json lists all",
        405: f"{request.method} is not possible on this path; GET /openapi.json lists the methods of all",
    }
    response = json_response({"detail": details.get(error.status_code, error.detail)}, error.status_code)
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["allow"] = ", ".join(_methods_of_path(request))
    return response


def _methods_of_path(request: Request) -> list[str]:
    """What can be done on a path; the routes of a path have one method each, and HEAD is that of GET."""
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in matching for method in getattr(route, "methods", None) or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods and request.url.path not in STREAMS else set()))


async def _invalid_selection(_request: Request, error: Exception) -> Response:
    return json_response({"detail": str(error)}, 422)


async def _invalid_body(_request: Request, error: Exception) -> Response:
    return json_response({"detail": str(error)}, 413 if isinstance(error, BodyTooLargeError) else 400)
