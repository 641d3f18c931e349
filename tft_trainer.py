"""Train a Temporal Fusion Transformer on a fleet's metrics, evaluate it on unseen servers, publish it.

    python tft_trainer.py --training-dir ./training/                          # the default job
    python tft_trainer.py --training-dir ./training/ --epochs 1 --max-minutes 2   # a quick look
    python tft_trainer.py --training-dir FLEET.parquet --holdout-servers ppdb003,ppweb007
    python tft_trainer.py --training-dir ./training/ --resume                 # resume an interrupted run
    python tft_trainer.py --from-history history/fleet.sqlite --warm-start models/current --keep 5
    python tft_trainer.py --rollback                                          # the model before is in use again
    torchrun --nproc-per-node 2 tft_trainer.py                                # two processes, the same model
    python tft_trainer.py --engine ray --workers 2                            # the same by Ray Train

Reads the output of metrics_generator.py, or any file in the format of DATA_CONTRACT.md. A copy of the evaluated model
is trained further on all servers and all days (the final fit), a risk model is trained beside it, and both are
published. Progress goes to stderr; tables and, as the last line, one JSON object go to stdout. Ctrl-C ends the training
and publishes the best model so far; during the final fit it publishes the evaluated model. A second Ctrl-C aborts.
If a model is already in use, both are compared on the newest days; a worse one is not put in use.
Exit code 0: published, 1: failed, 2: wrong usage, 3: published, but not put in use.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_contract import ContractError, DataFileError
from fleet_forecast.commands.model_life import KEPT_NOT_IN_USE, compare, put_in_use, roll_back_models, training_path
from fleet_forecast.commands.models_folder import FEWEST_KEPT
from fleet_forecast.commands.training_job import prepare, read
from fleet_forecast.commands.training_run import (
    completed,
    evaluate,
    fit_finally,
    open_checkpoint,
    train,
    train_ablation,
    train_risk_model,
)
from fleet_forecast.contract.calendar import DEFAULT_CALENDAR
from fleet_forecast.contract.definitions import use_fleet
from fleet_forecast.contract.fleet.flag import add_fleet_flag, add_moved_flags, load_fleet
from fleet_forecast.contract.times import add_timezone_flag
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.evaluation.tables import as_text
from fleet_forecast.features.grid import GridError
from fleet_forecast.flag_uses import PLAIN, FlagUses, chosen_flags, only_one, refuse_unused_flags
from fleet_forecast.flags import (
    FlagParser,
    add_flag,
    add_ray_flags,
    add_version,
    fraction,
    int_number,
    positive_float,
    positive_int,
)
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import only_writer
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.risk.lightgbm_library import load_lightgbm
from fleet_forecast.scale.ray_cluster import ray_cluster
from fleet_forecast.script import run_script
from fleet_forecast.training.ablation import cold_start_difference
from fleet_forecast.training.checkpoint import CheckpointError
from fleet_forecast.training.job import MIN_DEFAULT_STEP_SECONDS, Job
from fleet_forecast.training.progress import LogError
from fleet_forecast.training.publish import RunResult, publish, run_summary
from fleet_forecast.training.ranks.group import LONGEST_WAIT, RankError, is_first, wait_for_ranks
from fleet_forecast.training.ranks.roles import training_process
from fleet_forecast.training.risk.labels import known_incidents
from fleet_forecast.training.split import TrainingError
from fleet_forecast.usage import UsageError, note

ABORTED = "aborted; nothing was published; --resume continues from the last checkpoint, if there is one"
COMMANDS = {"from_history": "--from-history FILE", "rollback": "--rollback"}  # the flags that select a command
EXPECTED_ERRORS = (
    TrainingError,
    ContractError,
    DataFileError,
    GridError,
    CheckpointError,
    LogError,
    ModelError,
    RankError,
    OSError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        _refuse_contradictions(parser, arguments)
        if arguments.engine == "ray":
            return _run_on_ray(arguments)
    except KeyboardInterrupt:
        print(f"error: {ABORTED}", file=sys.stderr)
        return 1
    except (UsageError, TomlFileError, ModelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (UsageError, TomlFileError)) else 1
    return run(arguments)


def _refuse_contradictions(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse flags that would be ignored. Raises UsageError."""
    command = only_one(chosen_flags(arguments, COMMANDS))
    present = [command, *["--engine ray"] * (arguments.engine == "ray")]
    refuse_unused_flags(parser, arguments, flag_uses(set(vars(arguments))), present)
    if arguments.force and arguments.no_promote:
        raise UsageError("--force: --no-promote puts no model in use; leave one of them out")


def flag_uses(flags: set[str]) -> FlagUses:
    """Which command uses which of the script's flags."""
    training = flags - {"rollback", "ray_address", "workers"}
    return {
        PLAIN: training - {"from_history"},
        COMMANDS["from_history"]: training - {"training_dir", "input_timezone"},
        COMMANDS["rollback"]: ("rollback", "models_dir", "fleet"),
        "--engine ray": ("ray_address", "workers"),
    }


def _run_on_ray(arguments: argparse.Namespace) -> int:
    """The same by the workers of a Ray cluster.

    What can be refused without them is. Raises UsageError, TomlFileError, ModelError and OSError.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--engine ray: this is a process of torchrun, which starts the others; leave one of them out")
    load_fleet(arguments.fleet)
    with only_writer(arguments.models_dir):
        pass
    with ray_cluster(arguments.ray_address, arguments.workers):
        from fleet_forecast.scale.ray_training import train_on_ray  # needs Ray

        return train_on_ray("tft_trainer", arguments, arguments.device != "cpu", LONGEST_WAIT)


def run(arguments: argparse.Namespace) -> int:
    """Read, train, evaluate, publish; in each of several processes."""
    try:
        with (
            use_fleet(load_fleet(arguments.fleet)),
            training_process(arguments.models_dir),
        ):  # first, so that an unusable folder fails before hours of training
            if arguments.rollback:
                print(json.dumps(roll_back_models(arguments.models_dir)))
                return 0
            job, incidents = read_job(arguments)
            checkpoint = open_checkpoint(job, arguments)
            training = train(job, checkpoint, arguments)
            ablation = train_ablation(job, training, checkpoint, arguments)
            final_fit = fit_finally(job, [training, ablation], checkpoint, arguments)
            if not is_first():
                return 0
            evaluation = evaluate(job, training, completed(ablation))
            risk = train_risk_model(job, incidents, arguments)
            champion = compare(job, training, risk[0], arguments)
            departures = job.departures(training.model, incidents)
            result = RunResult(
                training, completed(ablation), evaluation, completed(final_fit), *risk, champion, departures
            )
            model_dir = publish(job, result, arguments.models_dir, vars(arguments))
            in_use = put_in_use(model_dir, champion, arguments)
            checkpoint.remove()
    except KeyboardInterrupt:
        print(f"error: {ABORTED}", file=sys.stderr)
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
    print(f"\n{as_text(result.evaluation)}\n")
    if result.ablation:
        print(cold_start_difference(training, result.ablation, result.evaluation.cold_start), end="\n\n")
    print(json.dumps({"model_dir": str(model_dir), "worse_than_champion": not in_use, **run_summary(result)}))
    return 0 if in_use else KEPT_NOT_IN_USE


def read_job(arguments: argparse.Namespace) -> tuple[Job, list[IncidentRecord]]:
    """The job that data and flags define, and the known incidents."""
    if not arguments.no_risk_model:
        load_lightgbm()  # fails before hours of training
    with training_path(arguments) as path:
        data = read(arguments, path)
        job = prepare(data, arguments)
        incidents = known_incidents(data, job.grid.step_seconds, arguments.incidents, note) if is_first() else []
        wait_for_ranks()  # an export of --from-history is removed here
        return job, incidents


# --- flags ----------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Flags; each may be written with hyphens or underscores."""
    parser = FlagParser(
        prog="tft_trainer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = partial(add_flag, parser)
    _add_data_flags(parser)
    length = parser.add_mutually_exclusive_group()
    add_flag(
        length, "--epochs", type=positive_int, default=20, help="maximum passes over all server-hours (%(default)s)"
    )
    add_flag(
        length,
        "--steps",
        type=positive_int,
        help="optimisation steps, instead of --epochs: independent of the machine's load",
    )
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
    add(
        "--timezone",
        help=f"business time zone (that of the fleet file or of the data, otherwise {DEFAULT_CALENDAR.timezone})",
    )
    add("--seed", type=_seed, default=42, help="seed of weights, windows and unseen servers (%(default)s)")
    _add_run_flags(parser)
    add_version(parser)
    return parser


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    add = partial(add_flag, parser)
    source = parser.add_mutually_exclusive_group()
    add_flag(
        source,
        "--training-dir",
        type=Path,
        default=Path("./training/"),
        help="folder or file to train on (%(default)s)",
    )
    add_flag(
        source,
        "--from-history",
        type=Path,
        metavar="FILE",
        help="train on what a daemon stored, instead of --training-dir; the daemon may run meanwhile",
    )
    add("--models-dir", type=Path, default=Path("./models"), help="folder for the model directory (%(default)s)")
    add_fleet_flag(parser)
    add_moved_flags(parser, "profiles")
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
        help="TOML file of silences; measurements in those of the kind exclude are neither used nor scored",
    )


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    add = partial(add_flag, parser)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (%(default)s)")
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: this process, or those of torchrun; ray: workers of a Ray cluster, by Ray Train (%(default)s)",
    )
    add_ray_flags(parser, "one per GPU, or per core without GPUs")
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
    add(
        "--grid-folder",
        type=Path,
        metavar="DIR",
        help="keep the data in files in this folder instead of in memory, for data that do not fit into memory; the "
        "processes of a torchrun share them (with several processes: --models-dir)",
    )
    add("--resume", action="store_true", help="resume the interrupted run in --models-dir with the same data and flags")
    add(
        "--warm-start",
        type=Path,
        metavar="DIR",
        help="start from the weights of this model, or of the starter model (`starter`); no comparison is trained",
    )
    add("--tensorboard", type=Path, metavar="DIR", help="write a TensorBoard log of the training to this folder")
    add("--report-pictures", action="store_true", help="draw PNGs of the report's main sections; needs Chromium")
    _add_publishing_flags(parser)


def _add_publishing_flags(parser: argparse.ArgumentParser) -> None:
    add = partial(add_flag, parser)
    add("--no-promote", action="store_true", help="do not compare with models/current, and do not change it")
    add("--force", action="store_true", help="put the new model in use even if it is worse than the one in use")
    add(
        "--keep",
        type=_kept_models,
        metavar="N",
        help="afterwards, remove all models of the folder but the newest N; the one in use and the one before stay",
    )
    add("--rollback", action="store_true", help="put the previous model in use again, and end")


def _kept_models(text: str) -> int:
    value = positive_int(text)
    if value < FEWEST_KEPT:
        raise argparse.ArgumentTypeError(
            f"{text}: must be at least {FEWEST_KEPT}, for the model in use and the one before"
        )
    return value


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
