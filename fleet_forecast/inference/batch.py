"""Batch forecasts: rows of a file on the model's grid, forecast origins, and the file of forecasts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from fleet_forecast.atomic_write import new_file
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.history import past_values
from fleet_forecast.features.peers import Peers
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import measured_metrics, served_metrics
from fleet_forecast.inference.forecast_table import ForecastAxes, forecast_schema, forecast_table, of_metrics
from fleet_forecast.inference.model_config import ModelConfig
from fleet_forecast.inference.peer_support import PeerSupport
from fleet_forecast.iso_time import iso
from fleet_forecast.wording import counted
from server_profiles import ProfileRules, profile_of

CHUNK_SERVERS = 64  # forecast at once; bounds memory


class OriginError(ValueError):
    """There is no forecast origin as requested; the message names the flag, the value and the remedy."""


class Origin(NamedTuple):
    """A forecast origin: row of the server and step in the grid."""

    server: int
    step: int


class EngineInputs(NamedTuple):
    """Arguments of Engine.forecast: one entry per forecast."""

    history: np.ndarray
    profiles: list[str | None]
    origins: np.ndarray
    peers: Peers


def grid_for(frame: pd.DataFrame, config: ModelConfig, rules: ProfileRules) -> FleetGrid:
    """Rows of the contract on the model's grid: its step and metrics, and a profile for every server.

    A metric of the model that the frame lacks is missing throughout.
    """
    unserved = [metric for metric in config.targets if metric not in served_metrics(config)]
    missing = dict.fromkeys([*missing_metrics(frame, config), *unserved], np.float32(np.nan))
    grid = FleetGrid.from_frame(frame.assign(**missing), config.targets, config.step_seconds)
    servers = zip(grid.servers, grid.profiles, strict=True)
    return replace(grid, profiles=tuple(profile_of(name, sent, rules)[0] for name, sent in servers))


def missing_metrics(frame: pd.DataFrame, config: ModelConfig) -> list[str]:
    """Metrics that the model forecasts and the frame lacks."""
    return [metric for metric in config.targets if metric not in frame.columns]


def last_origins(grid: FleetGrid) -> list[Origin]:
    """One origin per server: its last step with a measurement, or the grid's last step if it has none."""
    measured = _measured(grid)
    steps = grid.steps - 1 - np.argmax(measured[:, ::-1], axis=1)
    return [Origin(server, step) for server, step in enumerate(steps.tolist())]


def servers_without_measurement(grid: FleetGrid) -> list[str]:
    """Names of the servers that are forecast without history."""
    return [grid.servers[server] for server in np.flatnonzero(~_measured(grid).any(axis=1))]


def history_notes(grid: FleetGrid) -> Iterator[str]:
    """The servers that are forecast without history, for people."""
    for name in servers_without_measurement(grid):
        yield f"{name} has no measurement the model can use: forecast without history"


def regular_origins(grid: FleetGrid, every_seconds: int, first_origin: np.datetime64 | None) -> list[Origin]:
    """Origins at a regular distance, for every server that was measured at that step.

    first_origin: None = `every_seconds` after the start of the data. Raises OriginError if there is no origin.
    """
    distance = every_seconds // grid.step_seconds
    if distance == 0 or every_seconds % grid.step_seconds:
        raise OriginError(
            f"--origins: {every_seconds} s is not a multiple of the model's step of {grid.step_seconds} s"
        )
    first = distance if first_origin is None else grid.step_at(first_origin)
    if not 0 <= first < grid.steps:
        begin, end = grid.timestamps()[[0, -1]]
        reach = f"the data, which reaches from {iso(begin)} to {iso(end)}"
        if first_origin is None:
            raise OriginError(f"--origins: {every_seconds} s is longer than {reach}; use a shorter distance, or --from")
        raise OriginError(f"--from {iso(first_origin)}: outside {reach}; give a time within it")
    measured = _measured(grid)
    steps = range(first, grid.steps, distance)
    origins = [Origin(int(server), step) for step in steps for server in np.flatnonzero(measured[:, step])]
    if not origins:
        raise OriginError("--origins: no server has a row at any origin; choose another --from")
    return origins


def engine_inputs(engine: Engine, grid: FleetGrid, peers: Peers, origins: Sequence[Origin]) -> EngineInputs:
    """History, profiles, times and peers of some origins; peers: of the grid's servers."""
    servers, steps = (np.array(part) for part in zip(*origins, strict=True))
    length = min(engine.config.history_steps, int(steps.max()) + 1)
    history = past_values(grid.values, servers, steps, length)
    profiles = [grid.profiles[server] for server in servers]
    own = Peers(peers.table, peers.members[servers])
    return EngineInputs(history, profiles, grid.timestamps()[steps], own)


def input_notes(engine: Engine, frame: pd.DataFrame, grid: FleetGrid) -> Iterator[str]:
    """Profiles of the input that the model lacks, and metrics of the model that the input lacks; grid: of the frame."""
    served = served_metrics(engine.config)
    if missing := [metric for metric in missing_metrics(frame, engine.config) if metric in served]:
        whose = " for servers whose profile had it in the training data" if engine.config.measured_by_profile else ""
        yield f"the data has no {', '.join(missing)}: forecast as not measured{whose}"
    yield from _left_out(engine.config, grid)
    if engine.config.profiles:
        for profile in engine.unknown_profiles(grid.profiles):
            yield (
                f"the model was not trained on profile {profile!r}: forecast with an unknown profile "
                f"({counted(grid.profiles.count(profile), 'server')}); train on servers with it"
            )


def _left_out(config: ModelConfig, grid: FleetGrid) -> Iterator[str]:
    """The metrics that are not forecast for a profile; what measured_metrics leaves out, for people."""
    here, served = grid.measured_by_profile(), served_metrics(config)
    for profile, trained in config.measured_by_profile.items():
        lacking = [metric for metric in served if metric not in {*trained, *here.get(profile, trained)}]
        if profile in here and lacking:
            yield (
                f"{', '.join(lacking)} of profile {profile!r} is not forecast: no server of it measured that, here or "
                "in the training data"
            )


def write_forecasts(path: Path, engine: Engine, grid: FleetGrid, origins: Sequence[Origin]) -> int:
    """Write the forecasts of all origins as parquet, with progress on stderr; returns the number of rows.

    The file is written under another name and renamed when it is complete. Raises DataFileError if that fails.
    """
    tables = forecast_tables(engine, grid, grid.peers(), origins)
    chunks = -(-len(origins) // CHUNK_SERVERS)
    try:
        with new_file(path) as temporary:
            return write_tables(
                temporary,
                engine.config,
                tqdm(tables, total=chunks, desc="forecast", unit="chunk", file=sys.stderr, disable=None),
            )
    except OSError as problem:
        raise DataFileError(
            f"{path}: cannot be written ({problem.strerror or problem}); check the folder and its free space"
        ) from None


def forecast_tables(engine: Engine, grid: FleetGrid, peers: Peers, origins: Sequence[Origin]) -> Iterator[pa.Table]:
    """The forecasts of all origins, CHUNK_SERVERS at once, in the form of forecast_table."""
    for start in range(0, len(origins), CHUNK_SERVERS):
        yield _forecast(engine, grid, peers, origins[start : start + CHUNK_SERVERS])


def write_tables(file: Path, config: ModelConfig, tables: Iterable[pa.Table]) -> int:
    """Write tables of forecasts into one parquet file; returns the number of rows. Raises OSError."""
    rows = 0
    with pq.ParquetWriter(file, forecast_schema(config.quantiles), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _forecast(engine: Engine, grid: FleetGrid, peers: Peers, origins: Sequence[Origin]) -> pa.Table:
    """Forecasts of some origins, one row per origin, step and metric that makes sense for the server."""
    config = engine.config
    # Matrix products of other sizes are rounded otherwise. All batches have one size, so that the numbers do not depend
    # on how a fleet is divided.
    batch = [*origins, *[origins[-1]] * (CHUNK_SERVERS - len(origins))]
    inputs = engine_inputs(engine, grid, peers, batch)
    quantiles = engine.forecast(*inputs)[: len(origins)]  # [origin, horizon, metric, quantile]
    measured = measured_metrics(config, *inputs[:2], inputs.peers)[: len(origins)]
    support = PeerSupport(*(field[: len(origins)] for field in engine.peer_support(*inputs)))
    servers, metrics = [grid.servers[origin.server] for origin in origins], served_metrics(config)
    if metrics != config.targets:
        served = [config.targets.index(metric) for metric in metrics]
        quantiles, support = quantiles[:, :, served], support._replace(weights=support.weights[:, served])
        measured = measured[:, served]
    axes = ForecastAxes(range(1, config.horizon_steps + 1), config.step_seconds, metrics, config.quantiles)
    table = forecast_table(servers, inputs.origins[: len(origins)], axes, quantiles, support)
    return of_metrics(table, config.horizon_steps, measured)


def _measured(grid: FleetGrid) -> np.ndarray:
    """Whether any metric was measured: boolean [server, step]."""
    return ~np.isnan(grid.values).all(axis=2)
