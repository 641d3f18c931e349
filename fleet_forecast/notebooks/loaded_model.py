"""A model directory as a Python object that forecasts DataFrames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from fleet_forecast.contract.reading import check_frame
from fleet_forecast.inference.batch import (
    forecast_tables,
    grid_for,
    history_notes,
    input_notes,
    last_origins,
    regular_origins,
)
from fleet_forecast.inference.engine import Engine
from server_profiles import BUILT_IN_RULES, ProfileRules


class Forecasts(NamedTuple):
    """table: one row per server, origin, step and metric, as in the file of tft_inference.py; columns q0.02 and so on.

    notices: what was not used of the frame, or not as it was.
    """

    table: pd.DataFrame
    notices: tuple[str, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. rules: the profile of servers that come without one."""

    engine: Engine
    rules: ProfileRules = BUILT_IN_RULES

    @property
    def metrics(self) -> Sequence[str]:
        """The metrics that are forecast."""
        return self.engine.config.targets

    def forecast(
        self, frame: pd.DataFrame, every_seconds: int | None = None, input_timezone: str | None = None
    ) -> Forecasts:
        """Forecast the servers of a frame.

        frame: rows of the data contract: timestamp, server_name, metrics, and profile if it is known.
        every_seconds: distance of regular forecast origins; None: each server's last measurement.
        input_timezone: of times without a zone. Raises ContractError if the frame breaks the contract, OriginError if
        it holds no origin, GridError if its times are too far apart.
        """
        data = check_frame(frame, self.rules, input_timezone)
        grid = grid_for(data.frame, self.engine.config, self.rules)
        notices = [*data.notices, *input_notes(self.engine, data.frame, grid)]
        if every_seconds is None:
            origins = last_origins(grid)
            notices += history_notes(grid)
        else:
            origins = regular_origins(grid, every_seconds, None)
        table = pa.concat_tables(forecast_tables(self.engine, grid, grid.peers(), origins))
        return Forecasts(table.to_pandas(), tuple(notices))


def load_model(
    path: str | Path, rules: ProfileRules = BUILT_IN_RULES, device: str = "cpu", threads: int | None = None
) -> LoadedModel:
    """Load and check a model directory, such as models/current.

    device: cpu, cuda or auto. threads: of one forecast; None: one per core. Raises ModelError.
    """
    return LoadedModel(Engine.load(Path(path), device=device, threads=threads), rules)
