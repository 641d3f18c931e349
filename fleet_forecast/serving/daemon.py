"""The running daemon's parts in one place, for the routes; and the few answers all of them give."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response

from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.notifiers import Delivery
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.model_manager import ModelManager
from fleet_forecast.serving.ingest.sink import IngestSink
from fleet_forecast.serving.json_bytes import to_json
from fleet_forecast.serving.monitoring.events import EventHub
from fleet_forecast.serving.monitoring.scores import ForecastScores
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import ProfileRules

JSON = "application/json"


@dataclass
class Daemon:
    """The parts the routes call."""

    settings: Settings
    rules: ProfileRules
    store: HistoryStore
    ingest: IngestSink
    forecasts: ForecastLoop
    model: ModelManager
    alerts: AlertBook
    scores: ForecastScores
    events: EventHub
    deliveries: list[Delivery]
    clock: Callable[[], float]  # seconds since 1970
    started_monotonic: float = field(default_factory=time.monotonic)
    background_failures: Counter[str] = field(default_factory=Counter)  # by the name of the work, which began again
    waiting_forecasts: int = 0


def daemon_of(request: Request) -> Daemon:
    """The daemon that serves this request."""
    daemon: Daemon = request.app.state.daemon
    return daemon


def json_answer(document: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(to_json(document), status, media_type=JSON)


def try_again(detail: str) -> Response:
    """503: not now, but soon."""
    return Response(to_json({"detail": detail}), 503, headers={"Retry-After": "1"}, media_type=JSON)


def no_forecast(daemon: Daemon, name: str) -> Response:
    """Why a server has no forecast: 404 if it will have none, 503 if soon."""
    if name not in daemon.store.servers:
        return json_answer({"detail": "no such server: no sample of this name was received"}, 404)
    if daemon.forecasts.engine is None:
        return try_again("no model is loaded; see /readyz")
    complete = daemon.forecasts.complete_step(daemon.store.step_seconds)
    if daemon.forecasts.sent_recently(daemon.store.servers[name], complete):
        return try_again("the first forecast of this server is being made")
    detail = "the server has been silent too long; it is forecast again with its next sample"
    return json_answer({"detail": detail}, 404)
