"""Train a Temporal Fusion Transformer on a fleet's metrics, judge it on servers and days it never saw, publish it.

    python tft_trainer.py --training-dir ./training/                          # the default job
    python tft_trainer.py --training-dir ./training/ --epochs 1 --max-minutes 2   # a quick look
    python tft_trainer.py --training-dir FLEET.parquet --holdout-servers ppdb003,ppweb007

Reads what metrics_generator.py writes (DATA_CONTRACT.md), or any file in that form. Progress goes to stderr; tables
and, as the last line, one JSON object go to stdout. Exit code 0: published, 1: failed, 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from data_contract import CONTRACT_VERSION, METRIC_SPECS, ContractData, ContractError, DataFileError, read_metrics
from forecasting import evaluation
from forecasting.artifact import (
    CANARY_FILE,
    CONFIG_FILE,
    ONNX_FILE,
    TRAINING_INFO_FILE,
    WEIGHTS_FILE,
    ModelConfig,
    ModelError,
    new_model_directory,
    promote,
)
from forecasting.engine import Engine, write_canary
from forecasting.fitting import Fit, FitSettings, Split, fit
from forecasting.grid import FleetGrid, GridError, infer_step_seconds
from forecasting.model import (
    QUANTILES,
    ForecastModel,
    build_network,
    export_onnx,
    torch_run,
)
from forecasting.report import write_report
from forecasting.sampling import WindowSource
from forecasting.scaling import FleetScaling, fit_scaling
from forecasting.windows import DAY_SECONDS, WindowSpec
from server_profiles import BUILT_IN_RULES, ProfileFileError, business_time, load_profile_rules

DEFAULT_TIMEZONE = "America/New_York"
SHORTEST_DEFAULT_STEP = 300  # seconds: a day of context in finer steps is more than a network should read
VALIDATION_SHARE = 0.15  # the last part of the training period, never trained on
TEST_EVERY_HOURS = 8


class TrainingError(ValueError):
    """The data cannot be trained on; the message names the field, the value and the remedy."""


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
    add("--max-minutes", type=_positive_float, help="stop training after this many minutes")
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
    add("--seed", type=int, default=42, help="of weights, windows and held-out servers (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (%(default)s)")
    add("--no-profile", action="store_true", help="train without the profile feature, for comparison")
    add("--no-promote", action="store_true", help="leave models/current as it is")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read, train, evaluate, publish."""
    arguments = build_parser().parse_args(argv)
    try:
        torch.manual_seed(arguments.seed)
        arguments.models_dir.mkdir(parents=True, exist_ok=True)  # before hours of training, not after
        data = read(arguments)
        grid, spec = lay_out(data, arguments)
        split = split_fleet(grid, spec, arguments)
        profiles = choose_profiles(data, grid, split, arguments)
        scaling = fit_on_training_part(grid, spec, split, profiles)
        training = train(grid, spec, scaling, split, profiles, arguments)
        config = describe(spec, scaling, profiles, arguments)
        scores, cold_start = evaluate(training.model, config, grid, split)
        model_dir = publish(training, config, scores, cold_start, grid, split, arguments)
    except KeyboardInterrupt:
        print("error: aborted; nothing was published", file=sys.stderr)
        return 1
    except (TrainingError, ContractError, DataFileError, GridError, ProfileFileError, ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_tables(scores, cold_start)
    print(json.dumps(summary(model_dir, training, scores)))
    return 0


# --- read -----------------------------------------------------------------------------------------------------------


def read(arguments: argparse.Namespace) -> ContractData:
    """The training data, checked against the contract."""
    rules = load_profile_rules(arguments.profiles) if arguments.profiles else BUILT_IN_RULES
    data = read_metrics(arguments.training_dir, rules)
    for notice in data.notices:
        print(f"notice: {notice}", file=sys.stderr)
    missing = [name for name in METRIC_SPECS if name not in data.metrics]
    if missing:
        print(f"notice: no {', '.join(missing)} in the data; forecasting {', '.join(data.metrics)}", file=sys.stderr)
    return data


def lay_out(data: ContractData, arguments: argparse.Namespace) -> tuple[FleetGrid, WindowSpec]:
    """The data on its regular grid, and the window lengths in steps."""
    step_seconds = choose_step(data, arguments)
    timezone = arguments.timezone or (data.metadata.timezone if data.metadata else DEFAULT_TIMEZONE)
    check_timezone(timezone)
    grid = FleetGrid.from_frame(data.frame, data.metrics, step_seconds)
    spec = WindowSpec(
        metrics=grid.metrics,
        step_seconds=step_seconds,
        timezone=timezone,
        context_steps=_steps(arguments.context_hours, step_seconds, "--context-hours"),
        horizon_steps=_steps(arguments.horizon_hours, step_seconds, "--horizon-hours"),
    )
    return grid, spec


def choose_step(data: ContractData, arguments: argparse.Namespace) -> int:
    """Seconds per step of the model: the flag's, else the data's own but not finer than SHORTEST_DEFAULT_STEP."""
    of_data = data.metadata.step_seconds if data.metadata else infer_step_seconds(data.frame)
    step_seconds: int = arguments.step_seconds or max(of_data, SHORTEST_DEFAULT_STEP)
    if step_seconds < of_data or DAY_SECONDS % step_seconds:
        raise TrainingError(
            f"--step-seconds {step_seconds}: must divide a day and not be finer than the data's {of_data} s; "
            "choose one such as 300, 600 or 3600"
        )
    if step_seconds != of_data:
        print(f"notice: averaging samples every {of_data} s onto steps of {step_seconds} s", file=sys.stderr)
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


def split_fleet(grid: FleetGrid, spec: WindowSpec, arguments: argparse.Namespace) -> Split:
    """Hold out servers and the later days."""
    train_end = int(grid.steps * arguments.train_fraction)
    fit_end = int(train_end * (1 - VALIDATION_SHARE))
    window = spec.context_steps + spec.horizon_steps
    if fit_end < window or grid.steps - train_end < spec.horizon_steps:
        hours = window * grid.step_seconds / 3600 / (arguments.train_fraction * (1 - VALIDATION_SHARE))
        raise TrainingError(
            f"rows: {grid.steps} time steps are fewer than one window needs ({spec.context_steps} of context and "
            f"{spec.horizon_steps} of horizon within the training part); provide at least {hours:.0f} hours, or "
            "shorten --context-hours or --horizon-hours"
        )
    unseen = _holdout_rows(grid, arguments.holdout_servers, np.random.default_rng(arguments.seed))
    seen = np.setdiff1d(np.arange(len(grid.servers)), unseen)
    return Split(seen, unseen, fit_end, train_end)


def _holdout_rows(grid: FleetGrid, wanted: str, random: np.random.Generator) -> np.ndarray:
    """Rows of the held-out servers: named ones, or a share of each profile's (at least one of any that has three)."""
    try:
        share = float(wanted)
    except ValueError:
        return _named_rows(grid, wanted)
    if not 0 <= share < 1:
        raise TrainingError(f"--holdout-servers {wanted}: a share must be at least 0 and below 1")
    owner = np.array([profile or "" for profile in grid.profiles])
    rows = []
    for profile in np.unique(owner):
        of_profile = random.permutation(np.flatnonzero(owner == profile))
        least = 1 if share > 0 and len(of_profile) >= 3 else 0
        rows.append(of_profile[: max(least, round(share * len(of_profile)))])
    return np.sort(np.concatenate(rows))


def _named_rows(grid: FleetGrid, wanted: str) -> np.ndarray:
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in grid.servers]
    if unknown or not names:
        raise TrainingError(
            f"--holdout-servers {wanted}: no server named {', '.join(unknown) or '(nothing)'} in the data; "
            "give a share such as 0.1 or names as in server_name"
        )
    if len(set(names)) == len(grid.servers):
        raise TrainingError("--holdout-servers: every server is held out; leave some to train on")
    return np.array(sorted(grid.servers.index(name) for name in set(names)))


def choose_profiles(
    data: ContractData, grid: FleetGrid, split: Split, arguments: argparse.Namespace
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
    return detected


def fit_on_training_part(grid: FleetGrid, spec: WindowSpec, split: Split, profiles: tuple[str, ...]) -> FleetScaling:
    """Scaling statistics of training servers and days only; the fleet's alone where profiles play no role."""
    return fit_scaling(
        grid.values[split.seen, : split.train_end],
        grid.metrics,
        np.array([METRIC_SPECS[name].upper is not None for name in grid.metrics]),
        tuple(grid.profiles[row] if profiles else None for row in split.seen),
        spec.context_steps,
    )


# --- train ----------------------------------------------------------------------------------------------------------


def train(
    grid: FleetGrid,
    spec: WindowSpec,
    scaling: FleetScaling,
    split: Split,
    profiles: tuple[str, ...],
    arguments: argparse.Namespace,
) -> Fit:
    """Fit a fresh network on the training part."""
    network = build_network(spec, profiles, arguments.hidden_size)
    settings = FitSettings(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        max_seconds=arguments.max_minutes * 60 if arguments.max_minutes else float("inf"),
        seed=arguments.seed,
    )
    source = WindowSource(grid, spec, scaling)
    return fit(ForecastModel(network, spec, scaling).to(_device(arguments.device)), source, split, settings)


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch finds no GPU on this machine; use --device cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


# --- evaluate -------------------------------------------------------------------------------------------------------


def describe(
    spec: WindowSpec, scaling: FleetScaling, profiles: tuple[str, ...], arguments: argparse.Namespace
) -> ModelConfig:
    """The configuration the model is published with."""
    return ModelConfig(
        model_id=free_model_id(arguments.models_dir),
        contract_version=CONTRACT_VERSION,
        hidden_size=arguments.hidden_size,
        quantiles=QUANTILES,
        network_profiles=profiles,
        spec=spec,
        scaling=scaling,
    )


def free_model_id(models_dir: Path) -> str:
    """tft_model_<UTC time>, with a number behind it if two models are made within a second."""
    name = datetime.now(UTC).strftime("tft_model_%Y%m%d_%H%M%S")
    taken = sum(1 for path in models_dir.glob(f"{name}*"))
    return f"{name}_{taken + 1}" if taken else name


def evaluate(
    model: ForecastModel, config: ModelConfig, grid: FleetGrid, split: Split
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Scores on the later days, servers seen and unseen apart, with baselines; and the cold-start table (unseen)."""
    engine = Engine(config, torch_run(model))
    spec = config.spec
    origins = evaluation.rolling_origins(
        split.train_end, grid.steps - 1, spec.horizon_steps, max(1, TEST_EVERY_HOURS * 3600 // grid.step_seconds)
    )
    scores = {}
    for name, rows in (("seen", split.seen), ("unseen", split.unseen)):
        if not len(rows):
            continue
        print(f"evaluating {len(rows)} {name} servers at {len(origins)} origins", file=sys.stderr)
        past = evaluation.backtest(
            grid, rows, origins, spec.horizon_steps, spec.history_steps, QUANTILES, engine.forecast
        )
        scores[name] = past.scores()
    cold_start = pd.DataFrame()
    if len(split.unseen):
        print("evaluating unseen servers with little history", file=sys.stderr)
        prior = evaluation.profile_quantiles(grid, split.seen, split.train_end, QUANTILES)
        cold_start = evaluation.cold_start_table(
            grid, split.unseen, origins, spec.horizon_steps, QUANTILES, engine.forecast, prior, bool(config.profiles)
        )
    return scores, cold_start


def print_tables(scores: dict[str, pd.DataFrame], cold_start: pd.DataFrame) -> None:
    """The tables people read, to stdout."""
    for name, table in scores.items():
        print(f"\nLater days, {name} servers (mean over metrics; WQL, MASE, WAPE: smaller is better)")
        print(_rounded(table[table["metric"] == "mean"].drop(columns=["metric", "points"])))
    if len(cold_start):
        print("\nNew servers: accuracy and WQL by length of history (mean over metrics)")
        print(_rounded(cold_start))
    print()


def _rounded(table: pd.DataFrame) -> str:
    return table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.3f}")


# --- publish --------------------------------------------------------------------------------------------------------


def publish(
    training: Fit,
    config: ModelConfig,
    scores: dict[str, pd.DataFrame],
    cold_start: pd.DataFrame,
    grid: FleetGrid,
    split: Split,
    arguments: argparse.Namespace,
) -> Path:
    """Write the model directory in one atomic step, check that it loads, and make it the current one."""
    model = training.model.to("cpu").eval()
    models_dir: Path = arguments.models_dir
    info = training_info(training, scores, grid, split, arguments)
    with new_model_directory(models_dir, config.model_id) as directory:
        # Cloned, as the stock class holds some weights under two names and safetensors stores no shared memory.
        save_file({name: value.clone() for name, value in model.network.state_dict().items()}, directory / WEIGHTS_FILE)
        example = WindowSource(grid, config.spec, config.scaling).batch(
            np.zeros(2, np.int64),
            np.full(2, config.context_steps),
            config.context_steps,
            np.full(2, config.history_steps),
            np.zeros(2, dtype=bool),
        )
        export_onnx(model, example.windows, directory / ONNX_FILE)
        (directory / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        (directory / TRAINING_INFO_FILE).write_text(json.dumps(info, indent=2), encoding="utf-8")
        write_canary(directory / CANARY_FILE, Engine(config, torch_run(model)))
        for name, table in scores.items():
            table.to_parquet(directory / f"scores_{name}.parquet", index=False)
        if len(cold_start):
            cold_start.to_parquet(directory / "cold_start.parquet", index=False)
        write_report(directory, config.model_id, info, scores, cold_start)
    Engine.load(models_dir / config.model_id, device="cpu")  # ONNX Runtime reproduces torch's canary, or ModelError
    if not arguments.no_promote:
        promote(models_dir, config.model_id)
    print(f"published {models_dir / config.model_id}", file=sys.stderr)
    return models_dir / config.model_id


def training_info(
    training: Fit,
    scores: dict[str, pd.DataFrame],
    grid: FleetGrid,
    split: Split,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """training_info.json: data, settings, course and scores of the run."""
    times = grid.timestamps()
    return {
        "data": str(arguments.training_dir),
        "servers": len(grid.servers),
        "holdout_servers": [grid.servers[row] for row in split.unseen],
        "first_timestamp": f"{times[0]}Z",
        "train_end": f"{times[split.train_end]}Z",
        "last_timestamp": f"{times[-1]}Z",
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()},
        "course": training.course,
        **_pace(training),
        "scores": scores_as_json(scores),
    }


def _pace(training: Fit) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "windows": training.windows,
        "epochs": round(training.epochs, 3),
        "minutes": round(training.seconds / 60, 3),
        "windows_per_second": round(training.windows / training.seconds, 1),
        "stopped_by": training.stopped_by,
        "best_validation_loss": training.best_validation_loss,
    }


def summary(model_dir: Path, training: Fit, scores: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The last stdout line."""
    return {"model_dir": str(model_dir), **_pace(training), "scores": scores_as_json(scores)}


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


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def _fraction(text: str) -> float:
    value = float(text)
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
