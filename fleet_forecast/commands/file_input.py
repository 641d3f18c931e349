"""The input file of tft_inference.py on the model's grid, and the model; notes about the input go to stderr."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fleet_forecast.contract.reading import read_metrics
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference.batch import grid_for, input_notes
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import check_served, contradictions, load_for_fleet
from fleet_forecast.inference.model_directory import STARTER_NOTICE, is_starter, present_model
from fleet_forecast.serving.settings import Settings
from fleet_forecast.usage import note
from server_profiles import ProfileRules


def load_input(path: Path, settings: Settings, rules: ProfileRules) -> tuple[Engine, FleetGrid]:
    """The model, and the input on the model's grid; prints notes about the input."""
    frame = read_rows(path, settings, rules)
    engine = load_engine(settings)
    return engine, on_model_grid(frame, engine, rules)


def load_engine(settings: Settings) -> Engine:
    """The model of the settings, or the starter model while there is none; prints a note about the latter."""
    model_dir = present_model(settings.model, settings.model_is_chosen)
    engine = load_for_fleet(model_dir, settings.device, settings.threads or None)
    check_served(engine.config, model_dir)
    if is_starter(engine.model_id):
        note(STARTER_NOTICE)
    return engine


def read_rows(path: Path, settings: Settings, rules: ProfileRules) -> pd.DataFrame:
    """The rows of the input; prints notes about them."""
    data = read_metrics(path, rules, settings.input_timezone)
    for notice in data.notices:
        note(notice)
    return data.frame


def on_model_grid(frame: pd.DataFrame, engine: Engine, rules: ProfileRules) -> FleetGrid:
    """Rows on the model's grid; prints notes on metrics and profiles that the model does not have."""
    for text in contradictions(engine.config):
        note(text)
    grid = grid_for(frame, engine.config, rules)
    for text in input_notes(engine, frame, grid):
        note(text)
    return grid
