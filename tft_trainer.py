"""Train a Temporal Fusion Transformer on a fleet's metrics, judge it on servers and days it never saw, publish it.

    python tft_trainer.py --training-dir ./training/                          # the default job
    python tft_trainer.py --training-dir ./training/ --epochs 1 --max-minutes 2   # a quick look
    python tft_trainer.py --training-dir FLEET.parquet --holdout-servers ppdb003,ppweb007
    python tft_trainer.py --training-dir ./training/ --resume                 # go on with an interrupted run

Reads what metrics_generator.py writes (DATA_CONTRACT.md), or any file in that form. Progress goes to stderr; tables
and, as the last line, one JSON object go to stdout. Ctrl-C ends the training and publishes the best model so far, a
second one aborts. Exit code 0: published, 1: failed, 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save

from data_contract import CONTRACT_VERSION, METRIC_SPECS, CheckedMetrics, ContractError, DataFileError, check_metrics
from fleet_forecast.contract.calendar import business_time
from fleet_forecast.contract.profile_rules import load_profile_rules
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.evaluation.backtest import MODEL
from fleet_forecast.evaluation.report import ModelReport, write_report
from fleet_forecast.evaluation.scores import AMOUNTS
from fleet_forecast.features.grid import FleetGrid, GridError, usual_step
from fleet_forecast.features.windows import DAY_SECONDS, WINDOWS_VERSION, WindowSpec
from fleet_forecast.inference.canary import write_canary
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import CONFIG_FILE, ModelError
from fleet_forecast.inference.model_directory import (
    CANARY_FILE,
    EXPLAIN_FILE,
    ONNX_FILE,
    TRAINING_INFO_FILE,
    WEIGHTS_FILE,
    new_model_directory,
    only_writer,
    promote,
)
from fleet_forecast.inference.torch_backend import torch_run
from fleet_forecast.network.model import ForecastModel, export_explanation, export_onnx
from fleet_forecast.training.ablation import beside, comparison_job, in_words, price, time_for_the_model
from fleet_forecast.training.checkpoint import Checkpoint, CheckpointError, fingerprint
from fleet_forecast.training.cpu_contention import free_processors, in_the_way
from fleet_forecast.training.job import Job
from fleet_forecast.training.split import Split, SplitError, split_fleet
from fleet_forecast.training.tensorboard_log import LogError, TensorBoardLog
from fleet_forecast.training.trainer import FitError, FitSettings, fit
from fleet_forecast.training.trainer_state import Fit, Keeper
from fleet_forecast.training.warm_start import earlier_model, start_from
from server_profiles import BUILT_IN_RULES

DEFAULT_TIMEZONE = "America/New_York"
SHORTEST_DEFAULT_STEP = 300  # seconds: a day of context in finer steps is more than a network should read
# The flags that decide how training goes; what follows from them and the data is compared as it is (open_checkpoint).
SETTINGS_OF_A_RUN = (
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


class TrainingError(ValueError):
    """The data cannot be trained on; the message names the field, the value and the remedy."""


EXPECTED_ERRORS = (
    TrainingError,
    ContractError,
    DataFileError,
    GridError,
    TomlFileError,
    SplitError,
    CheckpointError,
    FitError,
    LogError,
    ModelError,
    OSError,
)


def build_parser() -> argparse.ArgumentParser:
    """Flags; each may be written with hyphens or underscores."""
    parser = argparse.ArgumentParser(
        prog="tft_trainer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = _both_spellings(parser)
    add("--training-dir", type=Path, default=Path("./training/"), help="folder or file to train on (%(default)s)")
    add("--models-dir", type=Path, default=Path("./models"), help="where the model directory goes (%(default)s)")
    add("--profiles", type=Path, help="TOML file with your own host-name patterns and pinned servers")
    add("--epochs", type=_positive_int, default=20, help="visits of every server-hour, at most (%(default)s)")
    add(
        "--max-minutes",
        type=_positive_float,
        help="stop training after this many minutes, its checks and the comparison included; reading before it and "
        "the final evaluation come on top",
    )
    add("--batch-size", type=_positive_int, default=64, help="windows per step (%(default)s)")
    add("--learning-rate", type=_positive_float, default=3e-3, help="peak learning rate (%(default)s)")
    add("--hidden-size", type=_hidden_size, default=32, help="width of the network, a multiple of 4 (%(default)s)")
    add("--context-hours", type=_positive_float, default=24.0, help="history the encoder reads (%(default)s)")
    add("--horizon-hours", type=_positive_float, default=8.0, help="how far ahead to forecast (%(default)s)")
    add("--train-fraction", type=_fraction, default=0.7, help="earlier share of time to train on (%(default)s)")
    add(
        "--holdout-servers",
        default="0.1",
        help="share of each profile's servers, or comma-separated names, kept out of training (%(default)s)",
    )
    add(
        "--step-seconds",
        type=_positive_int,
        help=f"step of the model; finer data are averaged onto it (the data's own, at least {SHORTEST_DEFAULT_STEP})",
    )
    add("--timezone", help=f"business time zone, if the data names none ({DEFAULT_TIMEZONE})")
    add("--seed", type=_seed, default=42, help="of weights, windows and held-out servers (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (%(default)s)")
    add("--no-profile", action="store_true", help="train without the profile feature")
    add(
        "--no-comparison",
        action="store_true",
        help="do not train a second model, without profiles and with a quarter of the steps, to show what they bring",
    )
    add("--resume", action="store_true", help="go on with the interrupted run in --models-dir, same data and flags")
    add("--warm-start", type=Path, metavar="DIR", help="start from this model's weights; no comparison then")
    add("--tensorboard", type=Path, metavar="DIR", help="write the course of the training there for TensorBoard")
    add("--no-promote", action="store_true", help="leave models/current as it is")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read, train, evaluate, publish."""
    arguments = build_parser().parse_args(argv)
    try:
        with only_writer(arguments.models_dir):  # found unusable before hours of training, not after
            data = read(arguments)
            grid, spec = lay_out(data, arguments)
            split = split_fleet(grid, spec, arguments.train_fraction, arguments.holdout_servers, arguments.seed)
            grid, spec = learnable(grid, spec, split)
            profiles = choose_profiles(data, grid, split, arguments)
            job = plan(grid, spec, split, profiles, arguments)
            checkpoint = open_checkpoint(job, arguments)
            training = train(job, checkpoint, arguments)
            comparison = train_comparison(job, training, checkpoint, arguments)
            scores, cold_start = evaluate(job, training, comparison)
            model_dir = publish(job, training, comparison, scores, cold_start, arguments)
            checkpoint.remove()
    except KeyboardInterrupt:
        print("error: aborted; nothing was published; --resume goes on with what was saved", file=sys.stderr)
        return 1
    except EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_tables(scores, cold_start)
    if comparison:
        print(in_words(training, comparison, cold_start), end="\n\n")
    print(json.dumps({"model_dir": str(model_dir), **outcome(training, comparison, scores)}))
    return 0


# --- read -----------------------------------------------------------------------------------------------------------


def read(arguments: argparse.Namespace) -> CheckedMetrics:
    """The training data, checked against the contract."""
    rules = load_profile_rules(arguments.profiles) if arguments.profiles else BUILT_IN_RULES
    data = check_metrics(arguments.training_dir, rules)
    for notice in data.notices:
        print(f"note: {notice}", file=sys.stderr)
    missing = [name for name in METRIC_SPECS if name not in data.metrics]
    if missing:
        print(f"note: no {', '.join(missing)} in the data; forecasting {', '.join(data.metrics)}", file=sys.stderr)
    return data


def lay_out(data: CheckedMetrics, arguments: argparse.Namespace) -> tuple[FleetGrid, WindowSpec]:
    """The data on its regular grid, and the window lengths in steps."""
    step_seconds = choose_step(data, arguments)
    timezone = arguments.timezone or (data.metadata.timezone if data.metadata else DEFAULT_TIMEZONE)
    check_timezone(timezone)
    grid = FleetGrid.from_checked(data, step_seconds)
    spec = WindowSpec(
        metrics=grid.metrics,
        step_seconds=step_seconds,
        timezone=timezone,
        context_steps=_steps(arguments.context_hours, step_seconds, "--context-hours"),
        horizon_steps=_steps(arguments.horizon_hours, step_seconds, "--horizon-hours"),
    )
    return grid, spec


def learnable(grid: FleetGrid, spec: WindowSpec, split: Split) -> tuple[FleetGrid, WindowSpec]:
    """Without the metrics that no server to train on has measured in the days to train on, which it says.

    Raises TrainingError if there is none left, or nothing to judge the model on.
    """
    learned = ~np.isnan(grid.values[:, : split.fit_end]).all(axis=1)[split.seen].all(axis=0)
    days = f"before {grid.timestamps()[split.fit_end]}Z"
    if not learned.any():
        raise TrainingError(f"values: no server to train on has a measurement {days}; provide more data")
    if np.isnan(grid.values[:, split.train_end :]).all():
        raise TrainingError(
            f"values: nothing was measured from {grid.timestamps()[split.train_end]}Z on, in the later days that judge "
            "the model; provide more data, or a larger --train-fraction"
        )
    if learned.all():
        return grid, spec
    dropped = ", ".join(name for name, kept in zip(grid.metrics, learned, strict=True) if not kept)
    print(f"note: no server to train on has {dropped} {days}: not forecast", file=sys.stderr)
    metrics = tuple(name for name, kept in zip(grid.metrics, learned, strict=True) if kept)
    return replace(grid, metrics=metrics, values=grid.values[..., learned]), replace(spec, metrics=metrics)


def choose_step(data: CheckedMetrics, arguments: argparse.Namespace) -> int:
    """Seconds per step of the model: the flag's, else the data's own but not finer than SHORTEST_DEFAULT_STEP.

    The data's own is the divisor of a day that is nearest to the usual distance of its rows.
    """
    usual = data.metadata.step_seconds if data.metadata else usual_step(data.distances)
    if usual > DAY_SECONDS:
        raise TrainingError(f"timestamp: rows are {usual} s apart; provide each server's at least once a day")
    divisors = [seconds for seconds in range(1, DAY_SECONDS + 1) if not DAY_SECONDS % seconds]
    of_data = min(divisors, key=lambda seconds: abs(seconds - usual))
    step_seconds: int = arguments.step_seconds or max(of_data, SHORTEST_DEFAULT_STEP)
    if step_seconds < of_data or step_seconds not in divisors:
        fitting = [seconds for seconds in divisors if seconds >= max(of_data, SHORTEST_DEFAULT_STEP)]
        raise TrainingError(
            f"--step-seconds {step_seconds}: must divide a day and not be finer than the data's {of_data} s; "
            f"choose one such as {fitting[0]}"
        )
    if step_seconds != of_data:
        print(f"note: averaging samples every {of_data} s onto steps of {step_seconds} s", file=sys.stderr)
    return step_seconds


def check_timezone(timezone: str) -> None:
    """Raises TrainingError if the zone is unknown."""
    try:
        business_time(np.zeros(1, dtype="datetime64[s]"), timezone)
    except ValueError as error:
        raise TrainingError(f"--timezone {timezone}: {error}") from error


def _steps(hours: float, step_seconds: int, flag: str) -> int:
    steps = round(hours * 3600 / step_seconds)
    if steps < 1:
        raise TrainingError(f"{flag} {hours}: shorter than the data's step of {step_seconds} s; give a longer time")
    return steps


def choose_profiles(
    data: CheckedMetrics, grid: FleetGrid, split: Split, arguments: argparse.Namespace
) -> tuple[str, ...]:
    """The profiles the network will know; says what that means for new servers. Empty: no profile feature."""
    detected = tuple(sorted({profile for row in split.seen if (profile := grid.profiles[row]) is not None}))
    if arguments.no_profile:
        print("[TRANSFER] Profile feature not enabled: --no-profile was given")
        return ()
    if not data.has_profile_column:
        print(
            "[TRANSFER] Profile feature not enabled: the data has no profile column, only names to guess from. "
            "Add a profile column (see DATA_CONTRACT.md) so that new servers can profit from their kind"
        )
        return ()
    if len(detected) < 2:
        print(
            f"[TRANSFER] Profile feature not enabled: all training servers have the profile {detected[0]!r}; "
            "nothing to tell profiles apart by. Train on servers of several profiles"
        )
        return ()
    print("[TRANSFER] Profile feature enabled - model will learn per-profile patterns")
    print(f"[TRANSFER] Profiles detected: {list(detected)}")
    print("[TRANSFER] Model configured with profile-based transfer learning")
    print("[TRANSFER] New servers will predict based on their profile patterns", flush=True)
    held_out = {profile for row in split.unseen if (profile := grid.profiles[row]) is not None}
    if strange := sorted(held_out - set(detected)):
        print(
            f"note: no server to train on has profile {', '.join(strange)}: the held-out ones are forecast as of "
            "unknown profile",
            file=sys.stderr,
        )
    return detected


# --- train ----------------------------------------------------------------------------------------------------------


def plan(
    grid: FleetGrid, spec: WindowSpec, split: Split, profiles: tuple[str, ...], arguments: argparse.Namespace
) -> Job:
    """The job as the flags say."""
    settings = FitSettings(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        max_seconds=arguments.max_minutes * 60 if arguments.max_minutes else float("inf"),
        seed=arguments.seed,
    )
    return Job(grid, spec, split, profiles, arguments.hidden_size, _device(arguments.device), settings)


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch finds no GPU on this machine; use --device cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def say_what_is_in_the_way(threads: int) -> None:
    """Advise fewer threads on a machine that is busy already; more than one wait for each other."""
    told = in_the_way(threads, free_processors()) if threads > 1 else None
    if told:
        print(f"note: {told}", file=sys.stderr)


def open_checkpoint(job: Job, arguments: argparse.Namespace) -> Checkpoint:
    """Where the run is saved while it is unfinished: the interrupted one's with --resume, else a new one."""
    identity = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in SETTINGS_OF_A_RUN}
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
        print(f"note: going on with the interrupted run in {checkpoint.path}", file=sys.stderr)
        return checkpoint
    checkpoint = Checkpoint.new(arguments.models_dir, identity)
    if checkpoint.path.exists():
        print(
            f"note: {checkpoint.path} holds an interrupted run; starting afresh, which overwrites it within a minute "
            "(--resume goes on with it instead)",
            file=sys.stderr,
        )
    return checkpoint


def train(job: Job, checkpoint: Checkpoint, arguments: argparse.Namespace) -> Fit:
    """Fit the network on the training part, from fresh or earlier weights, or from where it was interrupted."""
    if job.device.type == "cpu":
        say_what_is_in_the_way(torch.get_num_threads())
    model = job.fresh_model()
    if arguments.warm_start:
        earlier = earlier_model(arguments.warm_start, job.spec, job.profiles, job.hidden_size)
        say_what_profiles_become(earlier.profiles, job.profiles)
        start_from(model.network, job.profiles, arguments.warm_start, earlier)
    if wants_comparison(job, arguments):
        job = replace(job, settings=replace(job.settings, max_seconds=time_for_the_model(job.settings.max_seconds)))
    return fit_part("training", job, model, checkpoint, arguments)


def say_what_profiles_become(earlier: tuple[str, ...], profiles: tuple[str, ...]) -> None:
    """Profiles that only one of the two models knows, to stderr."""
    if new := sorted(set(profiles) - set(earlier)):
        print(f"note: profiles new to the earlier model start as the unknown one: {', '.join(new)}", file=sys.stderr)
    if gone := sorted(set(earlier) - set(profiles)):
        print(f"note: profiles without a training server are forgotten: {', '.join(gone)}", file=sys.stderr)


def fit_part(part: str, job: Job, model: ForecastModel, checkpoint: Checkpoint, arguments: argparse.Namespace) -> Fit:
    """Fit one of the run's two models, saved as `part` of the checkpoint and logged by that name."""
    log = TensorBoardLog(arguments.tensorboard / part) if arguments.tensorboard else None
    try:
        return fit(model, job.source, job.split, job.settings, Keeper(part, checkpoint), log)
    finally:
        if log:
            log.close()


def wants_comparison(job: Job, arguments: argparse.Namespace) -> bool:
    """Is there something to compare: a profile feature, servers to show its worth on, and an equal start?"""
    wanted = not arguments.no_comparison and not arguments.warm_start
    return wanted and bool(job.profiles) and len(job.split.unseen) > 0


def train_comparison(job: Job, training: Fit, checkpoint: Checkpoint, arguments: argparse.Namespace) -> Fit | None:
    """The same without the profile feature and with fewer steps (comparison.py), None if there is none.

    It costs the model nothing: that one is saved already, and is published whatever happens here.
    """
    if not wants_comparison(job, arguments):
        return None
    if training.stopped_by == "ctrl-c":
        print("note: stopped by Ctrl-C, so no comparison without profiles is trained", file=sys.stderr)
        return None
    job = comparison_job(job, training, job.settings.max_seconds)
    try:
        comparison = fit_part("comparison", job, job.fresh_model(), checkpoint, arguments)
    except Exception as error:
        print(f"note: the comparison without profiles failed ({error}); the model is not affected", file=sys.stderr)
        return None
    if comparison.stopped_by == "ctrl-c":
        print("note: the comparison without profiles was stopped by Ctrl-C and is left out", file=sys.stderr)
        return None
    return comparison


# --- evaluate -------------------------------------------------------------------------------------------------------


def evaluate(job: Job, training: Fit, comparison: Fit | None) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Scores on the later days, servers seen and unseen apart, with baselines; and the cold-start table (unseen)."""
    cold_start = job.cold_start(training.model)
    if comparison:
        cold_start = beside(cold_start, job.without_profiles().cold_start(comparison.model))
    return job.scores(training.model), cold_start


def print_tables(scores: dict[str, pd.DataFrame], cold_start: pd.DataFrame) -> None:
    """The tables people read, to stdout."""
    for name, table in scores.items():
        print(f"\nLater days, {name} servers (mean over metrics; WQL, MASE, WAPE: smaller is better)")
        print(_rounded(table[table["metric"] == "mean"].drop(columns=["metric", *AMOUNTS])))
        print(f"\nThe model on {name} servers, by metric (calibrated: the bands cover 80 and 96 % of what happened)")
        by_metric = table[(table["method"] == MODEL) & (table["metric"] != "mean")]
        print(_rounded(by_metric[["metric", "wql", "accuracy", "coverage_80", "coverage_96"]]))
    if len(cold_start):
        print("\nNew servers: accuracy and WQL by length of history (mean over metrics)")
        print(_rounded(cold_start))
    print()


def _rounded(table: pd.DataFrame) -> str:
    return table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.3f}")


# --- publish --------------------------------------------------------------------------------------------------------


def free_model_id(models_dir: Path) -> str:
    """tft_model_<UTC time>, with a number behind it if two models are made within a second."""
    name = datetime.now(UTC).strftime("tft_model_%Y%m%d_%H%M%S")
    taken = sum(1 for path in models_dir.glob(f"{name}*"))
    return f"{name}_{taken + 1}" if taken else name


def publish(
    job: Job,
    training: Fit,
    comparison: Fit | None,
    scores: dict[str, pd.DataFrame],
    cold_start: pd.DataFrame,
    arguments: argparse.Namespace,
) -> Path:
    """Write the model directory in one atomic step, check that it loads, and make it the current one."""
    model = training.model.to("cpu").eval()
    models_dir: Path = arguments.models_dir
    config = job.config(free_model_id(models_dir))
    info = training_info(job, training, comparison, scores, arguments)
    with new_model_directory(models_dir, config.model_id) as directory:
        # Cloned, as the stock class holds some weights under two names and safetensors stores no shared memory.
        weights_by_name = {name: value.clone() for name, value in model.network.state_dict().items()}
        (directory / WEIGHTS_FILE).write_bytes(save(weights_by_name))  # save_file would keep others from reading it
        example = job.source.batch(
            np.zeros(2, np.int64),
            np.full(2, config.context_steps),
            config.context_steps,
            np.full(2, config.history_steps),
            np.zeros(2, dtype=bool),
        )
        export_onnx(model, example.windows, directory / ONNX_FILE)
        export_explanation(model, example.windows, directory / EXPLAIN_FILE)
        (directory / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        (directory / TRAINING_INFO_FILE).write_text(json.dumps(info, indent=2), encoding="utf-8")
        write_canary(directory / CANARY_FILE, config, Engine(config, torch_run(model)).forecast)
        for name, table in scores.items():
            table.to_parquet(directory / f"scores_{name}.parquet", index=False)
        if len(cold_start):
            cold_start.to_parquet(directory / "cold_start.parquet", index=False)
        weights = job.mean_weights(model)
        weights.variables.to_parquet(directory / "variable_weights.parquet", index=False)
        weights.attention.to_parquet(directory / "attention.parquet", index=False)
        write_report(directory, ModelReport(config.model_id, info, scores, cold_start, weights))
    Engine.load(models_dir / config.model_id, device="cpu")  # ONNX Runtime reproduces torch's canary, or ModelError
    if not arguments.no_promote:
        promote(models_dir, config.model_id)
    print(f"published {models_dir / config.model_id}", file=sys.stderr)
    return models_dir / config.model_id


def training_info(
    job: Job,
    training: Fit,
    comparison: Fit | None,
    scores: dict[str, pd.DataFrame],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """training_info.json: data, settings, course and scores of the run."""
    times = job.grid.timestamps()
    return {
        "data": str(arguments.training_dir),
        "servers": len(job.grid.servers),
        "holdout_servers": [job.grid.servers[row] for row in job.split.unseen],
        "watched_servers": [job.grid.servers[row] for row in job.split.watched],
        "first_timestamp": f"{times[0]}Z",
        "train_end": f"{times[job.split.train_end]}Z",
        "last_timestamp": f"{times[-1]}Z",
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()},
        "course": training.course,
        **outcome(training, comparison, scores),
    }


def outcome(training: Fit, comparison: Fit | None, scores: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """How the run went and how its model scored; comparison is null if none was trained."""
    return {
        **price(training),
        "epochs": round(training.epochs, 3),
        "stopped_by": training.stopped_by,
        "first_validation_loss": training.first_validation_loss,
        "best_validation_loss": training.best_validation_loss,
        "comparison": price(comparison) if comparison else None,
        "scores": scores_as_json(scores),
    }


def scores_as_json(scores: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """{seen|unseen: {method: {metric: {wql, mase, ...}}}}; a score that does not exist is null."""
    return {
        name: {
            str(method): {
                str(row["metric"]): {
                    key: None if not np.isfinite(row[key]) else round(float(row[key]), 5)
                    for key in table.columns
                    if key not in ("method", "metric")
                }
                for _, row in part.iterrows()
            }
            for method, part in table.groupby("method", sort=False)
        }
        for name, table in scores.items()
    }


# --- flags ----------------------------------------------------------------------------------------------------------


def _both_spellings(parser: argparse.ArgumentParser) -> Any:
    """add_argument that accepts --two-words and --two_words."""

    def add(flag: str, **options: Any) -> None:
        parser.add_argument(*dict.fromkeys((flag, "--" + flag[2:].replace("-", "_"))), **options)

    return add


def _number(text: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None


def _positive_int(text: str) -> int:
    value: int = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def _seed(text: str) -> int:
    value: int = _number(text, int)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0 and below 2^63")
    return value


def _positive_float(text: str) -> float:
    value: float = _number(text, float)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def _fraction(text: str) -> float:
    value: float = _number(text, float)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and below 1")
    return value


def _hidden_size(text: str) -> int:
    value = _positive_int(text)
    if value % 4:
        raise argparse.ArgumentTypeError(f"{text}: must be a multiple of 4, the number of attention heads")
    return value


if __name__ == "__main__":
    sys.exit(main())
