"""/metrics: the forecasts and the daemon's own figures, as Prometheus text or OpenMetrics.

A forecast is exposed at the time of the scrape with its distance as the label `horizon`, because Prometheus refuses
samples from the future. Values are in base units (ratios, bytes, seconds). The forecasts are of type summary: their
samples are quantiles, and promtool's linter keeps the label `quantile` for that type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from fleet_forecast.contract.forecast_spec import REPORT_HORIZONS, SCORED_LEVELS
from fleet_forecast.contract.specs import CONTRACT_VERSION
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.forecasts.selection import Selection, selected_steps
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ServerForecast

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"


class BaseUnit(NamedTuple):
    """Name of a metric in base units, and the factor from the contract's unit."""

    name: str
    factor: float


BASE_UNITS: Mapping[str, BaseUnit] = {
    "cpu_pct": BaseUnit("cpu_ratio", 0.01),
    "mem_pct": BaseUnit("mem_ratio", 0.01),
    "disk_io_mb_s": BaseUnit("disk_io_bytes_per_second", 1e6),
    "net_in_mb_s": BaseUnit("net_in_bytes_per_second", 1e6),
    "net_out_mb_s": BaseUnit("net_out_bytes_per_second", 1e6),
    "latency_ms": BaseUnit("latency_seconds", 1e-3),
}


class Exposition:
    """Renders /metrics; the forecasts' lines are kept until the next cycle or step."""

    def __init__(self) -> None:
        self._forecast_lines: list[str] = []
        self._rendered: tuple[FleetSnapshot, int] | None = None

    def render(self, daemon: Daemon, openmetrics: bool) -> bytes:
        """The whole page. Safe to call from one worker thread at a time."""
        lines = [*self._forecasts(daemon), *breach_lines(daemon), *_own(daemon, openmetrics)]
        if openmetrics:
            lines.append("# EOF")
        return ("\n".join(lines) + "\n").encode()

    def _forecasts(self, daemon: Daemon) -> list[str]:
        snapshot = daemon.forecasts.snapshot
        if snapshot.model is None:
            return []
        step = daemon.forecasts.complete_step(snapshot.model.step_seconds)
        if self._rendered != (snapshot, step):
            fresh = [f for f in snapshot.forecasts.values() if not daemon.forecasts.is_stale(f)]
            self._forecast_lines = list(forecast_lines(fresh))
            self._rendered = (snapshot, step)
        return self._forecast_lines


def forecast_lines(forecasts: Iterable[ServerForecast]) -> Iterator[str]:
    """Lines of all metrics; a metric's lines stand together, as the format wants it."""
    forecasts = list(forecasts)
    for metric, unit in BASE_UNITS.items():
        having = [forecast for forecast in forecasts if metric in forecast.model.metrics]
        if having:
            yield from _header(
                f"fleet_forecast_{unit.name}", "summary", f"Forecast of {metric} by horizon and quantile."
            )
        for forecast in having:
            yield from _forecast_samples(forecast, metric, unit)


def breach_lines(daemon: Daemon) -> Iterator[str]:
    """Probability of crossing the threshold within each horizon, for the servers in view."""
    name = "fleet_breach_probability"
    yield from _header(name, "gauge", "Probability of crossing the alert threshold within the horizon.")
    for server, probabilities in list(daemon.alerts.probabilities.items()):
        forecast = daemon.forecasts.snapshot.forecasts.get(server)
        if forecast is None or len(probabilities) != len(forecast.model.metrics) or daemon.forecasts.is_stale(forecast):
            continue
        labels = f'server="{server}",profile="{forecast.profile}"'
        for metric, row in zip(forecast.model.metrics, probabilities.tolist(), strict=True):
            for horizon, value in zip(REPORT_HORIZONS, row, strict=True):
                yield f'{name}{{{labels},metric="{metric}",horizon="{horizon}"}} {value:.4g}'


def _forecast_samples(forecast: ServerForecast, metric: str, unit: BaseUnit) -> Iterator[str]:
    # Names hold no quote, backslash or line end (records.SERVER_NAME), so labels need no escaping.
    labels = f'server="{forecast.server_name}",profile="{forecast.profile}"'
    rows = forecast.quantiles[forecast.model.metrics.index(metric)]
    for horizon, seconds in REPORT_HORIZONS.items():
        steps = selected_steps(forecast, Selection(horizon_seconds=(seconds,)))
        if steps:
            for quantile in SCORED_LEVELS:
                if quantile in forecast.model.quantiles:
                    value = float(rows[forecast.model.quantiles.index(quantile), steps[0] - 1]) * unit.factor
                    place = f'{labels},horizon="{horizon}",quantile="{quantile}"'
                    yield f"fleet_forecast_{unit.name}{{{place}}} {value:.6g}"


def _header(name: str, kind: str, description: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]


def _own(daemon: Daemon, openmetrics: bool) -> Iterator[str]:
    """The daemon's own figures."""
    forecasts, store, model = daemon.forecasts, daemon.store, daemon.model
    snapshot, figures = forecasts.snapshot, forecasts.statistics

    def gauge(name: str, description: str, *samples: tuple[str, float]) -> Iterator[str]:
        yield from _header(name, "gauge", description)
        yield from (f"{name}{labels} {value!r}" for labels, value in samples)

    def counter(name: str, description: str, *samples: tuple[str, float]) -> Iterator[str]:
        yield from _header(name if openmetrics else f"{name}_total", "counter", description)
        yield from (f"{name}_total{labels} {value!r}" for labels, value in samples)

    yield from gauge(
        "fleet_forecast_build_info", "Version of the data contract.", (f'{{contract_version="{CONTRACT_VERSION}"}}', 1)
    )
    yield from counter("fleet_ingested_records", "Records accepted and stored.", ("", daemon.ingest.accepted))
    rejected = sorted(daemon.ingest.rejected.items()) or [("none", 0)]
    yield from counter(
        "fleet_rejected_records",
        "Records rejected, by the field at fault.",
        *((f'{{field="{f}"}}', n) for f, n in rejected),
    )
    yield from _header("fleet_cycle_duration_seconds", "histogram", "Duration of forecast cycles of the whole fleet.")
    yield from figures.durations.samples("fleet_cycle_duration_seconds")
    yield from counter("fleet_cycles", "Forecast cycles of the whole fleet.", ("", figures.cycles))
    yield from counter("fleet_cycles_skipped", "Steps that passed during a cycle.", ("", figures.skipped))
    yield from counter("fleet_cycles_failed", "Cycles that failed; the last forecasts stayed.", ("", figures.failed))
    yield from counter(
        "fleet_forecasts_not_finite",
        "Forecasts dropped because they were not finite.",
        ("", figures.not_finite),
    )
    yield from _scores(daemon, counter)
    alerts = Counter(alert.metric for alert in list(daemon.alerts.firing.values()))
    firing = ((f'{{metric="{metric}"}}', count) for metric, count in sorted(alerts.items()))
    yield from gauge("fleet_alerts_firing", "Firing alerts, by metric.", *firing)
    yield from counter("fleet_alerts_sent", "Alerts delivered.", ("", sum(d.sent for d in daemon.deliveries)))
    failures = sum(delivery.failures for delivery in daemon.deliveries)
    yield from counter("fleet_alert_delivery_failures", "Deliveries that failed and were tried again.", ("", failures))
    yield from gauge("fleet_event_listeners", "Open event streams.", ("", daemon.events.listeners))
    yield from counter("fleet_event_listeners_dropped", "Listeners dropped for lagging.", ("", daemon.events.dropped))
    pulls = ((f'{{result="{result}"}}', count) for result, count in sorted(daemon.ingest.pulls.items()))
    yield from counter("fleet_prometheus_pulls", "Attempts to pull the fleet from Prometheus.", *pulls)
    failed = ((f'{{work="{work}"}}', count) for work, count in sorted(daemon.background_failures.items()))
    yield from counter("fleet_background_failures", "Work beside the requests that failed and began again.", *failed)
    if snapshot.origin_seconds is not None:
        yield from gauge(
            "fleet_forecast_age_seconds",
            "Time since the end of the last step the forecasts know.",
            ("", round(daemon.clock() - snapshot.origin_seconds - store.step_seconds, 3)),
        )
    if snapshot.model is not None:
        info = f'{{model="{snapshot.model.model_id}"}}'
        yield from gauge("fleet_model_info", "The model of the forecasts.", (info, 1))
    if model.last_load is not None:
        succeeded = float(model.last_load.problem is None)
        yield from gauge(
            "fleet_model_last_reload_successful", "Whether the last model load succeeded.", ("", succeeded)
        )
        at = round(model.last_load.at_seconds, 3)
        yield from gauge("fleet_model_last_reload_timestamp_seconds", "When a model was last loaded.", ("", at))
    results = ((f'{{result="{"success" if good else "failure"}"}}', n) for good, n in model.loads.items())
    yield from counter("fleet_model_reloads", "Attempts to load a model.", *results)
    yield from gauge("fleet_history_size_bytes", "Size of the history on disk.", ("", store.size_bytes()))
    yield from gauge("fleet_history_waiting_records", "Records not yet on disk.", ("", store.waiting_records()))
    yield from gauge("fleet_history_writable", "Whether the last write succeeded.", ("", float(store.failure is None)))
    yield from gauge(
        "fleet_history_set_aside",
        "Whether a damaged history was set aside at the start.",
        ("", float(bool(store.set_aside))),
    )
    by_profile = ((f'{{profile="{profile}"}}', count) for profile, count in sorted(snapshot.profiles.items()))
    yield from gauge("fleet_servers", "Servers with a forecast, by profile.", *by_profile)
    yield from gauge("fleet_servers_unmatched", "Servers whose name no rule matches.", ("", len(snapshot.unmatched)))
    yield from gauge("fleet_servers_stale", "Servers that fell silent.", ("", forecasts.stale_servers()))


def _scores(daemon: Daemon, counter: Callable[..., Iterator[str]]) -> Iterator[str]:
    """What became of earlier forecasts; values in the contract's units."""
    tallies = [(f'{{metric="{m}",horizon="{h}"}}', tally) for (m, h), tally in sorted(daemon.scores.tallies.items())]
    for name, description, field in (
        ("fleet_forecast_scored", "Forecast values compared with what was then measured.", "scored"),
        ("fleet_forecast_covered", "Of these, within the 80 % band.", "covered_80"),
        ("fleet_forecast_pinball_loss", "Twice their pinball loss; divided by the next: the WQL.", "pinball"),
        ("fleet_forecast_measured_magnitude", "Sum of the measured magnitudes.", "absolute"),
    ):
        yield from counter(name, description, *((labels, getattr(tally, field)) for labels, tally in tallies))


def wants_openmetrics(accept: str) -> bool:
    """Whether a scraper asks for OpenMetrics."""
    return "application/openmetrics-text" in accept
