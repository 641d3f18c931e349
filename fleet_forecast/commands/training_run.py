"""The trainings of one run of tft_trainer.py.

The model, its comparison without profiles, the final fit and the risk model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fleet_forecast.contract.specs import CONTRACT_VERSION
from fleet_forecast.cpu_contention import contention_advice, contention_notes, free_processors
from fleet_forecast.evaluation.tables import Evaluation
from fleet_forecast.features.windows import WINDOWS_VERSION
from fleet_forecast.inference.model_directory import STARTER, STARTER_DIR
from fleet_forecast.inference.risk_model import RiskModel
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.network.model import ForecastModel
from fleet_forecast.training.ablation import STEP_SHARE as ABLATION_STEP_SHARE
from fleet_forecast.training.ablation import ablation_job, join
from fleet_forecast.training.checkpoint import Checkpoint, Checkpointer, fingerprint
from fleet_forecast.training.final_fit import STEP_SHARE as FINAL_STEP_SHARE
from fleet_forecast.training.final_fit import continued_model, final_data, final_settings
from fleet_forecast.training.job import Job
from fleet_forecast.training.progress import TensorBoardLog
from fleet_forecast.training.ranks.group import RankError, first_says, is_first, rank, rank_count
from fleet_forecast.training.risk.choose import KnownFleet, risk_model_of
from fleet_forecast.training.risk.fit import RiskSettings
from fleet_forecast.training.trainer import Trainer, TrainerSettings, TrainingData
from fleet_forecast.training.trainer_state import TrainerState, device_of
from fleet_forecast.training.warm_start import earlier_config, load_earlier_weights, profile_changes
from fleet_forecast.usage import note

# Flags that must be equal to resume a run. Values that depend on the data as well are compared directly.
IDENTITY_FLAGS = (
    "epochs",
    "steps",
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


def open_checkpoint(job: Job, arguments: argparse.Namespace) -> Checkpoint:
    """The interrupted run's checkpoint with --resume, else a new one."""
    identity = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in IDENTITY_FLAGS}
    identity |= {
        "--warm-start": arguments.warm_start and arguments.warm_start.resolve().name,
        "device": str(job.device),
        "contract_version": CONTRACT_VERSION,
        "windows_version": WINDOWS_VERSION,
        "step_seconds": job.spec.step_seconds,
        "calendar": job.spec.calendar.as_document(),
        "profiles": job.profiles,
        "sha256 of the data": fingerprint(job.grid),
    }
    if rank_count() > 1:
        refuse_other_data(identity)
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


def refuse_other_data(identity: Mapping[str, Any]) -> None:
    """Raises RankError if this process has other settings or data than the first one."""
    first, own = first_says(identity), json.loads(json.dumps(identity))
    if differing := [f"{name} (there {first[name]!r}, here {own[name]!r})" for name in own if first[name] != own[name]]:
        raise RankError(
            f"rank {rank()}: this process has other settings or data than the first one: {', '.join(differing)}; "
            "give all processes the same flags and data"
        )


def train(job: Job, checkpoint: Checkpoint, arguments: argparse.Namespace) -> TrainerState:
    """Train the model, from initial or from earlier weights, or from the checkpoint of an interrupted run."""
    if job.device.type == "cpu":
        note_cpu_contention(torch.get_num_threads())
    model = job.fresh_model()
    if arguments.warm_start:
        warm_start = starter_or(arguments.warm_start)
        earlier = earlier_config(warm_start, job.spec, job.profiles, job.hidden_size)
        for change in profile_changes(earlier.profiles, job.profiles):
            note(change)
        load_earlier_weights(model.network, job.spec.metrics, job.profiles, warm_start, earlier)
    settings = replace(job.settings, max_seconds=model_max_seconds(job, arguments))
    return fit(model, job.training_data, settings, Checkpointer("training", checkpoint), arguments.tensorboard)


def starter_or(model_dir: Path) -> Path:
    """The directory of --warm-start; the word `starter` means the project's own model."""
    return STARTER_DIR if str(model_dir) == STARTER and not model_dir.exists() else model_dir


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
    log = TensorBoardLog(log_dir / checkpointer.part) if log_dir and is_first() else None
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
    """Train the model without profiles (training/ablation.py); None if it is not requested or fails."""
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
    """Train the model further on all servers and days (training/final_fit.py); None if not requested or if it fails.

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
    """Run a training whose failure does not affect the model, which is already trained; None if it fails."""
    try:
        state = run()
    except Exception as error:
        if rank_count() > 1:  # the others wait for this process
            raise
        note(f"{name} failed ({error}); the model is published without it")
        return None
    if state.stopped_by == "ctrl-c":
        note(f"{name} was stopped by Ctrl-C; the model is published without it")
    return state


def train_risk_model(
    job: Job, incidents: Sequence[IncidentRecord], arguments: argparse.Namespace
) -> tuple[RiskModel | None, str]:
    """Train the risk model (training/risk); None, and the reason, if it is not requested or fails.

    Its failure does not affect the model, which is already trained.
    """
    if arguments.no_risk_model:
        return None, "--no-risk-model"
    settings = RiskSettings(threads=torch.get_num_threads(), seed=arguments.seed % 2**31)
    try:
        return risk_model_of(KnownFleet(job.grid, incidents, job.spec.calendar), settings, note)
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
