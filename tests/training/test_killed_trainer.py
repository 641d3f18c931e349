"""After kill -9 at any point of a training, models/current is complete, and --resume gives an identical model."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tft_trainer
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_directory import TEMPORARY_PREFIX, only_writer, verify
from tests.commands.histories import store_history
from tests.conftest import tiny_flags, tiny_flags_of_history, tiny_fleet

ROOT = Path(__file__).resolve().parents[2]

# Runs the trainer with a checkpoint after each step; the process kills itself at its n-th call that changes the disk.
KILLED = """
import os, signal, sys
import fleet_forecast.training.trainer, tft_trainer

fleet_forecast.training.trainer.CHECKPOINT_SECONDS = 0.0
calls, last = 0, int(sys.argv[1])

def killing(real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call

for name in ("fsync", "replace", "rename", "symlink"):
    setattr(os, name, killing(getattr(os, name)))
sys.exit(tft_trainer.main(sys.argv[2:]))
"""
CALLS_PER_SAVE = 3  # fsync of the file, rename, fsync of the folder


def run_and_kill(at_call: int, flags: Sequence[str]) -> int:
    """Exit code of a training that is killed at this call; 0: never."""
    command = [sys.executable, "-c", KILLED, str(at_call), *flags]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in conftest.py, for identical sums
    return subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, timeout=300, check=False).returncode


def weights(models_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(models_dir / "current" / "model.safetensors")


def assert_same_model(models_dir: Path, other: Path) -> None:
    one, same = weights(models_dir), weights(other)
    assert all(torch.equal(one[name], same[name]) for name in same)
    tables = [pd.read_parquet(folder / "current" / "cold_start.parquet") for folder in (models_dir, other)]
    pd.testing.assert_frame_equal(*tables)


def assert_current_can_forecast(models_dir: Path) -> None:
    verify(models_dir / "current")
    engine = Engine.load(models_dir / "current", device="cpu")
    history = np.full((1, 48, 3), 30.0, dtype=np.float32)
    assert np.isfinite(engine.forecast(history, ["database"], np.datetime64("2026-03-04T15:00:00", "s"))).all()


def test_a_killed_and_resumed_run_publishes_the_same_model_as_an_uninterrupted_one(
    tiny_training_dir: Path, tiny_models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = tiny_flags(tiny_training_dir, tmp_path)
    assert run_and_kill(3 * CALLS_PER_SAVE + 1, flags) == -signal.SIGKILL
    assert not (tmp_path / "current").exists()
    assert list(tmp_path.glob(f"{TEMPORARY_PREFIX}*")), "killed while a file was being written"
    assert tft_trainer.main([*flags, "--seed", "1", "--resume"]) == 1
    assert "--seed (was 42, is 1)" in capsys.readouterr().err
    assert tft_trainer.main([*flags, "--resume"]) == 0
    assert_same_model(tmp_path, tiny_models_dir)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", (tmp_path / "current").readlink().name]
    assert tft_trainer.main([*flags, "--resume"]) == 1
    assert "nothing to resume" in capsys.readouterr().err


def test_a_new_run_notes_that_it_overwrites_the_checkpoint_of_an_interrupted_one(
    tiny_training_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def abort(*_arguments) -> None:
        raise KeyboardInterrupt

    (tmp_path / ".unfinished.safetensors").write_bytes(b"of another run")
    monkeypatch.setattr(tft_trainer, "train", abort)
    assert tft_trainer.main(tiny_flags(tiny_training_dir, tmp_path)) == 1
    err = capsys.readouterr().err
    assert "holds an interrupted run; starting afresh" in err
    assert "aborted; nothing was published" in err


def test_a_second_training_in_the_same_models_folder_is_refused(
    tiny_training_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_writer(tmp_path):
        assert tft_trainer.main(tiny_flags(tiny_training_dir, tmp_path)) == 1
    assert f"{tmp_path}: another training writes there" in capsys.readouterr().err
    with only_writer(tmp_path):
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_every_change_of_the_disk_the_current_model_is_complete(
    tiny_training_dir: Path, tiny_models_dir: Path, tmp_path: Path
) -> None:
    """First during training and during the ablation, then while publishing, one call later each time."""
    shutil.copytree(tiny_models_dir, tmp_path / "models", symlinks=True)
    models_dir = tmp_path / "models"
    old = (models_dir / "current").readlink()
    flags = tiny_flags(tiny_training_dir, models_dir)
    assert run_and_kill(4 * CALLS_PER_SAVE + 2, flags) == -signal.SIGKILL
    assert (models_dir / "current").readlink() == old
    assert run_and_kill(4 * CALLS_PER_SAVE, [*flags, "--resume"]) == -signal.SIGKILL  # in the ablation
    at_call, killed = 0, 0
    while (models_dir / ".unfinished.safetensors").exists():
        at_call += 1
        code = run_and_kill(at_call, [*flags, "--resume"])
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        assert_current_can_forecast(models_dir)
    assert killed >= 15
    assert (models_dir / "current").readlink() != old
    assert_same_model(models_dir, tiny_models_dir)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_times_the_current_model_is_complete(
    tiny_training_dir: Path, tiny_models_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_models_dir, tmp_path / "models", symlinks=True)
    flags = tiny_flags(tiny_training_dir, tmp_path / "models")
    started = time.monotonic()
    assert run_and_kill(0, flags) == 0
    whole_run_seconds = time.monotonic() - started
    for _ in range(12):
        command = [sys.executable, "-c", KILLED, "0", *flags]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.3, 1.0) * whole_run_seconds)
        process.kill()
        process.wait()
        assert_current_can_forecast(tmp_path / "models")
    assert run_and_kill(0, flags) == 0
    assert not list((tmp_path / "models").glob(f"{TEMPORARY_PREFIX}*"))
    assert json.loads((tmp_path / "models" / "current" / "manifest.json").read_text())["files"]


# The process kills itself where it would call a function.
KILLED_AT = """
import importlib, os, signal, sys
import fleet_forecast.training.trainer, tft_trainer

fleet_forecast.training.trainer.CHECKPOINT_SECONDS = 0.0
module, _, name = sys.argv[1].rpartition(":")
setattr(importlib.import_module(module), name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(tft_trainer.main(sys.argv[2:]))
"""
PHASES = (
    "fleet_forecast.commands.model_life:export_history",
    "tft_trainer:train",
    "tft_trainer:evaluate",
    "tft_trainer:fit_finally",
    "tft_trainer:compare",
    "fleet_forecast.training.publish:write_report",
    "fleet_forecast.commands.model_life:promote",
    "fleet_forecast.commands.model_life:remove_old",
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_any_phase_of_a_training_on_the_history_a_complete_model_serves(
    tiny_models_dir: Path, tmp_path: Path
) -> None:
    models_dir, history = tmp_path / "models", tmp_path / "fleet.sqlite"
    shutil.copytree(tiny_models_dir, models_dir, symlinks=True)
    champion = (models_dir / "current").readlink()
    store_history(history, tiny_fleet())
    flags = [*tiny_flags_of_history(history, models_dir), "--no-comparison", "--keep", "2"]
    flags += ["--warm-start", str(models_dir / "current"), "--force"]
    for phase in PHASES:
        command = [sys.executable, "-c", KILLED_AT, phase, *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False)
        assert done.returncode == -signal.SIGKILL, (phase, done.stderr[-500:])
        assert_current_can_forecast(models_dir)
        replaced = (models_dir / "current").readlink() != champion
        assert replaced == (phase == PHASES[-1])
    assert tft_trainer.main(flags) == 0
    assert_current_can_forecast(models_dir)
    assert not list(models_dir.glob(f"{TEMPORARY_PREFIX}*"))
    assert tft_trainer.main(["--models-dir", str(models_dir), "--rollback"]) == 0
    assert_current_can_forecast(models_dir)
