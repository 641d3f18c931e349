"""The training data and the job that the flags of tft_trainer.py define."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.contract.fleet.business_calendar import business_calendar
from fleet_forecast.contract.reading import CheckedMetrics, check_metrics
from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.inference.model_directory import TEMPORARY_PREFIX
from fleet_forecast.intervals.silences import EXCLUDE, Silence, excluded_cells, load_silences, stored_silences
from fleet_forecast.mapped_arrays import IN_MEMORY, ArraysInMemory, MappedArrays
from fleet_forecast.training.job import Job, choose_profiles, data_step_seconds, model_step_seconds, profiles_of
from fleet_forecast.training.ranks.group import (
    first_rank_of_machine,
    first_says,
    is_first_of_machine,
    rank_count,
    wait_for_ranks,
)
from fleet_forecast.training.split import Split, TrainingError, measured_metrics, split_fleet, step_time
from fleet_forecast.training.trainer import TrainerSettings
from fleet_forecast.usage import note
from server_profiles import has_own_rule


def read(arguments: argparse.Namespace, path: Path | None = None) -> CheckedMetrics:
    """The training data, checked against the contract. path: of the data, instead of --training-dir."""
    data = check_metrics(path or arguments.training_dir, input_timezone=arguments.input_timezone)
    for notice in data.notices:
        note(notice)
    missing = [name for name in METRIC_SPECS if name not in data.metrics]
    if missing:
        note(f"no {', '.join(missing)} in the data; forecasting {', '.join(data.metrics)}")
    return data


def prepare(data: CheckedMetrics, arguments: argparse.Namespace) -> Job:
    """The training job that data and flags define."""
    arrays = arrays_of(arguments)
    grid, spec = grid_and_windows(data, arguments, arrays)
    split = split_fleet(grid, spec, arguments.train_fraction, arguments.holdout_servers, arguments.seed)
    grid, spec = drop_unmeasured_metrics(grid, spec, split, arrays)
    return Job(
        grid=grid,
        spec=spec,
        split=split,
        profiles=profile_feature(data, grid, split, enabled=not arguments.no_profile),
        arrays=arrays,
        hidden_size=arguments.hidden_size,
        device=choose_device(arguments.device),
        settings=TrainerSettings(
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            max_seconds=arguments.max_minutes * 60 if arguments.max_minutes else float("inf"),
            seed=arguments.seed,
            steps=arguments.steps,
        ),
    )


def arrays_of(arguments: argparse.Namespace) -> ArraysInMemory:
    """Arrays for the data: in memory, or in files of --grid-folder, which several processes share."""
    if arguments.grid_folder is None and rank_count() == 1:
        return IN_MEMORY
    folder = arguments.grid_folder or arguments.models_dir
    name = f"{TEMPORARY_PREFIX}{first_says(os.getpid())}-{first_rank_of_machine()}"
    return MappedArrays(folder / name, is_first_of_machine(), wait_for_ranks)


def grid_and_windows(
    data: CheckedMetrics, arguments: argparse.Namespace, arrays: ArraysInMemory = IN_MEMORY
) -> tuple[FleetGrid, WindowSpec]:
    """The data on a regular grid, and the window lengths in steps."""
    data_step = data_step_seconds(data)
    step_seconds = model_step_seconds(data_step, arguments.step_seconds)
    if step_seconds != data_step:
        note(f"averaging samples every {data_step} s onto steps of {step_seconds} s")
    grid = FleetGrid.from_checked(data, step_seconds, arrays)
    if arguments.exclusions is not None:
        grid = without_exclusions(grid, load_silences(arguments.exclusions), arguments.exclusions, arrays)
    if arguments.from_history is not None:
        beside = arguments.from_history.with_name(f"{arguments.from_history.name}.silences.json")
        grid = without_exclusions(grid, daemon_silences(beside), beside, arrays)
    spec = WindowSpec(
        metrics=grid.metrics,
        step_seconds=step_seconds,
        calendar=calendar_of(data, arguments.timezone),
        context_steps=steps_of(arguments.context_hours, step_seconds, "--context-hours"),
        horizon_steps=steps_of(arguments.horizon_hours, step_seconds, "--horizon-hours"),
    )
    return grid, spec


def daemon_silences(path: Path) -> list[Silence]:
    """The silences that were added by the daemon's API. Raises TrainingError if its file cannot be read."""
    try:
        return list(stored_silences(path).values())
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); repair it, or remove it"
        ) from error


def without_exclusions(
    grid: FleetGrid, silences: Sequence[Silence], path: Path, arrays: ArraysInMemory = IN_MEMORY
) -> FleetGrid:
    """The grid without the measurements that silences of a file exclude: these count as not measured."""
    if not any(silence.kind == EXCLUDE for silence in silences):
        return grid
    seconds = grid.timestamps().astype(np.int64)
    excluded = excluded_cells(silences, grid.servers, grid.profiles, seconds)
    cells = zip(grid.values, excluded, strict=True)
    count = sum(int((of_server & ~np.isnan(values).all(axis=1)).sum()) for values, of_server in cells)
    note(f"{path}: measurements of {count:,} server-steps are excluded from training and scores")
    return grid.without(excluded, arrays)


def calendar_of(data: CheckedMetrics, timezone: str | None) -> BusinessCalendar:
    """The business calendar of the fleet file or of the data. Raises TrainingError if the flag's zone is unknown."""
    try:
        return business_calendar(timezone, data.metadata.business_calendar() if data.metadata else None)
    except ValueError as error:
        raise TrainingError(f"--timezone {timezone}: {error}") from error


def steps_of(hours: float, step_seconds: int, flag: str) -> int:
    """Raises TrainingError unless the hours are whole steps; a thousandth of a step is rounding."""
    steps = round(hours * 3600 / step_seconds)
    if steps < 1:
        raise TrainingError(f"{flag} {hours}: shorter than the data's step of {step_seconds} s; give a longer time")
    if abs(hours * 3600 / step_seconds - steps) > 1e-3:
        nearest = f"{steps * step_seconds / 3600:.9g} ({steps} steps)"
        raise TrainingError(f"{flag} {hours:g}: not a whole number of steps of {step_seconds} s; give {nearest}")
    return steps


def drop_unmeasured_metrics(
    grid: FleetGrid, spec: WindowSpec, split: Split, arrays: ArraysInMemory = IN_MEMORY
) -> tuple[FleetGrid, WindowSpec]:
    """Grid and window lengths without the metrics that no training server measured in the training period."""
    measured = measured_metrics(grid, split)
    if measured.all():
        return grid, spec
    dropped = ", ".join(name for name, kept in zip(grid.metrics, measured, strict=True) if not kept)
    note(f"no training server has {dropped} before {step_time(grid, split.train_end)}: not forecast")
    grid = grid.with_metrics(measured, arrays)
    return grid, replace(spec, metrics=grid.metrics)


def profile_feature(data: CheckedMetrics, grid: FleetGrid, split: Split, enabled: bool) -> tuple[str, ...]:
    """The profiles the network distinguishes, printed on stdout; empty: no profile feature.

    Names count as a profile column if rules of the fleet file match any: who wrote those knows what the names mean.
    """
    if any(has_own_rule(server, fleet_in_use().rules) for server in grid.servers):
        data = replace(data, has_profile_column=True)
    profiles, obstacle = choose_profiles(data, grid, split) if enabled else ((), "--no-profile was given")
    if obstacle:
        print(f"[TRANSFER] Profile feature not enabled: {obstacle}")
        return ()
    print("[TRANSFER] Profile feature enabled - model will learn per-profile patterns")
    print(f"[TRANSFER] Profiles detected: {list(profiles)}")
    print("[TRANSFER] Model configured with profile-based transfer learning")
    print("[TRANSFER] New servers will predict based on their profile patterns", flush=True)
    if untrained := sorted(set(profiles_of(grid, split.unseen_servers)) - set(profiles)):
        note(
            f"no training server has profile {', '.join(untrained)}: held-out servers with it are forecast with an "
            "unknown profile"
        )
    return profiles


def choose_device(requested: str) -> torch.device:
    """Raises TrainingError if a GPU is requested and there is none."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch finds no GPU on this machine; use --device cpu or auto")
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")
