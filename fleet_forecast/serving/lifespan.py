"""Start and end of the daemon: opens the store, runs the background tasks, closes both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import load_for_fleet
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.access_tokens import AccessTokens
from fleet_forecast.serving.alerting.alert import Alert
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.background import keep_running
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.delivery.alert_loop import AlertLoop, AlertSinks
from fleet_forecast.serving.delivery.alert_record import AlertRecord
from fleet_forecast.serving.delivery.alertmanager import AlertmanagerFormat, AlertmanagerNotifier
from fleet_forecast.serving.delivery.drift_alerts import DriftAlerts
from fleet_forecast.serving.delivery.notifiers import Notifier
from fleet_forecast.serving.delivery.outbox import Outbox
from fleet_forecast.serving.delivery.rules_reload import RulesReload
from fleet_forecast.serving.delivery.silence_book import SilenceBook, profile_note
from fleet_forecast.serving.export.writer import ForecastWriter
from fleet_forecast.serving.fleet_audit import FleetAudit
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.model_manager import LoadResult, ModelLoading, ModelManager
from fleet_forecast.serving.forecasts.model_trial import ModelTrial
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.http.certificate import TlsCertificate
from fleet_forecast.serving.ingest.puller import Puller
from fleet_forecast.serving.ingest.sink import IngestSink
from fleet_forecast.serving.monitoring.drift_loop import DriftLoop
from fleet_forecast.serving.monitoring.drift_monitor import DriftMonitor
from fleet_forecast.serving.monitoring.events import EventHub
from fleet_forecast.serving.monitoring.forecast_archive import ForecastArchive
from fleet_forecast.serving.monitoring.http_counters import HttpCounters
from fleet_forecast.serving.monitoring.scores import ForecastScores
from fleet_forecast.serving.referenced_files import ReferencedFiles
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.shards.exchange import PeerExchange
from fleet_forecast.serving.shards.forwarding import Forwarder
from fleet_forecast.serving.shards.hand_over import HandOver
from fleet_forecast.serving.shards.neighbours import Neighbour, neighbours_of
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.sources.fleet_pull import Owners
from fleet_forecast.sources.protocols.counter_rates import CounterMemory
from fleet_forecast.sources.protocols.otlp import OtlpDecoder
from fleet_forecast.sources.protocols.remote_write import WriteDecoder

LOG = logging.getLogger(__name__)
DEFAULT_STEP_SECONDS = 300  # of a new history, until a model is loaded

Work = tuple[str, Callable[[], Coroutine[Any, Any, None]]]  # name and coroutine function of background work


@dataclass(frozen=True)
class DaemonConfig:
    """What the daemon is made from.

    loading: where the model is loaded from and how. clock: seconds since 1970 for samples, steps and ages.
    tokens, http: shared with the middleware. certificate: with the server.
    """

    settings: Settings
    files: ReferencedFiles
    loading: ModelLoading
    clock: Callable[[], float]
    tokens: AccessTokens
    http: HttpCounters
    certificate: TlsCertificate


@contextlib.asynccontextmanager
async def running(config: DaemonConfig) -> AsyncIterator[Daemon]:
    """Open the parts and run the background work until the context ends."""
    daemon = await asyncio.to_thread(_open, config)
    drift_alerts = DriftAlerts(daemon.outbox, daemon.notifiers, daemon.clock)
    daemon.notifiers += _notifiers(daemon, drift_alerts)
    _publish_events(daemon)
    work = _background_work(daemon, drift_alerts)
    work.append(("reload", _reload_on_hangup(daemon, config.certificate)))
    tasks = [asyncio.create_task(keep_running(name, run, daemon.background_failures)) for name, run in work]
    try:
        yield daemon
    finally:
        await _close(daemon, tasks)


def _open(config: DaemonConfig) -> Daemon:
    """Open the store and put the parts together. Takes as long as the check of the store's file."""
    settings, files = config.settings, config.files
    store = HistoryStore(settings.history, DEFAULT_STEP_SECONDS, settings.max_waiting_records, settings.max_servers)
    if (own := settings.own_shard) is not None:
        store.set_apart(own.has)
    neighbours = _neighbours(config)
    exchange = PeerExchange(neighbours, settings.shard_seconds, settings.stale_steps) if neighbours else None
    forecasts = ForecastLoop(settings, store, files.profile_rules, config.clock, exchange)
    alerts = AlertBook(files.alert_rules)
    ingest = IngestSink(settings, store, config.clock, files.profile_rules, _forwarder(settings, neighbours))
    owners = Owners([server.name for server in files.prometheus])
    silences = SilenceBook(files.alert_rules.silences, settings.beside_history(".silences.json"), config.clock)
    _warn_of_unknown_profiles(files, store)
    return Daemon(
        settings=settings,
        rules=files.profile_rules,
        store=store,
        ingest=ingest,
        remote_write=WriteDecoder(settings.server_label, settings.max_samples),
        otlp=OtlpDecoder(CounterMemory(settings.max_counters), settings.max_samples),
        forecasts=forecasts,
        audit=FleetAudit(forecasts, store, files.profile_rules),
        model=ModelManager(config.loading, forecasts),
        alerts=alerts,
        silences=silences,
        outbox=Outbox(alerts, silences, settings.shadow or files.alert_rules.shadow),
        alert_record=AlertRecord(),
        scores=ForecastScores(),
        archive=ForecastArchive(),
        drift=DriftMonitor(forecasts, store, silences.excluded_cells, settings.beside_history(".drift.json")),
        events=EventHub(),
        notifiers=[],
        pullers=[Puller(ingest, server, owners) for server in files.prometheus],
        forecast_writer=None if files.forecasts is None else ForecastWriter(files.forecasts),
        clock=config.clock,
        tokens=config.tokens,
        http=config.http,
        neighbours=neighbours,
        exchange=exchange,
        hand_over=HandOver(store, neighbours, settings.shard_seconds),
    )


def _neighbours(config: DaemonConfig) -> dict[int, Neighbour]:
    """The other shards; empty if there are none."""
    own, addresses = config.settings.own_shard, config.settings.addresses_of_shards
    if own is None:
        return {}
    others = {number: address for number, address in addresses.items() if number != own.number}
    return neighbours_of(own, others, lambda: config.tokens.shard, config.files.shard_certificates)


def _forwarder(settings: Settings, neighbours: Mapping[int, Neighbour]) -> Forwarder | None:
    if not settings.forward or not neighbours:
        return None
    return Forwarder(neighbours, settings.max_waiting_records, settings.shard_seconds)


def _warn_of_unknown_profiles(files: ReferencedFiles, store: HistoryStore) -> None:
    """Log silences of the fleet file whose profile is neither built in nor sent by a server; it may be misspelt."""
    known = {*map(str, PROFILES), *(server.profile for server in store.servers.values() if server.profile)}
    for note in filter(None, (profile_note(silence, known) for silence in files.alert_rules.silences)):
        LOG.warning("silence of an unknown profile", extra={"reason": note})


def model_loading(settings: Settings, trial: ModelTrial) -> ModelLoading:
    """Loads the model of the settings after its trial."""

    def load(path: Path) -> Engine:
        return load_for_fleet(path, settings.device, settings.threads or None)

    return ModelLoading(settings.model, load, settings.model_seconds, trial, settings.model_is_chosen)


def _notifiers(daemon: Daemon, drift_alerts: DriftAlerts) -> list[Notifier]:
    settings = daemon.settings
    notifiers: list[Notifier] = []

    def firing() -> list[Alert]:
        return [*daemon.outbox.firing(), *drift_alerts.firing()]

    if settings.alertmanager is not None:
        url, seconds = settings.alertmanager, settings.alert_seconds
        form = AlertmanagerFormat(daemon.alerts, settings.public_url)
        notifiers.append(AlertmanagerNotifier(url, firing, seconds, form))
    if settings.webhook is not None:
        notifiers.append(Notifier(settings.webhook))
    return notifiers


def _publish_events(daemon: Daemon) -> None:
    """Publish each forecast cycle and each load of a model to the event streams."""

    def on_cycle(snapshot: FleetSnapshot) -> None:
        origin = None if snapshot.origin_seconds is None else iso(snapshot.origin_seconds)
        daemon.events.publish("cycle", {"origin": origin, "servers": len(snapshot.forecasts)})

    def on_model(result: LoadResult) -> None:
        daemon.events.publish("model", {"model": result.model_id, "problem": result.problem})

    daemon.forecasts.listeners += [on_cycle, daemon.archive.on_cycle]
    daemon.model.listeners.append(on_model)


def _background_work(daemon: Daemon, drift_alerts: DriftAlerts) -> list[Work]:
    state_file = daemon.settings.beside_history(".alerts.json")
    sinks = AlertSinks(daemon.events, daemon.notifiers, daemon.outbox, daemon.alert_record, daemon.silences, state_file)
    alerts = AlertLoop(daemon.alerts, daemon.scores, daemon.forecasts, sinks, daemon.clock)
    work: list[Work] = [("model", daemon.model.watch), ("forecasts", daemon.forecasts.run), ("alerts", alerts.run)]
    work.append(("archive", daemon.archive.run))
    drift = DriftLoop(daemon.drift, daemon.forecasts, daemon.events, daemon.clock)
    drift.listeners.append(drift_alerts.on_advice)
    work.append(("drift", drift.run))
    work.append(("hand over", daemon.hand_over.run))
    work += [("delivery", notifier.run) for notifier in daemon.notifiers]
    work += [("pull", puller.run) for puller in daemon.pullers]
    if daemon.forecast_writer is not None:
        daemon.forecasts.listeners.append(daemon.forecast_writer.on_cycle)
        work += [("export", daemon.forecast_writer.queue_cycles), ("export", daemon.forecast_writer.send_queue)]
    return work


def _reload_on_hangup(daemon: Daemon, certificate: TlsCertificate) -> Callable[[], Coroutine[Any, Any, None]]:
    """A task that on SIGHUP reads tokens, certificate and alert rules again, and loads the model again.

    Signals during a load cause one more load. Only where the event loop runs in the main thread.
    """
    hangup, settings = asyncio.Event(), daemon.settings
    rules = RulesReload(settings.fleet, daemon.alerts, daemon.silences, daemon.outbox, settings.shadow)

    async def reload() -> None:
        while True:
            await hangup.wait()
            hangup.clear()
            await asyncio.to_thread(daemon.tokens.reload, settings)
            await asyncio.to_thread(certificate.reload)
            await asyncio.to_thread(rules.reload)
            await daemon.model.load()

    with contextlib.suppress(RuntimeError, ValueError):  # not the main thread, as in some tests
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    return reload


async def _close(daemon: Daemon, tasks: list[asyncio.Task[None]]) -> None:
    """End the work first, then its threads, then the store that they use."""
    daemon.events.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(notifier.close() for notifier in daemon.notifiers), return_exceptions=True)
    if daemon.forecast_writer is not None:
        await daemon.forecast_writer.close()
    await asyncio.gather(*(each.close() for each in daemon.neighbours.values()), return_exceptions=True)
    for worker in (daemon.ingest.worker, daemon.forecasts.worker):
        await asyncio.to_thread(worker.shutdown, True, cancel_futures=True)
    await asyncio.to_thread(daemon.store.close)
