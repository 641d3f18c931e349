"""Baseline forecasts: simple methods that every score table shows next to the model.

To add a baseline, write a function of `Observed` and enter it in BASELINES: score tables, training_info.json and the
report take their rows from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.grid import FleetGrid

TrainingQuantiles = Mapping[str | None, np.ndarray]  # profile -> float32 [metric, quantile]; None: the whole fleet


class Observed(NamedTuple):
    """The input of a baseline.

    history: float32 [window, step, metric], NaN = not measured; the last step is the origin, 0 steps are allowed.
    profile_quantiles: float32 [window, metric, quantile], quantiles of the training data of each window's profile, or
    None where they are not part of the comparison.
    """

    history: np.ndarray
    horizon_steps: int
    day_steps: int
    quantiles: Sequence[float]
    profile_quantiles: np.ndarray | None = None


# -> float32, broadcastable to [window, horizon, metric, quantile]; None if the history is too short for the method.
Baseline = Callable[[Observed], np.ndarray | None]


def naive(observed: Observed) -> np.ndarray | None:
    """The last measured value, at every quantile and step."""
    history = observed.history
    steps = history.shape[1]
    if not steps:
        return None
    measured = ~np.isnan(history)
    last = steps - 1 - np.argmax(measured[:, ::-1], axis=1)
    return np.take_along_axis(history, last[:, None], axis=1)[:, :, :, None]  # [window, 1, metric, 1]


def seasonal_naive(observed: Observed) -> np.ndarray | None:
    """The value at the same time of day: one day before, or the fewest days that cover the horizon."""
    steps = observed.history.shape[1]
    lag = observed.day_steps * -(-observed.horizon_steps // observed.day_steps)
    if steps < lag:
        return None
    same_time = observed.history[:, steps - lag :][:, : observed.horizon_steps, :, None]
    return same_time.copy()  # does not keep the whole history in memory


def window_quantiles(observed: Observed, hours: int) -> np.ndarray | None:
    """Empirical quantiles of the last `hours`, the same at every step."""
    if not observed.history.shape[1]:
        return None
    recent = observed.history[:, -max(1, observed.day_steps * hours // 24) :]
    return _quantiles(recent, observed.quantiles)[:, None]


def profile_quantiles(observed: Observed) -> np.ndarray | None:
    """Quantiles of the training data of the server's profile: needs no history."""
    return None if observed.profile_quantiles is None else observed.profile_quantiles[:, None]


BASELINES: dict[str, Baseline] = {
    "naive": naive,
    "seasonal_naive": seasonal_naive,
    "window_quantiles_6h": partial(window_quantiles, hours=6),
    "window_quantiles_24h": partial(window_quantiles, hours=24),
    "profile_quantiles": profile_quantiles,
}


def baseline_forecasts(observed: Observed) -> dict[str, np.ndarray]:
    """Forecasts of all BASELINES: [window, horizon, metric, quantile] by name, NaN where they have no value.

    A method that needs more history than there is, is left out.
    """
    windows, _, metrics = observed.history.shape
    shape = (windows, observed.horizon_steps, metrics, len(observed.quantiles))
    forecasts = {name: baseline(observed) for name, baseline in BASELINES.items()}
    return {name: np.broadcast_to(values, shape) for name, values in forecasts.items() if values is not None}


def training_quantiles(
    grid: FleetGrid, rows: np.ndarray, last_step: int, quantiles: Sequence[float]
) -> TrainingQuantiles:
    """Quantiles of everything measured before `last_step`, by profile and (None) of the whole fleet.

    rows: int64, the servers of the training data.
    """
    owner = np.array([grid.profiles[row] or "" for row in rows])

    def of(chosen: np.ndarray) -> np.ndarray:
        columns = (grid.values[chosen, :last_step, metric] for metric in range(len(grid.metrics)))
        return np.stack([_quantiles(column.reshape(1, -1, 1), quantiles)[0, 0] for column in columns])

    named: dict[str | None, np.ndarray] = {str(name): of(rows[owner == name]) for name in np.unique(owner) if name}
    return {None: of(rows), **named}


def _quantiles(values: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Empirical quantiles (linear interpolation) over axis 1, NaN ignored: [window, metric, quantile]."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = (~np.isnan(values)).sum(axis=1)  # [window, metric]
    position = np.asarray(levels) * np.maximum(count - 1, 0)[..., None]  # [window, metric, quantile]
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(count - 1, 0)[..., None])
    columns = np.moveaxis(ordered, 1, 2)  # [window, metric, step]
    lower, upper = (np.take_along_axis(columns, at, axis=2) for at in (low, high))
    return (lower + (upper - lower) * (position - low)).astype(np.float32)
