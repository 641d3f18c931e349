"""The final fit: its data, its length, and that the evaluated model is published without it."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tft_trainer
from fleet_forecast.training import trainer as trainer_module
from fleet_forecast.training.batches.source import Batch, WindowSelection, WindowSource
from fleet_forecast.training.checkpoint import Checkpoint, Checkpointer
from fleet_forecast.training.final_fit import constant_then_linear, continued_model, final_data, final_settings
from fleet_forecast.training.job import Job
from fleet_forecast.training.trainer import Trainer
from fleet_forecast.training.trainer_state import TrainerState, copy_weights
from tests.conftest import tiny_flags
from tests.training.test_trainer import SETTINGS, PowerCut, assert_same, cut_power, job_with, train

NO_LIMIT = float("inf")


@pytest.fixture(scope="module")
def job() -> Job:
    return job_with()


@pytest.fixture(scope="module")
def training(job: Job) -> TrainerState:
    return train(job)


def fit_finally(job: Job, training: TrainerState, checkpoint: Checkpoint | None = None) -> TrainerState:
    settings = final_settings(job, training, NO_LIMIT)
    checkpointer = Checkpointer("final_fit", checkpoint)
    return Trainer(continued_model(job, training), final_data(job), settings, checkpointer).fit()


def test_it_visits_every_server_up_to_the_last_day(
    job: Job, training: TrainerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    selections: list[WindowSelection] = []
    real = WindowSource.batch

    def batch(source: WindowSource, selection: WindowSelection) -> Batch:
        selections.append(selection)
        return real(source, selection)

    monkeypatch.setattr(WindowSource, "batch", batch)
    settings = replace(final_settings(job, training, NO_LIMIT), steps=None, epochs=1)
    Trainer(continued_model(job, training), final_data(job), settings).fit()
    windows = 5 * len(range(0, 600 - 12, 12))  # every server-hour once; then batches of the next epoch, built ahead
    rows, origins = (
        np.concatenate([getattr(one, name) for one in selections])[:windows] for name in ("rows", "origins")
    )
    assert np.bincount(rows).tolist() == [windows // 5] * 5, "validation and unseen servers included"
    for server in range(5):
        assert origins[rows == server].max() >= 600 - 2 * 12, "targets of the last day"
    assert origins.max() + 12 <= 599


def test_it_has_half_of_the_steps_to_the_best_validation_at_a_lower_learning_rate(
    job: Job, training: TrainerState
) -> None:
    settings = final_settings(job, training, NO_LIMIT)
    assert settings.steps == max(1, round(training.best_step / 2)) <= training.steps / 2
    assert settings.learning_rate < SETTINGS.learning_rate / 2
    assert settings.seed != SETTINGS.seed
    assert fit_finally(job, training).steps == settings.steps


def test_it_takes_at_most_a_third_of_the_time_limit_and_what_is_left_of_it(job: Job, training: TrainerState) -> None:
    limited = replace(job, settings=replace(SETTINGS, max_seconds=300.0))
    assert final_settings(limited, training, 250.0).max_seconds == 100.0
    assert final_settings(limited, training, 40.0).max_seconds == 40.0


def test_the_learning_rate_is_constant_after_a_warm_up_then_falls_to_zero() -> None:
    rates = np.array([constant_then_linear(progress) for progress in np.linspace(0, 1, 101)])
    assert rates[0] < 0.1
    assert (rates[5:51] == 1.0).all()
    assert (np.diff(rates[50:]) < 0).all()
    assert rates[-1] == 0.0


def test_it_keeps_the_last_average_and_leaves_the_evaluated_model_as_it_is(
    job: Job, training: TrainerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def validate(model, weights, batches):
        raise AssertionError("there is nothing to validate on")

    before = copy_weights(training.model)
    monkeypatch.setattr(trainer_module, "validate", validate)
    final_fit = fit_finally(job, training)
    assert final_fit.stopped_by == "steps"
    assert all(torch.equal(before[name], weight) for name, weight in copy_weights(training.model).items())
    assert not all(torch.equal(before[name], weight) for name, weight in copy_weights(final_fit.model).items())


def test_a_resumed_final_fit_is_bit_identical(
    job: Job, training: TrainerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = fit_finally(job, training)
    assert uninterrupted.steps > 3
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        cut_power(patch, "optimisation_step", at_call=3)
        with pytest.raises(PowerCut):
            fit_finally(job, training, Checkpoint.new(tmp_path, {}))
    torch.manual_seed(99)
    assert_same(fit_finally(job, training, Checkpoint.resume(tmp_path, {})), uninterrupted)


# --- the script -----------------------------------------------------------------------------------------------------


def run(training_dir: Path, models_dir: Path, *more: str) -> int:
    return tft_trainer.main([*tiny_flags(training_dir, models_dir), "--no-comparison", *more])


def info_of(model_dir: Path) -> dict:
    return json.loads((model_dir / "training_info.json").read_text())


@pytest.fixture(scope="module")
def evaluated_dir(tiny_training_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model without the final fit."""
    models_dir = tmp_path_factory.mktemp("evaluated")
    assert run(tiny_training_dir, models_dir, "--no-final-fit") == 0
    return models_dir / "current"


def same_weights(one: Path, other: Path) -> bool:
    weights, others = (load_file(path / "model.safetensors") for path in (one, other))
    return all(torch.equal(weights[name], others[name]) for name in weights)


def test_scores_are_those_of_the_model_before_the_final_fit(evaluated_dir: Path, tiny_model_dir: Path) -> None:
    without, with_ = info_of(evaluated_dir), info_of(tiny_model_dir)
    assert not same_weights(evaluated_dir, tiny_model_dir)
    assert (without["final_fit"], without["scored_model"]) == (None, "published")
    assert with_["scored_model"] == "before the final fit"
    assert with_["final_fit"]["kind"] == "warm continuation"
    assert with_["final_fit"]["steps"] == 3
    assert with_["scores"] == without["scores"]
    for name in ("scores_unseen.parquet", "scores_training.parquet"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(folder / name) for folder in (evaluated_dir, tiny_model_dir)))
    assert "final fit" in (tiny_model_dir / "report.html").read_text()
    assert "final fit" not in (evaluated_dir / "report.html").read_text()


def call_at_step(monkeypatch: pytest.MonkeyPatch, number: int, action) -> None:
    real, calls = trainer_module.optimisation_step, []

    def step(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            action()
        return real(*arguments, **options)

    monkeypatch.setattr(trainer_module, "optimisation_step", step)


@pytest.mark.parametrize("ending", ["ctrl-c", "failure"])
def test_an_interrupted_or_failed_final_fit_publishes_the_evaluated_model(
    ending: str, evaluated_dir: Path, tiny_training_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    def end() -> None:
        if ending == "failure":
            raise RuntimeError("out of memory")
        os.kill(os.getpid(), signal.SIGINT)

    call_at_step(monkeypatch, 7, end)  # after the model's six steps
    assert run(tiny_training_dir, tmp_path) == 0
    captured = capsys.readouterr()
    expected = {
        "ctrl-c": "the final fit on all servers and days was stopped by Ctrl-C; the model is published without it",
        "failure": "the final fit on all servers and days failed (out of memory); the model is published without it",
    }
    assert expected[ending] in captured.err
    assert same_weights(tmp_path / "current", evaluated_dir)
    assert json.loads(captured.out.splitlines()[-1])["final_fit"] is None


def test_a_training_stopped_by_ctrl_c_has_no_final_fit(
    tiny_training_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    call_at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run(tiny_training_dir, tmp_path) == 0
    captured = capsys.readouterr()
    assert "published without the final fit" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["final_fit"] is None
