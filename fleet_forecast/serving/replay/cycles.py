"""The daemon's forecast cycles over a past period, with many origins in one call of the engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from tqdm import tqdm

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.peers import Peers
from fleet_forecast.inference.batch import Origin, engine_inputs
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.forecasts.server_forecasts import ServersToForecast, forecast_servers
from fleet_forecast.serving.forecasts.snapshot import ServerForecast

FORECASTS_AT_ONCE = 360  # of several steps, or of a part of a step; bounds memory
RULE = "data of the replay"  # source of the profiles


def replay_cycles(engine: Engine, grid: FleetGrid, steps: range) -> Iterator[tuple[int, list[ServerForecast]]]:
    """Each step with the forecasts of the servers that were measured at it, as the daemon makes them.

    grid: with the metrics of the model and the history before the steps. Progress goes to stderr.
    """
    peers, measured = grid.peers(), ~np.isnan(grid.values[:, steps.start : steps.stop]).all(axis=2)
    origins = (
        Origin(int(server), step) for step in steps for server in np.flatnonzero(measured[:, step - steps.start])
    )
    made: list[ServerForecast] = []
    running = iter(tqdm(steps, desc="replay", unit="step", file=sys.stderr, disable=None))
    current = next(running, steps.stop)
    while chunk := list(islice(origins, FORECASTS_AT_ONCE)):
        for origin, forecast in zip(chunk, forecasts_of(engine, grid, peers, chunk), strict=True):
            while current < origin.step:
                yield current, made
                made, current = [], next(running)
            if forecast is not None:
                made.append(forecast)
    while current < steps.stop:
        yield current, made
        made, current = [], next(running, steps.stop)


def forecasts_of(
    engine: Engine, grid: FleetGrid, peers: Peers, origins: Sequence[Origin]
) -> list[ServerForecast | None]:
    """Forecasts from some origins; None in place of one that is not finite."""
    inputs = engine_inputs(engine, grid, peers, origins)
    names = [grid.servers[origin.server] for origin in origins]
    profiles = [(str(profile), RULE) for profile in inputs.profiles]
    seconds = inputs.origins.astype("datetime64[s]").astype(np.int64)
    return forecast_servers(engine, ServersToForecast(names, profiles, inputs.history, seconds, inputs.peers))
