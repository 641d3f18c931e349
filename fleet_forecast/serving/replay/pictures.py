"""Pictures of alerts and incidents as inline SVG: measurements, past forecast, bounds, alert and incident."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fleet_forecast.contract.forecast_spec import BAND_80, MEDIAN_LEVEL
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.bounds import Limit
from fleet_forecast.serving.alerting.exceedance import nearest_level
from fleet_forecast.serving.alerting.messages import label_of, with_unit
from fleet_forecast.serving.forecasts.snapshot import ServerForecast

WIDTH, HEIGHT = 520.0, 130.0
BEFORE_SECONDS, AFTER_SECONDS = 8 * 3_600, 4 * 3_600  # shown before and after what is drawn
ALERT_COLOUR, INCIDENT_COLOUR = "#e69f00", "#d55e00"


@dataclass(frozen=True)
class Scene:
    """The content of one picture: a metric of a server around some time; periods in seconds since 1970.

    forecast: made before, None without one. bounds: of the metric.
    """

    server: int
    metric: str
    around: tuple[float, float]
    alerts: tuple[tuple[float, float], ...]
    incidents: tuple[tuple[float, float], ...]
    bounds: tuple[Limit, ...]
    forecast: ServerForecast | None


def picture(grid: FleetGrid, scene: Scene) -> str:
    """The figure as HTML."""
    seconds = grid.timestamps().astype("datetime64[s]").astype(np.float64)
    first, last = scene.around[0] - BEFORE_SECONDS, scene.around[1] + AFTER_SECONDS
    shown = (seconds >= first) & (seconds <= last)
    times, values = seconds[shown], grid.values[scene.server, shown, grid.metrics.index(scene.metric)]
    band = _band(scene, last)
    drawn = [values[~np.isnan(values)], band[:, 1:].ravel(), np.array([limit.value for limit in scene.bounds])]
    low, high = (float(edge(np.concatenate(drawn))) for edge in (np.min, np.max))
    axes = _Axes(first, last, low, high)
    parts = [axes.rectangles(scene.alerts, ALERT_COLOUR), axes.rectangles(scene.incidents, INCIDENT_COLOUR)]
    parts += [axes.horizontal(limit.value) for limit in scene.bounds]
    if len(band):
        parts += [axes.area(band), axes.line(band[:, 0], band[:, 2], "#56b4e9")]
    parts.append(axes.line(times, values, "#1d2733"))
    caption = f"<b>{html.escape(grid.servers[scene.server])}</b> {html.escape(label_of(scene.metric))}"
    scale = f"{with_unit(low, scene.metric)} to {with_unit(high, scene.metric)}, {iso(first)} to {iso(last)}"
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{caption}<br>{html.escape(scale)}</figcaption>{drawing}</figure>"


def _band(scene: Scene, last: float) -> np.ndarray:
    """Forecast up to the right edge: float [step, (seconds, low, median, high)]."""
    forecast = scene.forecast
    if forecast is None:
        return np.empty((0, 4))
    levels = forecast.model.quantiles
    rows = [nearest_level(levels, level) for level in (BAND_80[0], MEDIAN_LEVEL, BAND_80[1])]
    quantiles = forecast.quantiles[forecast.model.metrics.index(scene.metric)][rows].astype(np.float64)
    times = forecast.origin_seconds + np.arange(1, forecast.horizon_steps + 1) * float(forecast.model.step_seconds)
    return np.column_stack([times, quantiles.T])[times <= last]


@dataclass(frozen=True)
class _Axes:
    first: float
    last: float
    low: float
    high: float

    def _x(self, seconds: np.ndarray | float) -> np.ndarray | float:
        return np.clip((seconds - self.first) / (self.last - self.first), 0, 1) * WIDTH

    def _y(self, values: np.ndarray | float) -> np.ndarray | float:
        return (self.high - values) / (self.high - self.low or 1.0) * (HEIGHT - 4) + 2

    def _points(self, seconds: np.ndarray, values: np.ndarray) -> str:
        pairs = zip(np.atleast_1d(self._x(seconds)), np.atleast_1d(self._y(values)), strict=True)
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)

    def line(self, seconds: np.ndarray, values: np.ndarray, colour: str) -> str:
        """A line through the measured values; it is interrupted where nothing was measured."""
        known = ~np.isnan(values)
        pieces = np.split(np.arange(len(values)), np.flatnonzero(np.diff(known.astype(int))) + 1)
        return "".join(
            f'<polyline fill="none" stroke="{colour}" points="{self._points(seconds[piece], values[piece])}"/>'
            for piece in pieces
            if len(piece) and known[piece[0]]
        )

    def area(self, band: np.ndarray) -> str:
        """The 80 % band of the forecast."""
        outline = np.concatenate([band[:, [0, 3]], band[::-1, :2]])
        return f'<polygon fill="#56b4e9" opacity="0.25" points="{self._points(outline[:, 0], outline[:, 1])}"/>'

    def horizontal(self, value: float) -> str:
        """A bound."""
        y = float(self._y(value))
        return f'<line x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888" stroke-dasharray="5 4"/>'

    def rectangles(self, periods: Iterable[tuple[float, float]], colour: str) -> str:
        """Periods of time."""
        return "".join(
            f'<rect x="{float(self._x(start)):.1f}" y="0" height="{HEIGHT}" fill="{colour}" opacity="0.25" '
            f'width="{max(float(self._x(end)) - float(self._x(start)), 1.0):.1f}"/>'
            for start, end in periods
            if end > self.first and start < self.last
        )
