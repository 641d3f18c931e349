"""The ablation of the profile feature: its training, its cost, and that its failure does not affect the model."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tft_trainer
from fleet_forecast.training import trainer as fitting
from fleet_forecast.training.ablation import METHOD
from tests.conftest import tiny_flags


def run(training_dir: Path, models_dir: Path, *more: str) -> int:
    return tft_trainer.main([*tiny_flags(training_dir, models_dir), *more])


def call_at_step(monkeypatch: pytest.MonkeyPatch, number: int, action) -> None:
    """Call `action` at an optimisation step, counted over all models."""
    real, calls = fitting.optimisation_step, []

    def step(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            action()
        return real(*arguments, **options)

    monkeypatch.setattr(fitting, "optimisation_step", step)


@pytest.fixture(scope="module")
def compared(tiny_training_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model of four epochs (24 steps) with its ablation (6 steps), and the printed lines."""
    models_dir = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **options: lines.append(" ".join(map(str, parts))))
        assert run(tiny_training_dir, models_dir, "--epochs", "4") == 0
    return models_dir / "current", "\n".join(lines)


def test_the_ablation_equals_a_training_without_profiles_and_with_a_quarter_of_the_steps(
    compared: tuple[Path, str], tiny_training_dir: Path, tmp_path: Path
) -> None:
    """One epoch with --no-profile has identical scores."""
    assert run(tiny_training_dir, tmp_path, "--epochs", "1", "--no-profile") == 0
    alone = pd.read_parquet(tmp_path / "current" / "cold_start.parquet")
    joined = pd.read_parquet(compared[0] / "cold_start.parquet")
    pd.testing.assert_frame_equal(
        joined[joined["method"] == METHOD].drop(columns="method").reset_index(drop=True),
        alone[alone["method"] == "model"].drop(columns="method").reset_index(drop=True),
    )


def test_the_cold_start_table_has_the_ablation_for_every_history_and_the_model_is_published(
    compared: tuple[Path, str],
) -> None:
    table = pd.read_parquet(compared[0] / "cold_start.parquet")
    assert list(table["history"].unique()) == ["none", "1 step", "1 h", "6 h", "24 h"]
    assert (table.groupby("history")["method"].last() == METHOD).all()
    assert json.loads((compared[0] / "config.json").read_text())["profiles"] == ["database", "web_api"]


def test_the_cost_of_the_profile_feature_is_printed(compared: tuple[Path, str]) -> None:
    model_dir, printed = compared
    last = json.loads(printed.splitlines()[-1])
    assert last["windows"] == 4 * last["comparison"]["windows"]
    assert f"{last['comparison']['windows']:,} windows; the model had {last['windows']:,}" in printed
    with_, without = last["parameters"], last["comparison"]["parameters"]
    assert without < with_ == sum(value.numel() for value in distinct(load_file(model_dir / "model.safetensors")))
    assert f"{with_:,} parameters, without it {without:,}" in printed
    assert "training windows/s, without it" in printed
    assert last["comparison"] == json.loads((model_dir / "training_info.json").read_text())["comparison"]
    assert f"{last['comparison']['windows']:,} windows (the model:" in (model_dir / "report.html").read_text()


def distinct(weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Each parameter once: the stock class has some under two names."""
    kept: list[torch.Tensor] = []
    for value in weights.values():
        if not any(value.shape == other.shape and torch.equal(value, other) for other in kept):
            kept.append(value)
    return kept


def test_ctrl_c_skips_the_ablation_and_publishes_the_model(
    tiny_training_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call_at_step(monkeypatch, 7, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run(tiny_training_dir, tmp_path) == 0
    captured = capsys.readouterr()
    assert "the comparison without profiles was stopped by Ctrl-C; the model is published without it" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["comparison"] is None
    assert METHOD not in set(pd.read_parquet(tmp_path / "current" / "cold_start.parquet")["method"])


def test_a_failed_ablation_does_not_change_the_model(
    tiny_training_dir: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    call_at_step(monkeypatch, 7, fail)
    assert run(tiny_training_dir, tmp_path) == 0
    assert "the comparison without profiles failed (out of memory)" in capsys.readouterr().err
    weights, same = (load_file(path / "model.safetensors") for path in (tmp_path / "current", tiny_model_dir))
    assert all(torch.equal(weights[name], same[name]) for name in same)


def test_all_trainings_together_stay_within_max_minutes(
    tiny_training_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = [0.0]

    def taking(duration: float, result):
        def function(*_arguments, **_options):
            seconds[0] += duration
            return result()

        return function

    monkeypatch.setattr(fitting, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(fitting, "optimisation_step", taking(0.5, lambda: torch.tensor(0.1)))
    monkeypatch.setattr(fitting, "validate", taking(2.0, lambda: 1 / seconds[0]))  # improves each time
    monkeypatch.setattr(fitting, "PATIENCE", 1000)
    assert run(tiny_training_dir, tmp_path, "--epochs", "1000", "--max-minutes", "3") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["stopped_by"] == "minutes"
    minutes = last["minutes"] + last["comparison"]["minutes"] + last["final_fit"]["minutes"]
    assert 0.95 * 3 <= minutes <= 1.05 * 3
    assert last["final_fit"]["minutes"] == pytest.approx(0.5 * last["minutes"], rel=0.15)
    assert last["comparison"]["minutes"] == pytest.approx(0.25 * last["minutes"], rel=0.1)


def test_without_unseen_servers_no_ablation_is_trained(
    tiny_training_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_training_dir, tmp_path, "--holdout-servers", "0") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["comparison"] is None
