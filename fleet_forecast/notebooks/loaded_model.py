"""A model directory as a Python object that forecasts DataFrames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from fleet_forecast.contract.checks import ContractError
from fleet_forecast.contract.definitions import BUILT_IN_FLEET, FleetDefinition, use_fleet
from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.contract.reading import check_frame
from fleet_forecast.contract.times import check_zone
from fleet_forecast.inference.batch import (
    OriginError,
    forecast_tables,
    grid_for,
    history_notes,
    input_notes,
    last_origins,
    regular_origins,
)
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import contradictions, load_for_fleet, served_metrics
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import STARTER_NOTICE, is_starter

_WORDS = (  # of messages for the scripts: flag -> argument
    ("--input-timezone", "input_timezone"),
    (", or --from", ""),
    ("choose another --from", "choose another distance"),
    ("--origins", "every_seconds"),
    ("--device ", "device "),
)


class Forecasts(NamedTuple):
    """table: one row per server, origin, step and metric, as in the file of tft_inference.py; columns q0.02 and so on.

    notices: what was not used of the frame, or not as it was.
    """

    table: pd.DataFrame
    notices: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model in memory. fleet: its profiles and metrics of their own."""

    engine: Engine
    fleet: FleetDefinition = BUILT_IN_FLEET

    def __repr__(self) -> str:
        """One line, as a notebook shows a value."""
        return f"<LoadedModel {self.engine.model_id}: {', '.join(self.metrics)}>"

    @property
    def metrics(self) -> Sequence[str]:
        """The metrics that are forecast: those of the model that the fleet defines as the model does."""
        with use_fleet(self.fleet):
            return served_metrics(self.engine.config)

    def forecast(
        self, frame: pd.DataFrame, every_seconds: int | None = None, input_timezone: str | None = None
    ) -> Forecasts:
        """Forecast the servers of a frame.

        frame: rows of the data contract: timestamp, server_name, metrics, and profile if it is known.
        every_seconds: distance of regular forecast origins; None: each server's last measurement.
        input_timezone: of times without a zone. Raises ContractError if the frame breaks the contract, OriginError if
        it holds no origin, GridError if its times are too far apart, ValueError naming an unknown time zone,
        TypeError if it is no frame.
        """
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"frame is a {type(frame).__name__}; give a pandas DataFrame")
        if input_timezone is not None:
            check_zone(input_timezone)
        with use_fleet(self.fleet), _naming_arguments():
            return self._forecast(frame, every_seconds, input_timezone)

    def _forecast(self, frame: pd.DataFrame, every_seconds: int | None, input_timezone: str | None) -> Forecasts:
        data = check_frame(frame, self.fleet.rules, input_timezone)
        grid = grid_for(data.frame, self.engine.config, self.fleet.rules)
        notices = [*data.notices, *contradictions(self.engine.config), *input_notes(self.engine, data.frame, grid)]
        if is_starter(self.engine.model_id):
            notices.append(STARTER_NOTICE)
        if every_seconds is None:
            origins = last_origins(grid)
            notices += history_notes(grid)
        else:
            origins = regular_origins(grid, every_seconds, None)
        table = pa.concat_tables(forecast_tables(self.engine, grid, grid.peers(), origins))
        return Forecasts(table.to_pandas(), tuple(notices))


@contextmanager
def _naming_arguments() -> Iterator[None]:
    """Errors within the block name the arguments of this module instead of the scripts' flags."""
    try:
        yield
    except (ContractError, ModelError, OriginError) as problem:
        text = str(problem)
        for flag, argument in _WORDS:
            text = text.replace(flag, argument)
        problem.args = (text,)
        raise


def load_model(
    path: str | Path, fleet: str | Path | None = None, device: str = "cpu", threads: int | None = None
) -> LoadedModel:
    """Load and check a model directory, such as models/current.

    fleet: fleet file; None: the built-in profiles and metrics. device: cpu, cuda or auto. threads: of one forecast;
    None: one per core. Raises ModelError, TomlFileError.
    """
    definition = BUILT_IN_FLEET if fleet is None else read_fleet(Path(fleet))
    with use_fleet(definition), _naming_arguments():
        return LoadedModel(load_for_fleet(Path(path), device, threads), definition)
