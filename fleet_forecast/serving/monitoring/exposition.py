"""/metrics: the forecasts and the daemon's own metrics, as Prometheus text or OpenMetrics.

A forecast is exposed at the time of the scrape with its distance as the label `horizon`, because Prometheus refuses
samples from the future. Values are in base units (ratios, bytes, seconds). The forecasts are of type summary: their
samples are quantiles, and promtool's linter allows the label `quantile` for that type only.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain

from fleet_forecast.contract.definitions import PROFILES, MetricSpec
from fleet_forecast.contract.forecast_spec import SCORED_LEVELS, report_horizons
from fleet_forecast.contract.specs import METRICS
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.inference.risk_model import RISK_HORIZONS
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot, ModelView, ServerForecast
from fleet_forecast.serving.monitoring.base_units import BaseUnit, base_unit, exposed_as
from fleet_forecast.serving.monitoring.daemon_metrics import FAMILIES, family_lines, known_profiles, profile_label
from fleet_forecast.serving.monitoring.process_metrics import process_lines
from fleet_forecast.serving.monitoring.text_format import OPENMETRICS, TEXT, header, label_value, wants_openmetrics

__all__ = ["OPENMETRICS", "TEXT", "Exposition", "forecast_lines", "page_parts", "wants_openmetrics"]

BLOCK_BYTES = 256 * 1024


def check_exposed_names(metrics: Iterable[MetricSpec]) -> None:
    """Raises TomlFileError if a metric has the name of another one on the page."""
    taken = {family.name: "a metric of the daemon" for family in FAMILIES}
    for spec in metrics:
        name = f"fleet_forecast_{base_unit(spec).name}"
        if name in taken:
            raise TomlFileError(f"metrics.{spec.name}: on /metrics it is {name}, the name of {taken[name]}; rename it")
        taken[name] = spec.name


class Exposition:
    """Renders /metrics.

    The lines of forecasts and alerts are cached, compressed, until the next cycle, step or update of the alerts: they
    are hundreds of megabytes of a large fleet, and a tenth or less of that when compressed.
    """

    def __init__(self) -> None:
        self._blocks: tuple[bytes, ...] = ()
        self._snapshot: weakref.ref[FleetSnapshot] | None = None
        self._rendered: tuple[int, int] | None = None

    def update(self, daemon: Daemon) -> tuple[bytes, ...]:
        """The compressed lines of forecasts and alerts, rendered if they changed.

        Safe to call from one worker thread at a time.
        """
        snapshot = daemon.forecasts.snapshot
        step = 0 if snapshot.model is None else daemon.forecasts.complete_step(snapshot.model.step_seconds)
        rendered = step, daemon.alerts.updates
        if self._snapshot is None or self._snapshot() is not snapshot or self._rendered != rendered:
            lines = chain(_fresh_forecast_lines(daemon, snapshot), exceedance_lines(daemon), risk_lines(daemon))
            self._blocks = tuple(zlib.compress(block, 1) for block in _blocks(lines))
            self._snapshot, self._rendered = weakref.ref(snapshot), rendered
        return self._blocks


def page_parts(blocks: Sequence[bytes], daemon: Daemon, openmetrics: bool) -> Iterator[bytes]:
    """The whole page in parts of up to BLOCK_BYTES. blocks: of Exposition.update."""
    yield from map(zlib.decompress, blocks)
    yield from _blocks(chain(family_lines(daemon, openmetrics), process_lines(openmetrics)))
    if openmetrics:
        yield b"# EOF\n"


def _blocks(lines: Iterable[str]) -> Iterator[bytes]:
    """Lines in blocks of about BLOCK_BYTES."""
    waiting: list[str] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line) + 1
        if size >= BLOCK_BYTES:
            yield ("\n".join(waiting) + "\n").encode()
            waiting, size = [], 0
    if waiting:
        yield ("\n".join(waiting) + "\n").encode()


def _fresh_forecast_lines(daemon: Daemon, snapshot: FleetSnapshot) -> Iterator[str]:
    fresh = [f for f in snapshot.forecasts.values() if not daemon.forecasts.is_stale(f)]
    return forecast_lines(fresh, known_profiles(daemon))


def forecast_lines(forecasts: Iterable[ServerForecast], profiles: Container[str] = PROFILES) -> Iterator[str]:
    """Lines of all metrics of the models; the lines of one metric are contiguous, as the format requires.

    profiles: those with a label of their own.
    """
    forecasts = list(forecasts)
    models = dict.fromkeys(forecast.model for forecast in forecasts)
    for metric in dict.fromkeys([*METRICS, *(metric for model in models for metric in model.metrics)]):
        of_metric = [forecast for forecast in forecasts if metric in forecast.metrics]
        unit = exposed_as(metric)
        if of_metric:
            yield from header(
                f"fleet_forecast_{unit.name}", "summary", f"Forecast of {metric} by horizon and quantile."
            )
        for forecast in of_metric:
            yield from _forecast_samples(forecast, metric, unit, profile_label(forecast.profile, profiles))


def exceedance_lines(daemon: Daemon) -> Iterator[str]:
    """Probability of exceeding the alert threshold within each horizon, for the servers of the snapshot."""
    name, profiles = "fleet_breach_probability", known_profiles(daemon)
    yield from header(name, "gauge", "Probability of crossing the alert threshold within the horizon.")
    for server, probabilities in list(daemon.alerts.probabilities.items()):
        forecast = daemon.forecasts.snapshot.forecasts.get(server)
        if forecast is None or daemon.forecasts.is_stale(forecast):
            continue
        horizons = report_horizons(forecast.horizon_steps * forecast.model.step_seconds)
        if probabilities.shape != (len(forecast.model.metrics), len(horizons)):
            continue  # of another model than the forecast
        labels = f'server="{label_value(server)}",profile="{profile_label(forecast.profile, profiles)}"'
        for metric, row in zip(forecast.model.metrics, probabilities.tolist(), strict=True):
            if metric in forecast.not_measured:
                continue
            for horizon, value in zip(horizons, row, strict=True):
                yield f'{name}{{{labels},metric="{metric}",horizon="{horizon}"}} {value:.4g}'


def risk_lines(daemon: Daemon) -> Iterator[str]:
    """Probability that an incident begins within each horizon or is under way, for the servers of the snapshot."""
    name, profiles = "fleet_incident_risk", known_profiles(daemon)
    fresh = [f for f in daemon.forecasts.snapshot.forecasts.values() if not daemon.forecasts.is_stale(f)]
    at_risk = [(forecast, forecast.risk) for forecast in fresh if forecast.risk is not None]
    if at_risk:
        yield from header(name, "gauge", "Probability that an incident begins within the time or is under way.")
    for forecast, risk in at_risk:
        labels = f'server="{forecast.server_name}",profile="{profile_label(forecast.profile, profiles)}"'
        for within, value in zip(RISK_HORIZONS, risk.probabilities.tolist(), strict=True):
            yield f'{name}{{{labels},within="{within}"}} {value:.4g}'


def exposed_levels(levels: Sequence[float]) -> Sequence[float]:
    """Levels of a model's quantiles on /metrics: SCORED_LEVELS, or all of a model that lacks one of them."""
    return SCORED_LEVELS if set(SCORED_LEVELS) <= set(levels) else levels


def _forecast_samples(forecast: ServerForecast, metric: str, unit: BaseUnit, profile: str) -> Iterator[str]:
    labels = f'server="{label_value(forecast.server_name)}",profile="{profile}"'
    rows = forecast.quantiles[forecast.model.metrics.index(metric)]
    for suffix, quantile, step in _exposed_cells(forecast.model, forecast.horizon_steps):
        value = float(rows[quantile, step]) * unit.factor
        yield f"fleet_forecast_{unit.name}{{{labels},{suffix}}} {value:.6g}"


@lru_cache(maxsize=8)
def _exposed_cells(model: ModelView, horizon_steps: int) -> list[tuple[str, int, int]]:
    """Labels and positions [quantile, step] of the exposed values; a horizon is rounded up to whole steps."""
    cells = []
    for horizon, seconds in report_horizons(horizon_steps * model.step_seconds).items():
        step = -(-seconds // model.step_seconds) - 1
        if step < horizon_steps:
            cells += [
                (f'horizon="{horizon}",quantile="{level}"', model.quantiles.index(level), step)
                for level in exposed_levels(model.quantiles)
            ]
    return cells
