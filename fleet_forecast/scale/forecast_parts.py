"""Forecasts parts one at a time: the work of a worker, in this process or on a cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fleet_forecast.contract.checks import ContractError
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.contract.reading import read_metrics
from fleet_forecast.features.grid import FleetGrid, GridError
from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers
from fleet_forecast.inference.batch import (
    Origin,
    OriginError,
    forecast_tables,
    grid_for,
    input_notes,
    last_origins,
    regular_origins,
    write_tables,
)
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import contradictions, load_for_fleet
from fleet_forecast.scale.parts import Folder, Part, fetched
from fleet_forecast.scale.peers_of_parts import FleetPeerTable, Reading


@dataclass(frozen=True)
class ModelFiles:
    """A model directory as sent to workers, which may have no access to the folder. files: content by name."""

    model_id: str
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, model_dir: Path) -> ModelFiles:
        """Read a model directory. Raises OSError."""
        resolved = model_dir.resolve()
        return cls(resolved.name, {path.name: path.read_bytes() for path in resolved.iterdir() if path.is_file()})

    def load(self, folder: Path, threads: int | None) -> Engine:
        """Write the directory into a folder and load it. Raises ModelError and OSError."""
        model_dir = folder / self.model_id
        model_dir.mkdir()
        for name, content in self.files.items():
            (model_dir / name).write_bytes(content)
        return load_for_fleet(model_dir, "cpu", threads)


@dataclass(frozen=True)
class PartsJob:
    """The work on each part.

    every_seconds, first_origin: distance and first of regular origins; None: each server's last measurement. output:
    address of the folder of forecasts.
    """

    model: ModelFiles
    reading: Reading
    output: str
    every_seconds: int | None = None
    first_origin: np.datetime64 | None = None


@dataclass(frozen=True)
class PartResult:
    """The result for a part. problem: why it has no forecasts, None if it has."""

    part: str
    rows: int = 0
    servers: int = 0
    forecasts: int = 0
    notices: tuple[str, ...] = ()
    problem: str | None = None


@dataclass
class PartForecaster:
    """Forecasts parts with one engine, and writes a file for each; a file that is there is replaced."""

    job: PartsJob
    peers: FleetPeerTable | None
    threads: int | None = 1
    _engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:  # the engine reads everything at the start
            self._engine = self.job.model.load(Path(folder), self.threads)

    def __call__(self, part: Part) -> PartResult:
        """Forecast the servers of a part. Bad data are a problem of the part; the output's errors are raised."""
        try:
            with fetched(part) as folder:
                data = read_metrics(folder, *self.job.reading)
            grid = grid_for(data.frame, self._engine.config, self.job.reading.rules)
            origins = list(self._origins(grid))
        except (ContractError, DataFileError, GridError, OriginError) as problem:
            return PartResult(part.name, problem=str(problem))
        notices = [
            *data.notices,
            *contradictions(self._engine.config),
            *input_notes(self._engine, data.frame, grid),
        ]
        with Folder(self.job.output).new(part.name) as file:
            tables = forecast_tables(self._engine, grid, self._peers_of(grid), origins)
            rows = write_tables(file, self._engine.config, tables)
        servers = len({origin.server for origin in origins})
        return PartResult(part.name, rows, servers, len(origins), tuple(notices))

    def _peers_of(self, grid: FleetGrid) -> Peers:
        if self.peers is None:
            table = PeerTable.build(grid.values[:0], ProfileMembers((), ()), grid.first_step)
            return Peers(table, np.zeros(len(grid.servers), dtype=bool))
        return Peers(self.peers.table, np.array([name in self.peers.members for name in grid.servers]))

    def _origins(self, grid: FleetGrid) -> Iterator[Origin]:
        """Origins of a part. Regular ones are those of the fleet that lie in the part's time."""
        every, first = self.job.every_seconds, self.job.first_origin
        if every is None or first is None:
            yield from last_origins(grid)
            return
        late = max(0, -(-int((grid.start - first) / np.timedelta64(1, "s")) // every))
        begin = first + np.timedelta64(late * every, "s")
        if grid.step_at(begin) < grid.steps:
            yield from regular_origins(grid, every, begin)
