"""Forecasts of a file: tft_inference.py --input PATH --output PATH."""

from __future__ import annotations

import argparse
import json
import re
import time

import numpy as np

from fleet_forecast.commands.file_input import load_input
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference.batch import (
    Origin,
    history_notes,
    last_origins,
    regular_origins,
    write_forecasts,
)
from fleet_forecast.inference.model_directory import is_starter
from fleet_forecast.serving.settings import Settings
from fleet_forecast.usage import UsageError, note, time_of
from server_profiles import ProfileRules

_UNIT_SECONDS = {"m": 60, "h": 3_600, "d": 86_400}  # of --origins every:8h


def forecast_file(arguments: argparse.Namespace, settings: Settings, rules: ProfileRules) -> None:
    """Forecast a file from each origin, write the forecasts, print a summary as JSON."""
    started = time.perf_counter()
    _check_output(arguments)
    every_seconds = distance_of_origins(arguments.origins)
    first_origin = first_origin_of(arguments.first_origin, every_seconds)
    engine, grid = load_input(arguments.input, settings, rules)
    origins = choose_origins(grid, every_seconds, first_origin)
    rows = write_forecasts(arguments.output, engine, grid, origins)
    summary = {
        "output": str(arguments.output),
        "model": engine.model_id,
        "starter": is_starter(engine.model_id),
        "rows": rows,
        "servers": len({origin.server for origin in origins}),
        "origins": len({origin.step for origin in origins}),
        "seconds": round(time.perf_counter() - started, 3),
    }
    print(json.dumps(summary))


def choose_origins(grid: FleetGrid, every_seconds: int | None, first_origin: np.datetime64 | None) -> list[Origin]:
    """Regular origins, or without a distance each server's last one."""
    if every_seconds is not None:
        return regular_origins(grid, every_seconds, first_origin)
    for text in history_notes(grid):
        note(text)
    return last_origins(grid)


def _check_output(arguments: argparse.Namespace) -> None:
    for flag in ("input", "output"):
        if getattr(arguments, flag) is None:
            raise UsageError(f"--{flag} is missing; a batch needs --input and --output, a daemon --daemon")
    output = arguments.output
    if not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: its folder does not exist; create it")
    if output.is_dir():
        raise UsageError(f"--output {output}: is a folder; name a file, such as {output / 'forecasts.parquet'}")
    if output.suffix not in ("", ".parquet", ".pq"):
        raise UsageError(f"--output {output}: the output is parquet; name it {output.stem}.parquet")


def distance_of_origins(text: str) -> int | None:
    """Seconds between origins of `every:8h`, None for `last`."""
    if text == "last":
        return None
    match = re.fullmatch(r"every:(\d{1,6})([mhd])", text)
    if match is None or int(match[1]) == 0:
        raise UsageError(f"--origins {text!r} is unknown; use last, or every:8h (units: m, h, d)")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def first_origin_of(text: str | None, every_seconds: int | None) -> np.datetime64 | None:
    """The time of --from in UTC."""
    if text is None:
        return None
    if every_seconds is None:
        raise UsageError("--from: the first of several origins; use it with --origins every:8h")
    return np.datetime64(int(time_of(text, "from")), "s")
