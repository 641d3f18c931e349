"""The parts of the running daemon."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fleet_forecast.serving.access_tokens import AccessTokens
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.delivery.alert_record import AlertRecord
from fleet_forecast.serving.delivery.notifiers import Notifier
from fleet_forecast.serving.delivery.outbox import Outbox
from fleet_forecast.serving.delivery.silence_book import SilenceBook
from fleet_forecast.serving.export.writer import ForecastWriter
from fleet_forecast.serving.fleet_audit import FleetAudit
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.model_manager import ModelManager
from fleet_forecast.serving.ingest.puller import Puller
from fleet_forecast.serving.ingest.sink import IngestSink
from fleet_forecast.serving.monitoring.drift_monitor import DriftMonitor
from fleet_forecast.serving.monitoring.events import EventHub
from fleet_forecast.serving.monitoring.forecast_archive import ForecastArchive
from fleet_forecast.serving.monitoring.http_counters import HttpCounters
from fleet_forecast.serving.monitoring.log import DROPPED_LINES
from fleet_forecast.serving.monitoring.scores import ForecastScores
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.shards.exchange import PeerExchange
from fleet_forecast.serving.shards.hand_over import HandOver
from fleet_forecast.serving.shards.neighbours import Neighbour
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.sources.protocols.otlp import OtlpDecoder
from fleet_forecast.sources.protocols.remote_write import WriteDecoder
from server_profiles import ProfileRules


@dataclass
class Daemon:
    """What routes and the exposition read and call."""

    settings: Settings
    rules: ProfileRules
    store: HistoryStore
    ingest: IngestSink
    remote_write: WriteDecoder
    otlp: OtlpDecoder
    forecasts: ForecastLoop
    audit: FleetAudit
    model: ModelManager
    alerts: AlertBook
    silences: SilenceBook
    outbox: Outbox
    alert_record: AlertRecord
    scores: ForecastScores
    archive: ForecastArchive
    drift: DriftMonitor
    events: EventHub
    notifiers: list[Notifier]
    pullers: list[Puller]
    forecast_writer: ForecastWriter | None
    clock: Callable[[], float]  # seconds since 1970
    hand_over: HandOver
    tokens: AccessTokens = field(default_factory=AccessTokens)
    http: HttpCounters = field(default_factory=HttpCounters)
    neighbours: Mapping[int, Neighbour] = field(default_factory=dict)  # the other shards by number
    exchange: PeerExchange | None = None  # with these
    waiting_shards: int = 0  # requests of other shards for peers that wait or run
    started_monotonic: float = field(default_factory=time.monotonic)
    dropped_log_lines: Counter[str] = field(default_factory=lambda: DROPPED_LINES)  # by reason
    background_failures: Counter[str] = field(default_factory=Counter)  # restarts of background work, by its name
    alerts_page: asyncio.Lock = field(default_factory=asyncio.Lock)  # one page is made at a time
    waiting_forecasts: int = 0  # requests of POST /api/v1/forecast that wait or run
    waiting_explanations: int = 0  # requests of GET /api/v1/servers/{name}/explain that wait or run
