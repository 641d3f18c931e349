"""Train a Temporal Fusion Transformer on a fleet's metrics, evaluate it on unseen servers, publish it.

    python tft_trainer.py --training-dir ./training/                          # the default job
    python tft_trainer.py --training-dir ./training/ --epochs 1 --max-minutes 2   # a quick look
    python tft_trainer.py --training-dir FLEET.parquet --holdout-servers ppdb003,ppweb007
    python tft_trainer.py --training-dir ./training/ --resume                 # resume an interrupted run

Reads the output of metrics_generator.py, or any file in the format of DATA_CONTRACT.md. After the evaluation the model
is trained further on all servers and all days (the final fit), a risk model is trained beside it, and both are
published. Progress goes to stderr; tables and, as
the last line, one JSON object go to stdout. Ctrl-C ends the training and publishes the best model so far; during the
final fit it publishes the evaluated model. A second Ctrl-C aborts. Exit code 0: published, 1: failed, 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data_contract import CONTRACT_VERSION, METRIC_SPECS, CheckedMetrics, ContractError, DataFileError, check_metrics
from fleet_forecast.contract.calendar import business_time
from fleet_forecast.contract.times import add_timezone_flag
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.cpu_contention import contention_advice, contention_notes, free_processors
from fleet_forecast.evaluation.tables import Evaluation, as_text
from fleet_forecast.features.grid import FleetGrid, GridError
from fleet_forecast.features.windows import WINDOWS_VERSION, WindowSpec
from fleet_forecast.flags import add_flag, add_version, fraction, int_number, positive_float, positive_int
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import only_writer, promote
from fleet_forecast.inference.risk_model import RiskModel
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.intervals.silences import excluded_cells, load_silences
from fleet_forecast.network.model import ForecastModel
from fleet_forecast.script import run_script
from fleet_forecast.training.ablation import STEP_SHARE as ABLATION_STEP_SHARE
from fleet_forecast.training.ablation import ablation_job, cold_start_difference, join
from fleet_forecast.training.checkpoint import Checkpoint, Checkpointer, CheckpointError, fingerprint
from fleet_forecast.training.final_fit import STEP_SHARE as FINAL_STEP_SHARE
from fleet_forecast.training.final_fit import continued_model, final_data, final_settings
from fleet_forecast.training.job import (
    MIN_DEFAULT_STEP_SECONDS,
    Job,
    choose_profiles,
    data_step_seconds,
    model_step_seconds,
    profiles_of,
)
from fleet_forecast.training.progress import LogError, TensorBoardLog
from fleet_forecast.training.publish import RunResult, publish, run_summary
from fleet_forecast.training.risk.choose import KnownFleet, risk_model_of
from fleet_forecast.training.risk.fit import RiskSettings
from fleet_forecast.training.risk.labels import known_incidents
from fleet_forecast.training.split import Split, TrainingError, measured_metrics, select_metrics, split_fleet, step_time
from fleet_forecast.training.trainer import Trainer, TrainerSettings, TrainingData
from fleet_forecast.training.trainer_state import TrainerState, device_of
from fleet_forecast.training.warm_start import earlier_config, load_earlier_weights, profile_changes
from server_profiles import BUILT_IN_RULES

DEFAULT_TIMEZONE = "America/New_York"
# Flags that must be equal to resume a run. Values that depend on the data as well are compared directly.
IDENTITY_FLAGS = (
    "epochs",
    "max_minutes",
    "batch_size",
    "learning_rate",
    "hidden_size",
    "context_hours",
    "horizon_hours",
    "train_fraction",
    "holdout_servers",
    "seed",
)
EXPECTED_ERRORS = (
    TrainingError,
    ContractError,
    DataFileError,
    GridError,
    CheckpointError,
    LogError,
    ModelError,
    OSError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Read, train, evaluate, publish."""
    arguments = build_parser().parse_args(argv)
    try:
        with only_writer(arguments.models_dir):  # first, so that an unusable folder fails before hours of training
            data = read(arguments)
            job = prepare(data, arguments)
            incidents = known_incidents(data, job.grid.step_seconds, arguments.incidents, note)
            checkpoint = open_checkpoint(job, arguments)
            training = train(job, checkpoint, arguments)
            ablation = train_ablation(job, training, checkpoint, arguments)
            evaluation = evaluate(job, training, completed(ablation))
            final_fit = fit_finally(job, [training, ablation], checkpoint, arguments)
            risk = train_risk_model(job, incidents, arguments)
            result = RunResult(training, completed(ablation), evaluation, completed(final_fit), *risk)
            model_dir = publish(job, result, arguments.models_dir, vars(arguments))
            if not arguments.no_promote:
                promote(arguments.models_dir, model_dir.name)
            checkpoint.remove()
    except KeyboardInterrupt:
        print("error: aborted; nothing was published; --resume continues from the last checkpoint", file=sys.stderr)
        return 1
    except EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except TomlFileError as error:  # a flag's file, not the data
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: not enough memory ({error}); train on fewer servers or a shorter time", file=sys.stderr)
        return 1
    print(f"published {model_dir}", file=sys.stderr)
    print(f"\n{as_text(result.evaluation)}\n")
    if result.ablation:
        print(cold_start_difference(training, result.ablation, result.evaluation.cold_start), end="\n\n")
    print(json.dumps({"model_dir": str(model_dir), **run_summary(result)}))
    return 0


def note(text: str) -> None:
    """A line on stderr for the user, who need not act on it."""
    print(f"note: {text}", file=sys.stderr)


# --- read -----------------------------------------------------------------------------------------------------------


def read(arguments: argparse.Namespace) -> CheckedMetrics:
    """The training data, checked against the contract."""
    rules = load_profile_rules(arguments.profiles) if arguments.profiles else BUILT_IN_RULES
    data = check_metrics(arguments.training_dir, rules, arguments.input_timezone)
    for notice in data.notices:
        note(notice)
    missing = [name for name in METRIC_SPECS if name not in data.metrics]
    if missing:
        note(f"no {', '.join(missing)} in the data; forecasting {', '.join(data.metrics)}")
    return data


def prepare(data: CheckedMetrics, arguments: argparse.Namespace) -> Job:
    """The training job that data and flags define."""
    grid, spec = grid_and_windows(data, arguments)
    split = split_fleet(grid, spec, arguments.train_fraction, arguments.holdout_servers, arguments.seed)
    grid, spec = drop_unmeasured_metrics(grid, spec, split)
    return Job(
        grid=grid,
        spec=spec,
        split=split,
        profiles=profile_feature(data, grid, split, enabled=not arguments.no_profile),
        hidden_size=arguments.hidden_size,
        device=choose_device(arguments.device),
        settings=TrainerSettings(
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            max_seconds=arguments.max_minutes * 60 if arguments.max_minutes else float("inf"),
            seed=arguments.seed,
        ),
    )


def grid_and_windows(data: CheckedMetrics, arguments: argparse.Namespace) -> tuple[FleetGrid, WindowSpec]:
    """The data on a regular grid, and the window lengths in steps."""
    data_step = data_step_seconds(data)
    step_seconds = model_step_seconds(data_step, arguments.step_seconds)
    if step_seconds != data_step:
        note(f"averaging samples every {data_step} s onto steps of {step_seconds} s")
    timezone = arguments.timezone or (data.metadata.timezone if data.metadata else DEFAULT_TIMEZONE)
    check_timezone(timezone)
    grid = without_exclusions(FleetGrid.from_checked(data, step_seconds), arguments.exclusions)
    spec = WindowSpec(
        metrics=grid.metrics,
        step_seconds=step_seconds,
        timezone=timezone,
        context_steps=steps_of(arguments.context_hours, step_seconds, "--context-hours"),
        horizon_steps=steps_of(arguments.horizon_hours, step_seconds, "--horizon-hours"),
    )
    return grid, spec


def without_exclusions(grid: FleetGrid, path: Path | None) -> FleetGrid:
    """The grid without the measurements that the exclusions file names: they are as if they were not measured."""
    if path is None:
        return grid
    seconds = grid.timestamps().astype(np.int64)
    excluded = excluded_cells(load_silences(path), grid.servers, grid.profiles, seconds)
    count = int((excluded & ~np.isnan(grid.values).all(axis=2)).sum())
    note(f"{path}: measurements of {count:,} server-steps are excluded from training and scores")
    return grid.without(excluded)


def check_timezone(timezone: str) -> None:
    """Raises TrainingError if the zone is unknown."""
    try:
        business_time(np.zeros(1, dtype="datetime64[s]"), timezone)
    except ValueError as error:
        raise TrainingError(f"--timezone {timezone}: {error}") from error


def steps_of(hours: float, step_seconds: int, flag: str) -> int:
    """Raises TrainingError if the hours are less than half a step."""
    steps = round(hours * 3600 / step_seconds)
    if steps < 1:
        raise TrainingError(f"{flag} {hours}: shorter than the data's step of {step_seconds} s; give a longer time")
    return steps


def drop_unmeasured_metrics(grid: FleetGrid, spec: WindowSpec, split: Split) -> tuple[FleetGrid, WindowSpec]:
    """Grid and window lengths without the metrics that no training server measured in the training period."""
    measured = measured_metrics(grid, split)
    if measured.all():
        return grid, spec
    dropped = ", ".join(name for name, kept in zip(grid.metrics, measured, strict=True) if not kept)
    note(f"no training server has {dropped} before {step_time(grid, split.train_end)}: not forecast")
    return select_metrics(grid, spec, measured)


def profile_feature(data: CheckedMetrics, grid: FleetGrid, split: Split, enabled: bool) -> tuple[str, ...]:
    """The profiles the network distinguishes, printed on stdout; empty: no profile feature."""
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
            f"no training server has profile {', '.join(untrained)}: held-out servers of it are forecast as of "
            "unknown profile"
        )
    return profiles


def choose_device(requested: str) -> torch.device:
    """Raises TrainingError if a GPU is requested and there is none."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch finds no GPU on this machine; use --device cpu or auto")
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")


# --- train ----------------------------------------------------------------------------------------------------------


def open_checkpoint(job: Job, arguments: argparse.Namespace) -> Checkpoint:
    """The interrupted run's checkpoint with --resume, else a new one."""
    identity = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in IDENTITY_FLAGS}
    identity |= {
        "--warm-start": arguments.warm_start and arguments.warm_start.resolve().name,
        "device": str(job.device),
        "contract_version": CONTRACT_VERSION,
        "windows_version": WINDOWS_VERSION,
        "step_seconds": job.spec.step_seconds,
        "timezone": job.spec.timezone,
        "profiles": job.profiles,
        "sha256 of the data": fingerprint(job.grid),
    }
    if arguments.resume:
        checkpoint = Checkpoint.resume(arguments.models_dir, identity)
        note(f"resuming the interrupted run in {checkpoint.path}")
        return checkpoint
    checkpoint = Checkpoint.new(arguments.models_dir, identity)
    if checkpoint.path.exists():
        note(
            f"{checkpoint.path} holds an interrupted run; starting afresh, which overwrites it within a minute "
            "(--resume continues it instead)"
        )
    return checkpoint


def train(job: Job, checkpoint: Checkpoint, arguments: argparse.Namespace) -> TrainerState:
    """Train the model, from initial or from earlier weights, or from the checkpoint of an interrupted run."""
    if job.device.type == "cpu":
        note_cpu_contention(torch.get_num_threads())
    model = job.fresh_model()
    if arguments.warm_start:
        earlier = earlier_config(arguments.warm_start, job.spec, job.profiles, job.hidden_size)
        for change in profile_changes(earlier.profiles, job.profiles):
            note(change)
        load_earlier_weights(model.network, job.profiles, arguments.warm_start, earlier)
    settings = replace(job.settings, max_seconds=model_max_seconds(job, arguments))
    return fit(model, job.training_data, settings, Checkpointer("training", checkpoint), arguments.tensorboard)


def note_cpu_contention(threads: int) -> None:
    """Advise fewer threads on a busy machine."""
    advice = contention_advice(threads, free_processors()) if threads > 1 else None
    if advice:
        note(advice)


def model_max_seconds(job: Job, arguments: argparse.Namespace) -> float:
    """The model's part of --max-minutes, of which the ablation and the final fit have a share of its steps."""
    ablation = ABLATION_STEP_SHARE if trains_ablation(job, arguments) else 0
    return job.settings.max_seconds / (1 + ablation + final_fit_share(arguments))


def final_fit_share(arguments: argparse.Namespace) -> float:
    """Steps of the final fit, as a share of the model's."""
    return 0.0 if arguments.no_final_fit else FINAL_STEP_SHARE


def fit(
    model: ForecastModel,
    data: TrainingData,
    settings: TrainerSettings,
    checkpointer: Checkpointer,
    log_dir: Path | None,
) -> TrainerState:
    """Train one of the run's models; its part of the checkpoint is also the name of its log."""
    threads = torch.get_num_threads() if device_of(model).type == "cpu" else 1
    log = TensorBoardLog(log_dir / checkpointer.part) if log_dir else None
    try:
        with contention_notes(threads, note):
            return Trainer(model, data, settings, checkpointer, log).fit()
    finally:
        if log:
            log.close()


def trains_ablation(job: Job, arguments: argparse.Namespace) -> bool:
    """The ablation needs a profile feature, unseen servers, and the same initial weights as the model."""
    requested = not arguments.no_comparison and not arguments.warm_start
    return requested and bool(job.profiles) and len(job.split.unseen_servers) > 0


def train_ablation(
    job: Job, training: TrainerState, checkpoint: Checkpoint, arguments: argparse.Namespace
) -> TrainerState | None:
    """Train the model without profiles (training/ablation.py); None if it is not wanted or fails."""
    if not trains_ablation(job, arguments):
        return None
    if training.stopped_by == "ctrl-c":
        note("stopped by Ctrl-C, so no comparison without profiles is trained")
        return None
    reserved = final_fit_share(arguments) * model_max_seconds(job, arguments) if arguments.max_minutes else 0
    unprofiled = ablation_job(job, training, job.settings.max_seconds - reserved)
    return optional_fit(
        "the comparison without profiles",
        lambda: fit(
            unprofiled.fresh_model(),
            unprofiled.training_data,
            unprofiled.settings,
            Checkpointer("comparison", checkpoint),
            arguments.tensorboard,
        ),
    )


def fit_finally(
    job: Job, trained: Sequence[TrainerState | None], checkpoint: Checkpoint, arguments: argparse.Namespace
) -> TrainerState | None:
    """Train the model further on all servers and all days (training/final_fit.py); None if not wanted or if it fails.

    trained: the model, and its ablation if there is one.
    """
    training, earlier = trained[0], [state for state in trained if state]
    if arguments.no_final_fit or not training:
        return None
    if any(state.stopped_by == "ctrl-c" for state in earlier):
        note("stopped by Ctrl-C, so the model is published without the final fit on all servers and days")
        return None
    seconds_left = job.settings.max_seconds - sum(state.seconds for state in earlier)
    return optional_fit(
        "the final fit on all servers and days",
        lambda: fit(
            continued_model(job, training),
            final_data(job),
            final_settings(job, training, seconds_left),
            Checkpointer("final_fit", checkpoint),
            arguments.tensorboard,
        ),
    )


def optional_fit(name: str, run: Callable[[], TrainerState]) -> TrainerState | None:
    """A training whose failure does not affect the model, which is trained already; None if it fails."""
    try:
        state = run()
    except Exception as error:
        note(f"{name} failed ({error}); the model is published without it")
        return None
    if state.stopped_by == "ctrl-c":
        note(f"{name} was stopped by Ctrl-C; the model is published without it")
    return state


def train_risk_model(
    job: Job, incidents: Sequence[IncidentRecord], arguments: argparse.Namespace
) -> tuple[RiskModel | None, str]:
    """Train the risk model (training/risk); None, and the reason, if it is not wanted or fails.

    Its failure does not affect the model, which is trained already.
    """
    if arguments.no_risk_model:
        return None, "--no-risk-model"
    settings = RiskSettings(threads=torch.get_num_threads(), seed=arguments.seed % 2**31)
    try:
        return risk_model_of(KnownFleet(job.grid, incidents, job.spec.timezone), settings, note)
    except KeyboardInterrupt:
        note("the risk model was stopped by Ctrl-C; the model is published without it")
        return None, "stopped by Ctrl-C"
    except Exception as error:
        note(f"the risk model failed ({error}); the model is published without it")
        return None, f"failed: {error}"


def completed(state: TrainerState | None) -> TrainerState | None:
    """The state, unless it was interrupted."""
    return state if state and state.stopped_by != "ctrl-c" else None


def evaluate(job: Job, training: TrainerState, ablation: TrainerState | None) -> Evaluation:
    """Scores in the test period, with baselines and the ablation."""
    cold_start = job.cold_start_table(training.model)
    if ablation:
        cold_start = join(cold_start, job.without_profiles().cold_start_table(ablation.model))
    return Evaluation(job.test_evaluation(training.model), cold_start)


# --- flags ----------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Flags; each may be written with hyphens or underscores."""
    parser = argparse.ArgumentParser(
        prog="tft_trainer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = partial(add_flag, parser)
    add("--training-dir", type=Path, default=Path("./training/"), help="folder or file to train on (%(default)s)")
    add("--models-dir", type=Path, default=Path("./models"), help="folder for the model directory (%(default)s)")
    add("--profiles", type=Path, help="TOML file with additional host-name patterns and the profiles of single servers")
    _add_interval_flags(parser)
    add("--epochs", type=positive_int, default=20, help="maximum passes over all server-hours (%(default)s)")
    add(
        "--max-minutes",
        type=positive_float,
        help="time limit of the training, including its validations, the comparison and the final fit; reading the "
        "data and the evaluation are not included",
    )
    add("--batch-size", type=positive_int, default=64, help="windows per step (%(default)s)")
    add("--learning-rate", type=positive_float, default=3e-3, help="peak learning rate (%(default)s)")
    add("--hidden-size", type=_hidden_size, default=32, help="width of the network, a multiple of 4 (%(default)s)")
    add("--context-hours", type=positive_float, default=24.0, help="length of the encoder's history (%(default)s)")
    add("--horizon-hours", type=positive_float, default=8.0, help="length of the forecast (%(default)s)")
    add("--train-fraction", type=fraction, default=0.7, help="share of the time before the test period (%(default)s)")
    add(
        "--holdout-servers",
        default="0.1",
        help="unseen servers: share of each profile's servers, or comma-separated names (%(default)s)",
    )
    add(
        "--step-seconds",
        type=positive_int,
        help="step of the model; samples of finer data are averaged (the data's own step, at least "
        f"{MIN_DEFAULT_STEP_SECONDS})",
    )
    add_timezone_flag(parser)
    add("--timezone", help=f"business time zone (that of the data's metadata, otherwise {DEFAULT_TIMEZONE})")
    add("--seed", type=_seed, default=42, help="seed of weights, windows and unseen servers (%(default)s)")
    _add_run_flags(parser)
    add_version(parser)
    return parser


def _add_interval_flags(parser: argparse.ArgumentParser) -> None:
    add = partial(add_flag, parser)
    add(
        "--incidents",
        type=Path,
        metavar="FILE",
        help="CSV or parquet file of your incidents: server_name or pattern, start, end, type",
    )
    add(
        "--exclusions",
        type=Path,
        metavar="FILE",
        help="TOML file of silences; measurements of those of the kind exclude are not used, nor scored",
    )


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    add = partial(add_flag, parser)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (%(default)s)")
    add("--no-profile", action="store_true", help="train without the profile feature")
    add(
        "--no-comparison",
        action="store_true",
        help="do not train the second model, without profiles and with a quarter of the steps, that shows the benefit "
        "of the profile feature",
    )
    add(
        "--no-final-fit",
        action="store_true",
        help="publish the evaluated model, without training it further on all servers and all days",
    )
    add(
        "--no-risk-model",
        action="store_true",
        help="do not train the risk model, the probability of incidents (two to five minutes on one core)",
    )
    add("--resume", action="store_true", help="resume the interrupted run in --models-dir with the same data and flags")
    add("--warm-start", type=Path, metavar="DIR", help="start from this model's weights; no comparison is trained")
    add("--tensorboard", type=Path, metavar="DIR", help="write a TensorBoard log of the training to this folder")
    add("--no-promote", action="store_true", help="do not change models/current")


def _seed(text: str) -> int:
    value = int_number(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0 and below 2^63")
    return value


def _hidden_size(text: str) -> int:
    value = positive_int(text)
    if value % 4:
        raise argparse.ArgumentTypeError(f"{text}: must be a multiple of 4, the number of attention heads")
    return value


if __name__ == "__main__":
    run_script(main)
