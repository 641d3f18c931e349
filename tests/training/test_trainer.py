"""The training loop: kept weights, end of training, time limit, resuming."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.training import trainer as trainer_module
from fleet_forecast.training.batches.source import Batch, WindowSelection, WindowSource
from fleet_forecast.training.checkpoint import Checkpoint, Checkpointer, CheckpointError
from fleet_forecast.training.job import Job
from fleet_forecast.training.split import Split, TrainingError
from fleet_forecast.training.trainer import Trainer, TrainerSettings, validation_interval
from fleet_forecast.training.trainer_state import TrainerState, copy_weights

SPEC = WindowSpec(("cpu_pct", "mem_pct"), 300, BusinessCalendar("UTC"), context_steps=24, horizon_steps=12)
SETTINGS = TrainerSettings(epochs=2, batch_size=16, learning_rate=3e-3, max_seconds=float("inf"), seed=3)
PER_EPOCH = 9  # batches: 4 servers, 36 hours


class Clock:
    """A clock that advances by `tick` seconds each time it is read."""

    def __init__(self, tick: float = 0.0) -> None:
        self.seconds, self.tick = 1000.0, tick

    def __call__(self) -> float:
        self.seconds += self.tick
        return self.seconds


class PowerCut(BaseException):
    """Ends a run without its clean-up."""


def job_with(settings: TrainerSettings = SETTINGS) -> Job:
    random = np.random.default_rng(0)
    values = random.uniform(5, 90, (5, 600, 2)).astype(np.float32)
    profiles = ("database", "web_api", "database", "web_api", "database")
    grid = FleetGrid(tuple("abcde"), profiles, SPEC.metrics, np.datetime64("2026-03-02T00:00:00", "s"), 300, values)
    split = Split(np.arange(4), np.arange(0), np.array([4]), train_end=440, test_start=500)
    return Job(
        grid=grid,
        spec=SPEC,
        split=split,
        profiles=("database", "web_api"),
        hidden_size=8,
        device=torch.device("cpu"),
        settings=settings,
    )


def train(job: Job, checkpoint: Checkpoint | None = None) -> TrainerState:
    return Trainer(job.fresh_model(), job.training_data, job.settings, Checkpointer("training", checkpoint)).fit()


def assert_same(one: TrainerState, other: TrainerState) -> None:
    for (name, weight), same in zip(copy_weights(one.model).items(), copy_weights(other.model).values(), strict=True):
        assert torch.equal(weight, same), name
    assert one.loss_history == other.loss_history
    assert (one.steps, one.windows, one.epoch) == (other.steps, other.windows, other.epoch)
    assert one.best_validation_loss == other.best_validation_loss


def test_validation_servers_are_half_of_the_validation_and_not_in_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[set[int]] = []
    real = WindowSource.batch

    def batch(source: WindowSource, selection: WindowSelection) -> Batch:
        drawn.append(set(selection.rows.tolist()))
        return real(source, selection)

    monkeypatch.setattr(WindowSource, "batch", batch)
    job = job_with()
    train(replace(job, split=replace(job.split, training_servers=np.arange(3), validation_servers=np.array([3]))))
    validation, training = drawn[: trainer_module.VALIDATION_BATCHES], drawn[trainer_module.VALIDATION_BATCHES :]
    assert validation == [{3} if number % 2 else {0, 1, 2} for number in range(len(validation))]
    assert set().union(*training) == {0, 1, 2}


# --- interrupted ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted() -> TrainerState:
    return train(job_with())


def cut_power(monkeypatch: pytest.MonkeyPatch, name: str, at_call: int) -> None:
    """The at_call-th call of a function of the trainer module does not return."""
    real, calls = getattr(trainer_module, name), []

    def cut(*arguments, **options):
        calls.append(1)
        if len(calls) == at_call:
            raise PowerCut
        return real(*arguments, **options)

    monkeypatch.setattr(trainer_module, name, cut)


@pytest.mark.parametrize(
    ("name", "at_call", "seconds_between_saves"),
    [
        ("optimisation_step", 2, 0.0),
        ("optimisation_step", PER_EPOCH + 1, 0.0),  # the first step of an epoch
        (
            "optimisation_step",
            PER_EPOCH + 4,
            20.0,
        ),  # the clock advances a few seconds a step: the last save is some steps old
        ("validate", 3, 0.0),
        ("validate", 5, 20.0),  # the last validation
    ],
)
def test_a_resumed_run_is_bit_identical(
    name: str,
    at_call: int,
    seconds_between_saves: float,
    uninterrupted: TrainerState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", seconds_between_saves)
    monkeypatch.setattr(trainer_module, "monotonic", Clock(tick=1.0))
    with monkeypatch.context() as patch:
        cut_power(patch, name, at_call)
        with pytest.raises(PowerCut):
            train(job_with(), Checkpoint.new(tmp_path, {}))
    torch.manual_seed(99)  # another process has another random state
    assert_same(train(job_with(), Checkpoint.resume(tmp_path, {})), uninterrupted)


def test_a_run_interrupted_many_times_is_bit_identical(
    uninterrupted: TrainerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", 0.0)
    checkpoint, starts = Checkpoint.new(tmp_path, {}), 1
    while True:
        try:
            with monkeypatch.context() as patch:
                cut_power(patch, "optimisation_step", at_call=5)
                ended = train(job_with(), checkpoint)
            break
        except PowerCut:
            checkpoint, starts = Checkpoint.resume(tmp_path, {}), starts + 1
    assert starts == 1 + (2 * PER_EPOCH - 1) // 4
    assert_same(ended, uninterrupted)


def test_a_run_that_had_ended_is_not_trained_further(
    uninterrupted: TrainerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(job_with(), Checkpoint.new(tmp_path, {}))
    cut_power(monkeypatch, "optimisation_step", at_call=1)
    assert_same(train(job_with(), Checkpoint.resume(tmp_path, {})), uninterrupted)


@pytest.mark.parametrize("name", ["adamw.0.exp_avg", "weights.network.pos_wise_ff.fc1.bias"])
def test_the_state_of_another_network_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", 0.0)
    cut_power(monkeypatch, "validate", at_call=3)
    with pytest.raises(PowerCut):
        train(job_with(), Checkpoint.new(tmp_path, {}))
    checkpoint = Checkpoint.resume(tmp_path, {})
    checkpoint.parts["training"].tensors[name] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="the state of the interrupted run does not fit this network"):
        train(job_with(), checkpoint)


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_seconds", [60.0, 300.0])
def test_the_time_limit_includes_all_validations(limit_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def step(state, gradients, plan, learning_rate):
        clock.seconds += 0.3
        return torch.tensor(0.1)

    def validate(model, weights, batches):
        clock.seconds += 4.0
        return 1000.0 - clock.seconds  # improves each time

    monkeypatch.setattr(trainer_module, "monotonic", clock)
    monkeypatch.setattr(trainer_module, "optimisation_step", step)
    monkeypatch.setattr(trainer_module, "validate", validate)
    run = train(job_with(replace(SETTINGS, epochs=10_000, max_seconds=limit_seconds)))
    assert run.stopped_by == "minutes"
    assert 0.95 * limit_seconds <= run.seconds <= 1.05 * limit_seconds
    assert run.seconds == pytest.approx(clock.seconds - 1000.0)
    assert run.windows_per_second == pytest.approx(16 / 0.3, rel=0.05)


def test_validations_are_a_small_part_of_the_work_for_every_fleet_size() -> None:
    for per_epoch in (9, 250, 530, 80_000):
        every = validation_interval(per_epoch, 20 * per_epoch)
        assert 1 <= every <= 250
        assert 20 * per_epoch // every >= 4
        assert every >= min(100, 20 * per_epoch // 4)


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_the_weights_of_the_best_validation_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [5.0, 3.0, 1.0, 2.0, 4.0, *[4.0] * 20]
    validated = []

    def validate(model, weights, batches):
        validated.append({name: weight.clone() for name, weight in weights.items()})
        return losses[len(validated) - 1]

    monkeypatch.setattr(trainer_module, "validate", validate)
    run = train(job_with())
    assert run.best_validation_loss == 1.0
    assert all(torch.equal(weight, validated[2][name]) for name, weight in copy_weights(run.model).items())


def test_without_improvement_the_learning_rate_falls_to_zero_and_training_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = iter([5.0, 4.0, 4.5, 4.0, 4.2, 3.0, 3.5])
    rates = []

    def step(state, gradients, plan, learning_rate):
        rates.append(learning_rate)
        return torch.tensor(0.1)

    monkeypatch.setattr(trainer_module, "validate", lambda model, weights, batches: next(losses))
    monkeypatch.setattr(trainer_module, "optimisation_step", step)
    monkeypatch.setattr(trainer_module, "PATIENCE", 3)
    run = train(job_with(replace(SETTINGS, epochs=400)))
    assert run.stopped_by == "no improvement"
    assert run.loss_history[3]["step"] == run.cool_down_start
    assert run.steps == run.cool_down_start + np.ceil(0.2 * run.cool_down_start)
    cooling = np.array(rates[run.cool_down_start :])
    assert (np.diff(cooling) < 0).all()
    assert cooling[0] <= rates[run.cool_down_start - 1]
    assert cooling[-1] < 0.02 * cooling[0]
    assert run.best_validation_loss == 3.0  # in the cool-down


def test_a_point_of_the_loss_history_has_the_mean_loss_since_the_previous_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real, losses = trainer_module.optimisation_step, []

    def step(*arguments, **options):
        losses.append(float(real(*arguments, **options)))
        return torch.tensor(losses[-1])

    monkeypatch.setattr(trainer_module, "optimisation_step", step)
    run = train(job_with())
    before = 0
    for point in run.loss_history:
        step_number = int(point["step"])
        assert point["loss"] == pytest.approx(np.mean(losses[before:step_number]), rel=1e-5)
        before = step_number
    assert before == run.steps == len(losses)


def test_a_run_ended_by_ctrl_c_can_be_resumed(
    uninterrupted: TrainerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script removes the checkpoint only after publishing."""
    real, calls = trainer_module.optimisation_step, []

    def step(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(trainer_module, "optimisation_step", step)
    run = train(job_with(), Checkpoint.new(tmp_path, {}))
    assert (run.stopped_by, run.steps) == ("ctrl-c", 4)
    assert_same(train(job_with(), Checkpoint.resume(tmp_path, {})), uninterrupted)


def test_ctrl_c_twice_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return torch.tensor(0.1)

    monkeypatch.setattr(trainer_module, "optimisation_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(job_with())


def test_an_epoch_excludes_server_hours_without_a_measurement() -> None:
    job = job_with()
    job.grid.values[2:, :300] = np.nan  # two of four servers start after two thirds of the training period
    run = train(job)
    assert (run.stopped_by, run.epochs) == ("epochs", 2)
    assert run.windows == 2 * (2 * 36 + 2 * 12)


def test_the_validation_excludes_windows_without_a_measured_target(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    real = WindowSource.batch

    def batch(source: WindowSource, selection: WindowSelection) -> Batch:
        drawn.append(selection.rows)
        return real(source, selection)

    monkeypatch.setattr(WindowSource, "batch", batch)
    job = job_with()
    job.grid.values[1:, 428:500] = np.nan
    job = replace(job, split=replace(job.split, training_servers=np.arange(3), validation_servers=np.array([3])))
    trainer_module.validation_batches(job.training_data, 0, torch.device("cpu"))
    for rows in drawn:
        assert rows.tolist() == [0] * trainer_module.VALIDATION_BATCH_SIZE


def test_data_without_measurements_in_training_or_validation_is_refused() -> None:
    unvalidated = job_with()
    unvalidated.grid.values[:, 440:500] = np.nan
    with pytest.raises(TrainingError, match="in the validation period"):
        train(unvalidated)
    nothing = job_with()
    nothing.grid.values[:, :440] = np.nan
    with pytest.raises(TrainingError, match="no server has a measurement"):
        train(nothing)
