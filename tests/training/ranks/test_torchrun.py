"""The trainer started by torchrun: a killed process ends the run, and a single process resumes and publishes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import tft_trainer
from fleet_forecast.inference.model_directory import TEMPORARY_PREFIX, verify
from tests.commands.histories import store_history
from tests.conftest import tiny_flags, tiny_flags_of_history, tiny_fleet

ROOT = Path(__file__).resolve().parents[3]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "tft_trainer.py")


def started(flags: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen([*TORCHRUN, *flags], cwd=ROOT, env=environment, stdout=file, stderr=file)


def rank_one(launcher: int) -> psutil.Process:
    return next(each for each in psutil.Process(launcher).children() if each.environ().get("RANK") == "1")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_process_ends_the_run_which_one_process_resumes(tiny_training_dir: Path, tmp_path: Path) -> None:
    models_dir, log = tmp_path / "models", tmp_path / "log"
    flags = [*tiny_flags(tiny_training_dir, models_dir), "--no-comparison"]
    flags[flags.index("--epochs") : flags.index("--epochs") + 2] = ["--steps", "120"]
    run = started(flags, log)
    try:
        deadline = time.monotonic() + 300
        while "training " not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        rank_one(run.pid).send_signal(signal.SIGKILL)
        assert run.wait(120) == 1
    finally:
        run.kill()
    printed = log.read_text()
    assert "error: another process of this training ended" in printed
    assert printed.count("training   0 %") <= 1, "one progress display"
    assert printed.count("[TRANSFER] Profiles detected") == 1
    assert [path.name for path in models_dir.iterdir()] == [".unfinished.safetensors"]
    assert tft_trainer.main([*flags, "--resume"]) == 0
    verify(models_dir / "current")
    assert not list(models_dir.glob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_publish_one_model_of_a_history(tmp_path: Path) -> None:
    store_history(tmp_path / "fleet.sqlite", tiny_fleet())
    flags = tiny_flags_of_history(tmp_path / "fleet.sqlite", tmp_path / "models")
    assert started(flags, tmp_path / "log").wait(600) == 0, (tmp_path / "log").read_text()
    (model,) = (tmp_path / "models").glob("tft_model_*")
    verify(model)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["current", model.name]
