"""Forecasts as a table: one row per server, origin, step and metric, the quantiles as columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def schema(quantiles: Sequence[float]) -> pa.Schema:
    """server_name, origin, step, timestamp, metric, then a column per quantile: q0.02 and so on."""
    instant = pa.timestamp("ns", tz="UTC")
    columns = [("server_name", pa.string()), ("origin", instant), ("step", pa.int16())]
    columns += [("timestamp", instant), ("metric", pa.string())]
    return pa.schema([*columns, *((f"q{quantile:g}", pa.float32()) for quantile in quantiles)])


def long_table(
    servers: Sequence[str],
    origins: np.ndarray,
    steps: Sequence[int],
    step_seconds: int,
    metrics: Sequence[str],
    levels: Sequence[float],
    quantiles: np.ndarray,
) -> pa.Table:
    """Lay out forecasts.

    servers, origins: one per forecast, origins datetime64[s]. quantiles: float32 [forecast, step, metric, quantile].
    """
    count, per_step = len(servers), len(metrics)
    distances = (np.asarray(steps) * step_seconds).astype("timedelta64[s]")
    times = np.repeat((origins[:, None] + distances).reshape(-1), per_step)
    per_forecast = len(steps) * per_step
    table: dict[str, object] = {
        "server_name": np.repeat(np.array(servers, dtype=object), per_forecast),
        "origin": np.repeat(origins, per_forecast).astype("datetime64[ns]"),
        "step": np.tile(np.repeat(np.asarray(steps), per_step), count).astype(np.int16),
        "timestamp": times.astype("datetime64[ns]"),
        "metric": np.tile(np.array(metrics, dtype=object), count * len(steps)),
    }
    flat = quantiles.reshape(-1, len(levels))
    table |= {f"q{level:g}": np.ascontiguousarray(flat[:, index]) for index, level in enumerate(levels)}
    return pa.table(table, schema=schema(levels))
