"""The daemon's own metric families on /metrics: one definition each of name, kind, help text and values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from fleet_forecast import __version__
from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.contract.specs import CONTRACT_VERSION
from fleet_forecast.drift.detector import THRESHOLD
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.ingest.tally import Protocol
from fleet_forecast.serving.monitoring.kept_forecasts import DAY_SECONDS
from fleet_forecast.serving.monitoring.text_format import header, label_value
from fleet_forecast.serving.shards.exchange import Exchanged

OTHER_PROFILE = "other"


class Sample(NamedTuple):
    """Labels in braces, or no text, and the value."""

    labels: str
    value: float


Samples = Callable[[Daemon], Iterable[Sample] | None]


class Family(NamedTuple):
    """One metric family; a counter's name is without `_total`. It is left out while `samples` returns None."""

    name: str
    kind: str
    description: str
    samples: Samples


def known_profiles(daemon: Daemon) -> frozenset[str]:
    """Profiles with a label of their own: those of the fleet and those that the model was trained on."""
    engine = daemon.forecasts.engine
    return frozenset({*map(str, PROFILES), *(engine.config.profiles if engine else ())})


def profile_label(profile: str, known: Container[str]) -> str:
    """The label of a profile: clients may send any name, and each would be a new time series."""
    return profile if profile in known else OTHER_PROFILE


def family_lines(daemon: Daemon, openmetrics: bool) -> Iterator[str]:
    """Lines of all families."""
    for family in FAMILIES:
        samples = family.samples(daemon)
        if family is CYCLE_DURATION:
            yield from header(family.name, family.kind, family.description)
            yield from daemon.forecasts.statistics.durations.samples(family.name)
        elif samples is not None:
            yield from _family(family, samples, openmetrics)


def _family(family: Family, samples: Iterable[Sample], openmetrics: bool) -> Iterator[str]:
    name = f"{family.name}_total" if family.kind == "counter" else family.name
    yield from header(family.name if openmetrics else name, family.kind, family.description)
    yield from (f"{name}{labels} {value!r}" for labels, value in samples)


def _gauge(name: str, description: str, samples: Samples) -> Family:
    return Family(name, "gauge", description, samples)


def _counter(name: str, description: str, samples: Samples) -> Family:
    return Family(name, "counter", description, samples)


def _one(value: float) -> list[Sample]:
    return [Sample("", value)]


def _by(label: str, values: Mapping[str, float]) -> list[Sample]:
    return [Sample(f'{{{label}="{key}"}}', value) for key, value in sorted(values.items())]


def _age(daemon: Daemon) -> list[Sample] | None:
    origin = daemon.forecasts.snapshot.origin_seconds
    return None if origin is None else _one(round(daemon.clock() - origin - daemon.store.step_seconds, 3))


def _build_info(daemon: Daemon) -> list[Sample]:
    model = daemon.forecasts.snapshot.model
    starter = str(model is not None and model.starter).lower()
    labels = {
        "version": __version__,
        "contract_version": CONTRACT_VERSION,
        "model": model.model_id if model else "",
        "starter": starter,
    }
    return [Sample("{" + ",".join(f'{name}="{label_value(value)}"' for name, value in labels.items()) + "}", 1)]


def _model_info(daemon: Daemon) -> list[Sample] | None:
    model = daemon.forecasts.snapshot.model
    return None if model is None else [Sample(f'{{model="{model.model_id}"}}', 1)]


def _reload_successful(daemon: Daemon) -> list[Sample] | None:
    last = daemon.model.last_load
    return None if last is None else _one(float(last.problem is None))


def _reload_time(daemon: Daemon) -> list[Sample] | None:
    last = daemon.model.last_load
    return None if last is None else _one(round(last.at_seconds, 3))


def _reloads(daemon: Daemon) -> list[Sample]:
    loads = daemon.model.loads.items()
    return [Sample(f'{{result="{"success" if good else "failure"}"}}', count) for good, count in loads]


def _firing(daemon: Daemon) -> list[Sample]:
    return _by("metric", Counter(alert.metric for alert in list(daemon.alerts.firing.values())))


def _score(field: str, daemon: Daemon) -> list[Sample]:
    tallies = sorted(daemon.scores.tallies.items())
    return [Sample(f'{{metric="{m}",horizon="{h}"}}', getattr(tally, field)) for (m, h), tally in tallies]


def _servers(daemon: Daemon) -> list[Sample]:
    known, counts = known_profiles(daemon), Counter[str]()
    for profile, servers in daemon.forecasts.snapshot.profiles.items():
        counts[profile_label(profile, known)] += servers
    return _by("profile", counts)


def _not_stored(daemon: Daemon) -> list[Sample]:
    counts = sorted(daemon.ingest.tally.not_stored.items()) or [(("none", "none"), 0)]
    return [Sample(f'{{protocol="{protocol}",reason="{reason}"}}', count) for (protocol, reason), count in counts]


def _pulls(daemon: Daemon) -> list[Sample]:
    counts = sorted(daemon.ingest.pulls.items())
    return [Sample(f'{{prometheus="{name}",result="{result}"}}', count) for (name, result), count in counts]


def _exported(field: str) -> Samples:
    def samples(daemon: Daemon) -> list[Sample] | None:
        writer = daemon.forecast_writer
        return None if writer is None else _one(getattr(writer, field))

    return samples


def _shard(daemon: Daemon) -> list[Sample] | None:
    own = daemon.settings.own_shard
    return None if own is None else [Sample(f'{{shard="{own.number}",shards="{own.count}"}}', 1)]


def _of_shards(value: Callable[[Exchanged], float]) -> Samples:
    """A value by the number of the other shard, where there are others."""

    def samples(daemon: Daemon) -> list[Sample] | None:
        exchange = daemon.exchange
        if exchange is None:
            return None
        return _by("shard", {str(number): value(each) for number, each in exchange.exchanged.items()})

    return samples


def _forwarded(daemon: Daemon) -> list[Sample] | None:
    forwarder = daemon.ingest.forwarder
    if forwarder is None:
        return None
    counts = {(number, result): 0 for number in daemon.neighbours for result in ("accepted", "rejected", "failed")}
    counts |= forwarder.records
    return [Sample(f'{{shard="{number}",result="{result}"}}', count) for (number, result), count in counts.items()]


CYCLE_DURATION = Family(
    "fleet_cycle_duration_seconds",
    "histogram",
    "Duration of forecast cycles of the whole fleet.",
    lambda _: None,  # its lines are those of the histogram
)
FAMILIES: tuple[Family, ...] = (
    _gauge(
        "fleet_forecast_build_info",
        "Versions of the software and of the data contract, and the model of the forecasts.",
        _build_info,
    ),
    _counter("fleet_ingested_records", "Records accepted and stored.", lambda d: _one(d.ingest.accepted)),
    _counter(
        "fleet_rejected_records",
        "Records rejected, by the field at fault.",
        lambda d: _by("field", d.ingest.rejected or {"none": 0}),
    ),
    _counter(
        "fleet_left_out_cells",
        "Values of accepted records that could not be used, by metric.",
        lambda d: _by("metric", d.ingest.left_out_cells or {"none": 0}),
    ),
    _counter(
        "fleet_stored_samples",
        "Samples stored (one metric of one server at one time), by protocol.",
        lambda d: _by("protocol", dict.fromkeys(map(str, Protocol), 0) | d.ingest.tally.stored),
    ),
    _counter(
        "fleet_samples_not_stored",
        "Samples, and records of JSON, that were not stored, by protocol and reason.",
        _not_stored,
    ),
    _counter(
        "fleet_profile_changes",
        "Changes of a known server's profile that came with samples, by result.",
        lambda d: _by("result", {"accepted": 0, "refused": 0} | d.ingest.senders.profile_changes),
    ),
    _counter(
        "fleet_corrections",
        "Samples that differ from a stored one of the same server and time, by result.",
        lambda d: _by("result", {"accepted": 0, "refused": 0} | d.ingest.senders.corrections),
    ),
    _gauge(
        "fleet_servers_with_two_sources",
        "Servers that more than one client of the tokens file wrote since the start.",
        lambda d: _one(sum(len(each) > 1 for each in list(d.ingest.senders.sources.values()))),
    ),
    CYCLE_DURATION,
    _counter("fleet_cycles", "Forecast cycles of the whole fleet.", lambda d: _one(d.forecasts.statistics.cycles)),
    _counter(
        "fleet_cycles_skipped", "Steps that passed during a cycle.", lambda d: _one(d.forecasts.statistics.skipped)
    ),
    _counter(
        "fleet_cycles_failed",
        "Cycles that failed; the last forecasts stayed.",
        lambda d: _one(d.forecasts.statistics.failed),
    ),
    _counter(
        "fleet_forecasts_not_finite",
        "Forecasts dropped because they were not finite.",
        lambda d: _one(d.forecasts.statistics.not_finite),
    ),
    _gauge(
        "fleet_peers",
        "Servers whose measurements are peers of others, by profile.",
        lambda d: _by("profile", d.forecasts.peers.counts),
    ),
    _counter(
        "fleet_provisional_forecasts",
        "Forecasts of new servers from a step that was not complete.",
        lambda d: _one(d.forecasts.provisional.forecasts),
    ),
    # Online scores; values are in the contract's units.
    _counter(
        "fleet_forecast_scored", "Forecast values compared with what was then measured.", partial(_score, "scored")
    ),
    _counter("fleet_forecast_covered", "Of these, within the 80 % band.", partial(_score, "covered_80")),
    _counter(
        "fleet_forecast_pinball_loss",
        "Twice their pinball loss; divided by the next: the WQL.",
        partial(_score, "pinball"),
    ),
    _counter("fleet_forecast_measured_magnitude", "Sum of the measured magnitudes.", partial(_score, "absolute")),
    _gauge("fleet_alerts_firing", "Firing alerts, by metric.", _firing),
    _counter("fleet_alerts_sent", "Alerts delivered.", lambda d: _one(sum(each.sent for each in d.notifiers))),
    _counter(
        "fleet_alert_delivery_failures",
        "Deliveries that failed and were tried again.",
        lambda d: _one(sum(each.failures for each in d.notifiers)),
    ),
    _counter(
        "fleet_requests_refused",
        "Requests that a check refused before their route, by status.",
        lambda d: _by("status", d.http.refused or {"none": 0}),
    ),
    _counter("fleet_wrong_tokens", "Requests with a wrong token.", lambda d: _one(d.http.wrong_tokens)),
    _counter(
        "fleet_connections_closed",
        "Connections closed by a limit: total, address, unread.",
        lambda d: _by("limit", d.http.closed or {"none": 0}),
    ),
    _counter(
        "fleet_log_lines_dropped",
        "Log lines dropped: too many of one kind (rate), or not written in time (queue) or at all (write).",
        lambda d: _by("reason", d.dropped_log_lines),
    ),
    _gauge("fleet_event_listeners", "Open event streams.", lambda d: _one(d.events.listeners)),
    _counter("fleet_event_listeners_dropped", "Listeners dropped for lagging.", lambda d: _one(d.events.dropped)),
    _counter("fleet_prometheus_pulls", "Attempts to pull the fleet from Prometheus.", _pulls),
    _gauge(
        "fleet_prometheus_servers",
        "Servers that are taken from a Prometheus.",
        lambda d: _by("prometheus", {p.server.name: p.owners.count(p.server.name) for p in d.pullers}),
    ),
    _counter(
        "fleet_prometheus_conflicts",
        "Servers that a pull left out because they are taken from another Prometheus.",
        lambda d: _by("prometheus", {p.server.name: p.owners.conflicts[p.server.name] for p in d.pullers}),
    ),
    _counter("fleet_exported_samples", "Samples of forecasts written to a database.", _exported("written")),
    _counter("fleet_export_failures", "Requests of these that failed and were tried again.", _exported("failures")),
    _gauge("fleet_export_waiting_samples", "Samples of forecasts that are not written yet.", _exported("waiting")),
    _counter(
        "fleet_not_exported_samples",
        "Samples of forecasts that were not written: refused, or the queue was full.",
        lambda d: None if d.forecast_writer is None else _by("reason", d.forecast_writer.not_written),
    ),
    _counter(
        "fleet_background_failures",
        "Background tasks that failed and were restarted.",
        lambda d: _by("work", d.background_failures),
    ),
    _gauge("fleet_forecast_age_seconds", "Time since the end of the newest step that the forecasts use.", _age),
    _gauge("fleet_model_info", "The model of the forecasts.", _model_info),
    _gauge("fleet_model_last_reload_successful", "Whether the last model load succeeded.", _reload_successful),
    _gauge("fleet_model_last_reload_timestamp_seconds", "When a model was last loaded.", _reload_time),
    _counter("fleet_model_reloads", "Attempts to load a model.", _reloads),
    _gauge(
        "fleet_retrain_recommended",
        "Whether GET /api/v1/model recommends training again; it has the reason.",
        lambda d: _one(float(d.drift.advice.retrain_recommended)),
    ),
    _gauge(
        "fleet_drift_evidence_ratio",
        "Evidence of larger forecast errors; 1 is a reason to train again.",
        lambda d: _one(round(d.drift.advice.evidence / THRESHOLD, 6)),
    ),
    _gauge(
        "fleet_drift_observed_seconds",
        "Length of the daemon's own forecasts that the evidence uses, in whole days.",
        lambda d: _one(d.drift.advice.days * DAY_SECONDS),
    ),
    _gauge("fleet_shard_info", "The part of the fleet that this daemon has.", _shard),
    _gauge(
        "fleet_shard_up",
        "Whether another shard responded in the last cycle.",
        _of_shards(lambda each: float(each.responded)),
    ),
    _counter(
        "fleet_shard_received_bytes",
        "Means of peers that other shards sent.",
        _of_shards(lambda each: each.bytes_received),
    ),
    _counter(
        "fleet_forwarded_records",
        "Records sent to the shards that have their servers, by result; failed ones are answered with 503.",
        _forwarded,
    ),
    _gauge(
        "fleet_leaving_servers",
        "Servers of other shards in the history, until these have their samples.",
        lambda d: None if d.settings.shard is None else _one(len(d.store.leaving)),
    ),
    _gauge("fleet_history_size_bytes", "Size of the history on disk.", lambda d: _one(d.store.size_bytes())),
    _gauge("fleet_history_waiting_records", "Records not yet on disk.", lambda d: _one(d.store.waiting_records())),
    _gauge(
        "fleet_history_writable", "Whether the last write succeeded.", lambda d: _one(float(d.store.failure is None))
    ),
    _gauge(
        "fleet_history_set_aside",
        "Whether a damaged history was set aside at the start.",
        lambda d: _one(float(bool(d.store.set_aside))),
    ),
    _gauge(
        "fleet_servers",
        "Servers with a forecast, by profile.",
        _servers,
    ),
    _gauge(
        "fleet_servers_unmatched",
        "Servers whose name no rule matches.",
        lambda d: _one(len(d.forecasts.snapshot.unmatched)),
    ),
    _gauge("fleet_servers_stale", "Servers that stopped sending samples.", lambda d: _one(d.forecasts.stale_servers())),
)
