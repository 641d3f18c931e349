"""Which values of a forecast are written, as time series.

A series has one metric, horizon, quantile and server: `fleet_forecast:cpu_pct{horizon="1h",quantile="0.5",server="a"}`.
Each cycle adds one sample to it, at the time that is forecast. So no time of a series is written twice, and a series
can be compared with what is measured at the same times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import orjson

from fleet_forecast.contract.forecast_spec import report_horizons
from fleet_forecast.serving.forecasts.selection import horizon_seconds
from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast
from fleet_forecast.serving.json_bytes import to_json
from fleet_forecast.sources.connections_file import ForecastsTable
from fleet_forecast.sources.protocols.messages import Label, WriteRequest

SERVER_LABEL = "server"


class Cell(NamedTuple):
    """A value of a forecast: its position, and the labels of its series but the server, encoded and in order."""

    metric: int
    quantile: int
    step: int  # 1 follows the origin
    labels: tuple[bytes, ...]


class ForecastCells(NamedTuple):
    """The chosen values of a model's forecasts; missing: what is chosen but not forecast by it, as text."""

    cells: tuple[Cell, ...]
    missing: tuple[str, ...]


def series_name(metric: str) -> str:
    """The name of a metric's series."""
    return f"fleet_forecast:{metric}"


def chosen_cells(table: ForecastsTable, model: ModelView, horizon_steps: int) -> ForecastCells:
    """The values that the table chooses of a model with this horizon."""
    reach_seconds = horizon_steps * model.step_seconds
    horizons = table.horizons or tuple(report_horizons(reach_seconds))
    steps = {label: -(-horizon_seconds(label) // model.step_seconds) for label in horizons}
    metrics = table.metrics or model.metrics
    missing = [f"horizon {label}" for label, step in steps.items() if step > horizon_steps]
    missing += [f"quantile {level:g}" for level in table.quantiles if level not in model.quantiles]
    missing += [f"metric {metric}" for metric in metrics if metric not in model.metrics]
    cells = [
        Cell(
            model.metrics.index(metric),
            model.quantiles.index(level),
            step,
            (
                _label("__name__", series_name(metric)),
                _label("horizon", label),
                _label("quantile", f"{level:g}"),
            ),
        )
        for metric in metrics
        if metric in model.metrics
        for level in table.quantiles
        if level in model.quantiles
        for label, step in steps.items()
        if step <= horizon_steps
    ]
    return ForecastCells(tuple(cells), tuple(missing))


def cardinality_text(table: ForecastsTable, model: ModelView, horizon_steps: int, max_servers: int) -> str:
    """Text on the number of series that would be written: each takes memory of the database."""
    cells, missing = chosen_cells(table, model, horizon_steps)
    count = [len({cell.labels[place] for cell in cells}) for place in range(3)]
    parts = f"{count[0]} metrics, {count[1]} horizons and {count[2]} quantiles are {len(cells)} series a server"
    most = f"{len(cells) * max_servers:,} of max_servers = {max_servers:,}"
    lacking = f"; {model.model_id} does not forecast {', '.join(missing)}" if missing else ""
    return f"forecasts of servers {table.servers!r}: {parts}, at most {most}{lacking}"


def write_request(forecasts: Sequence[ServerForecast], cells: Sequence[Cell]) -> tuple[bytes, int]:
    """The body of a remote-write request 1.0 with one sample for each forecast and cell, not compressed; how many.

    The forecasts have one model. Metrics that are not forecast for a server are left out. Values are the numbers of the
    API: the shortest that identify each float32.
    """
    where = tuple(np.array([cell[axis] for cell in cells]) for axis in range(3))
    request, samples = WriteRequest(), 0
    for forecast in forecasts:
        values = orjson.loads(to_json(forecast.quantiles[where[0], where[1], where[2] - 1]))  # null: not measured
        server = _label(SERVER_LABEL, forecast.server_name)
        for cell, value in zip(cells, values, strict=True):
            if value is None:
                continue
            series = request.timeseries.add()
            series.labels.extend((*cell.labels, server))
            seconds = forecast.origin_seconds + cell.step * forecast.model.step_seconds
            series.samples.add(value=value, timestamp=seconds * 1000)
            samples += 1
    return bytes(request.SerializeToString()), samples


def _label(name: str, value: str) -> bytes:
    return bytes(Label(name=name, value=value).SerializeToString())
