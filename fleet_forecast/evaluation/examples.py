"""Examples of forecasts of past windows: the best, a typical and the worst one of each profile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fleet_forecast.evaluation.backtest import MODEL, Backtest
from fleet_forecast.evaluation.scores import pinball_loss
from fleet_forecast.evaluation.weight_tables import UNKNOWN_PROFILE
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.history import past_values

LEAST_MEASURED = 0.9  # share of the horizon
PLACES = {"best": 0.0, "typical": 0.5, "worst": 1.0}  # in the order of the error


class Example(NamedTuple):
    """One forecast of one metric.

    history: float32 [step] up to the origin; actual: [horizon]; quantiles: [horizon, quantile]. error: WQL of the
    window.
    """

    profile: str
    place: str
    server_name: str
    metric: str
    origin: np.datetime64
    step_seconds: int
    history: np.ndarray
    actual: np.ndarray
    quantiles: np.ndarray
    levels: tuple[float, ...]
    error: float


def examples(backtest: Backtest, grid: FleetGrid, history_steps: int) -> list[Example]:
    """Examples of the first metric, by profile; windows that were mostly not measured are left out."""
    actual = backtest.actual[:, :, 0]
    forecast = backtest.forecasts[MODEL][:, :, 0]  # (window, horizon, quantile)
    measured = ~np.isnan(actual)
    loss = np.where(measured, 2 * pinball_loss(actual, forecast, backtest.quantiles).mean(axis=-1), 0.0).sum(axis=1)
    total = np.where(measured, np.abs(actual), 0.0).sum(axis=1)
    usable = (measured.mean(axis=1) >= LEAST_MEASURED) & (total > 0)
    error = loss / np.where(usable, total, 1.0)
    owner = np.array([grid.profiles[row] or UNKNOWN_PROFILE for row in backtest.rows])
    found = []
    for profile in np.unique(owner):
        windows = np.flatnonzero(usable & (owner == profile))
        ranked = windows[np.argsort(error[windows], kind="stable")]
        for place, share in PLACES.items() if len(ranked) >= len(PLACES) else ():
            window = int(ranked[round(share * (len(ranked) - 1))])
            found.append(_example(backtest, grid, window, (str(profile), place, float(error[window])), history_steps))
    return found


def _example(
    backtest: Backtest, grid: FleetGrid, window: int, described: tuple[str, str, float], history_steps: int
) -> Example:
    row, origin = backtest.rows[window : window + 1], backtest.origins[window : window + 1]
    profile, place, error = described
    return Example(
        profile=profile,
        place=place,
        server_name=grid.servers[row[0]],
        metric=backtest.metrics[0],
        origin=grid.timestamps()[origin[0]],
        step_seconds=grid.step_seconds,
        history=past_values(grid.values, row, origin, history_steps)[0, :, 0],
        actual=backtest.actual[window, :, 0],
        quantiles=backtest.forecasts[MODEL][window, :, 0],
        levels=tuple(backtest.quantiles),
        error=error,
    )
