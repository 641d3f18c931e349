"""Forecasts as a table: one row per server, origin, step and metric, the quantiles as columns."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.inference.forecast_table import ForecastAxes, forecast_schema, forecast_table, of_metrics
from fleet_forecast.inference.peer_support import PeerSupport
from fleet_forecast.serving.forecasts.selection import Selection, selected_steps
from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast

ARROW_STREAM = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"


def fleet_table(forecasts: Sequence[ServerForecast], selection: Selection) -> pa.Table:
    """Forecasts of one model as a table, without the metrics that are not forecast for a server.

    Raises IndexError if there are none; then there is empty_table.
    """
    model = forecasts[0].model
    steps = selected_steps(forecasts[0], selection)
    metrics = [m for m in model.metrics if selection.metrics is None or m in selection.metrics]
    levels = [q for q in model.quantiles if selection.quantiles is None or q in selection.quantiles]
    values = np.stack([forecast.quantiles for forecast in forecasts])  # (server, metric, quantile, step)
    values = values[:, [model.metrics.index(m) for m in metrics]]
    values = values[:, :, [model.quantiles.index(q) for q in levels]][..., np.array(steps, dtype=np.int64) - 1]
    origins = np.array([forecast.origin_seconds for forecast in forecasts]).astype("datetime64[s]")
    names = [forecast.server_name for forecast in forecasts]
    axes = ForecastAxes(steps, model.step_seconds, metrics, levels)
    chosen = np.array([[metric in forecast.metrics for metric in metrics] for forecast in forecasts])
    table = forecast_table(names, origins, axes, values.transpose(0, 3, 1, 2), _support(forecasts, metrics))
    return of_metrics(table, len(steps), chosen)


def empty_table(model: ModelView | None, selection: Selection) -> pa.Table:
    """The table without a row. model: None before the first forecast; then the quantiles are those of the contract."""
    levels = QUANTILE_LEVELS if model is None else model.quantiles
    return forecast_schema([q for q in levels if selection.quantiles is None or q in selection.quantiles]).empty_table()


def _support(forecasts: Sequence[ServerForecast], metrics: Sequence[str]) -> PeerSupport:
    """What the peers contribute to these metrics of the forecasts."""
    places = [forecasts[0].model.metrics.index(metric) for metric in metrics]
    counts = np.array([forecast.peers.count for forecast in forecasts], dtype=np.int64)
    weights = np.zeros((len(forecasts), len(metrics)), dtype=np.float32)
    for row, forecast in enumerate(forecasts):
        if forecast.peers.weights:
            weights[row] = np.array(forecast.peers.weights)[places]
    return PeerSupport(counts, weights)


def encoded(table: pa.Table, media_type: str) -> bytes:
    """The table as an Arrow stream or a Parquet file."""
    sink = pa.BufferOutputStream()
    if media_type == PARQUET:
        pq.write_table(table, sink, compression="zstd")
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return bytes(sink.getvalue())


def wanted_table(accept: str) -> str | None:
    """The table format an Accept header asks for, None for JSON: the one with the highest weight, else the first."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        kind, _, parameters = part.partition(";")
        weights[kind.strip().lower()] = _weight(parameters)
    tables = [kind for kind in weights if kind in (ARROW_STREAM, PARQUET)]
    best = max(tables, key=weights.__getitem__, default=None)
    if best is None or weights[best] == 0 or weights[best] < weights.get("application/json", 0):
        return None
    return best


def _weight(parameters: str) -> float:
    """The weight q of a media type, 0 to 1; 1 without one, 0 if it is not a number."""
    found = re.search(r"(?:^|;)\s*q\s*=\s*([^;]*)", parameters, re.IGNORECASE)
    if found is None:
        return 1.0
    return float(found[1]) if re.fullmatch(r"[01](\.\d{0,3})?\s*", found[1]) else 0.0
