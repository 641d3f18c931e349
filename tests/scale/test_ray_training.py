"""A training by Ray Train: the model of torchrun's processes; a killed worker and Ctrl-C leave a resumable state."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import tft_trainer
from fleet_forecast.inference.model_directory import verify
from tests.conftest import tiny_flags

ROOT = Path(__file__).resolve().parents[2]
RAY = (sys.executable, "tft_trainer.py", "--engine", "ray", "--workers", "2")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "tft_trainer.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def _ray() -> None:
    pytest.importorskip("ray", reason="Ray (requirements-scale.txt) is not installed")


def flags(training_dir: Path, models_dir: Path, steps: int) -> list[str]:
    result = [*tiny_flags(training_dir, models_dir), "--no-comparison"]
    at = result.index("--epochs")
    return [*result[:at], "--steps", str(steps), *result[at + 2 :]]


def started(command: tuple[str, ...], flags: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file, log.with_suffix(".out").open("wb") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*command, *flags], cwd=ROOT, env=environment, stdout=output, stderr=file)


def wait_for_training(log: Path) -> None:
    deadline = time.monotonic() + 300
    while "training " not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)


def worker_of_rank(rank: int, launcher: int) -> psutil.Process:
    workers = [each for each in psutil.Process(launcher).children(recursive=True) if is_worker(each)]
    return sorted(workers, key=lambda each: each.pid)[rank]


def is_worker(process: psutil.Process) -> bool:
    return "RayTrainWorker" in process.name() or "RayTrainWorker" in " ".join(process.cmdline())


def test_ray_train_publishes_the_model_of_torchrun(tiny_training_dir: Path, tmp_path: Path) -> None:
    weights, summaries = [], []
    for name, command in (("ray", RAY), ("torchrun", TORCHRUN)):
        run = started(command, flags(tiny_training_dir, tmp_path / name, 30), tmp_path / f"{name}.log")
        assert run.wait(600) == 0, (tmp_path / f"{name}.log").read_text()
        assert sorted(path.name for path in (tmp_path / name).iterdir() if path.name.startswith(".")) == []
        verify(tmp_path / name / "current")
        weights.append((tmp_path / name / "current" / "model.safetensors").read_bytes())
        summaries.append(json.loads((tmp_path / f"{name}.out").read_text().splitlines()[-1]))
    assert weights[0] == weights[1]
    assert summaries[0]["best_validation_loss"] == summaries[1]["best_validation_loss"]
    printed = (tmp_path / "ray.out").read_text()
    assert printed.count("[TRANSFER] Profiles detected") == 1


def test_workers_on_two_machines_publish_the_same(tiny_training_dir: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        address = ("--ray-address", cluster.address)
        run = started((*RAY, *address), flags(tiny_training_dir, tmp_path / "two", 30), tmp_path / "two.log")
        assert run.wait(600) == 0, (tmp_path / "two.log").read_text()
    finally:
        cluster.shutdown()
    run = started(TORCHRUN, flags(tiny_training_dir, tmp_path / "torchrun", 30), tmp_path / "torchrun.log")
    assert run.wait(600) == 0, (tmp_path / "torchrun.log").read_text()
    models = [tmp_path / name / "current" / "model.safetensors" for name in ("two", "torchrun")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_a_killed_worker_ends_the_run_which_one_process_resumes(tiny_training_dir: Path, tmp_path: Path) -> None:
    models_dir, log = tmp_path / "models", tmp_path / "ray.log"
    of_run = flags(tiny_training_dir, models_dir, 400)
    run = started(RAY, of_run, log)
    try:
        wait_for_training(log)
        killed = worker_of_rank(1, run.pid)
        killed.send_signal(signal.SIGKILL)
        assert run.wait(120) == 1
    finally:
        run.kill()
    assert "of this training ended" in log.read_text()  # the first process says so, or the command if it ended too
    assert "start the training again with --resume" in log.read_text()
    assert [path.name for path in models_dir.iterdir()] == [".unfinished.safetensors"]
    assert tft_trainer.main([*of_run, "--resume"]) == 0
    verify(models_dir / "current")


def test_ctrl_c_ends_the_run_and_its_cluster(tiny_training_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "ray.log"
    run = started(RAY, flags(tiny_training_dir, tmp_path / "models", 4000), log)
    try:
        wait_for_training(log)
        others = psutil.Process(run.pid).children(recursive=True)
        assert any(is_worker(each) for each in others)
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 1
    finally:
        run.kill()
    assert "error: aborted" in log.read_text()
    _, alive = psutil.wait_procs(others, timeout=30)
    assert not alive


def test_wrong_data_are_reported_by_their_message(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = started(RAY, ["--training-dir", str(tmp_path / "empty"), "--models-dir", str(tmp_path)], tmp_path / "log")
    assert run.wait(300) == 1
    printed = (tmp_path / "log").read_text()
    assert "error: " in printed
    assert "Traceback" not in printed
    assert str(tmp_path / "empty") in printed
