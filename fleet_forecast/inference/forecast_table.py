"""Forecasts as a table: one row per server, origin, step and metric, the quantiles as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fleet_forecast.inference.peer_support import PeerSupport


class ForecastAxes(NamedTuple):
    """Meaning of the axes [step, metric, quantile] of forecasts; steps count from 1, the first after the origin."""

    steps: Sequence[int]
    step_seconds: int
    metrics: Sequence[str]
    levels: Sequence[float]


def forecast_schema(levels: Sequence[float]) -> pa.Schema:
    """server_name, origin, step, timestamp, metric, peers, peer_weight, then one column per quantile: q0.02 and so on.

    peers: number of peers that the forecast uses. peer_weight: of their level against the server's own, 0 to 1.
    """
    instant = pa.timestamp("ns", tz="UTC")
    columns = [("server_name", pa.string()), ("origin", instant), ("step", pa.int16())]
    columns += [("timestamp", instant), ("metric", pa.string()), ("peers", pa.int16()), ("peer_weight", pa.float32())]
    return pa.schema([*columns, *((f"q{level:g}", pa.float32()) for level in levels)])


def forecast_table(
    servers: Sequence[str],
    origins: np.ndarray,
    axes: ForecastAxes,
    quantiles: np.ndarray,
    support: PeerSupport,
) -> pa.Table:
    """The table of forecasts.

    servers, origins: one per forecast, origins datetime64[s]. quantiles: float32 [forecast, step, metric, quantile].
    support: of each forecast.
    """
    steps, metrics = np.asarray(axes.steps), axes.metrics
    distances = (steps * axes.step_seconds).astype("timedelta64[s]")
    times = np.repeat((origins[:, None] + distances).reshape(-1), len(metrics))
    rows_per_forecast = len(steps) * len(metrics)
    table: dict[str, object] = {
        "server_name": np.repeat(np.array(servers, dtype=object), rows_per_forecast),
        "origin": np.repeat(origins, rows_per_forecast).astype("datetime64[ns]"),
        "step": np.tile(np.repeat(steps, len(metrics)), len(servers)).astype(np.int16),
        "timestamp": times.astype("datetime64[ns]"),
        "metric": np.tile(np.array(metrics, dtype=object), len(servers) * len(steps)),
        "peers": np.repeat(support.counts, rows_per_forecast).astype(np.int16),
        "peer_weight": np.repeat(support.weights[:, None], len(steps), axis=1).reshape(-1),
    }
    flat = quantiles.reshape(-1, len(axes.levels))
    table |= {f"q{level:g}": np.ascontiguousarray(flat[:, index]) for index, level in enumerate(axes.levels)}
    return pa.table(table, schema=forecast_schema(axes.levels))


def of_metrics(table: pa.Table, steps: int, chosen: np.ndarray) -> pa.Table:
    """A forecast_table of so many steps with some metrics of each forecast; chosen: boolean [forecast, metric]."""
    if chosen.all():
        return table
    return table.filter(pa.array(np.repeat(chosen[:, None], steps, axis=1).reshape(-1)))
