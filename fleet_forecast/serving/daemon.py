"""The running daemon's parts in one place, for the routes; and the few answers all of them give."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response

from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.notifiers import Notifier
from fleet_forecast.serving.forecasts.cycle import FleetForecasts
from fleet_forecast.serving.forecasts.model_manager import ModelSlot
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
    forecasts: FleetForecasts
    model: ModelSlot
    alerts: AlertBook
    scores: ForecastScores
    events: EventHub
    deliveries: list[Notifier]
    clock: Callable[[], float]  # seconds since 1970
    started_monotonic: float = field(default_factory=time.monotonic)
    # Batches are judged apart from other blocking work and one at a time, so that a flood of them delays nothing else:
    # the interpreter runs one thread at a time, and each more that wants it makes the event loop wait longer.
    judge: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="judge"))
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by the field at fault
    pulls: Counter[str] = field(default_factory=Counter)  # from Prometheus, by "success" and "failure"
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
    if daemon.forecasts.is_heard(daemon.store.servers[name], complete):
        return try_again("the first forecast of this server is being made")
    detail = "the server has been silent too long; it is forecast again with its next sample"
    return json_answer({"detail": detail}, 404)
