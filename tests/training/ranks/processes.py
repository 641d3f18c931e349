"""Trainings of several processes on a small fleet, for tests; each process is forked from one that has the imports."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.mapped_arrays import MappedArrays
from fleet_forecast.training import trainer as trainer_module
from fleet_forecast.training.checkpoint import Checkpoint, Checkpointer
from fleet_forecast.training.job import Job
from fleet_forecast.training.ranks.group import (
    RankError,
    add_up,
    first_says,
    is_first,
    joined,
    rank,
    rank_count,
    wait_for_ranks,
)
from fleet_forecast.training.trainer import Trainer
from fleet_forecast.training.trainer_state import copy_weights
from tests.training.test_trainer import SETTINGS, job_with

STEPS, BATCH_SIZE = 8, 23
trainer_module.VALIDATION_BATCHES = 3
trainer_module.CHECKPOINT_SECONDS = 1e9  # saved when a process is lost, and at the end


def small_job() -> Job:
    """The job of test_trainer.py with missing values; the last batch of an epoch has one window, less than a share."""
    job = job_with(replace(SETTINGS, batch_size=BATCH_SIZE, steps=STEPS))
    random = np.random.default_rng(1)
    job.grid.values[random.random(job.grid.values.shape) < 0.3] = np.nan
    job.grid.values[1, 50:120] = np.nan
    return job


def trained(job: Job, folder: Path, resume: bool = False, dies_at_step: int | None = None) -> dict[str, Any]:
    """Train without dropout; the losses of all steps, of the validations, and the weights."""
    model = job.fresh_model()
    losses: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    real = trainer_module.optimisation_step

    def step(*arguments: Any) -> torch.Tensor:
        if dies_at_step is not None and len(losses) == dies_at_step and not is_first():
            os._exit(9)
        losses.append(float(real(*arguments)))
        return torch.tensor(losses[-1])

    checkpoint = (Checkpoint.resume if resume else Checkpoint.new)(folder, {})
    with mock.patch.object(trainer_module, "optimisation_step", step):
        state = Trainer(model, job.training_data, job.settings, Checkpointer("training", checkpoint)).fit()
    validations = [state.first_validation_loss, *(point["validation_loss"] for point in state.loss_history)]
    weights = torch.cat([weight.flatten() for weight in copy_weights(state.model).values()])
    return {
        "losses": losses,
        "validations": validations,
        "windows": state.windows,
        "first_weights": weights[:: len(weights) // 20].tolist(),
    }


def in_processes(count: int, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """What each of `count` processes returns: `trained`, or the message of its RankError; {} of one that died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started = [context.Process(target=_run, args=(number, count, port, folder, options)) for number in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()
    results = [folder / f"result-{number}.json" for number in range(count)]
    return [json.loads(path.read_text()) if path.exists() else {} for path in results]


def _run(number: int, count: int, port: int, folder: Path, options: dict[str, Any]) -> None:
    os.environ |= {"WORLD_SIZE": str(count), "RANK": str(number), "LOCAL_RANK": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    try:
        with joined():
            said = first_says({"from": rank()}), float(add_up(torch.ones(1))), rank_count()
            job = small_job()
            arrays = MappedArrays(folder / "arrays", is_first(), wait_for_ranks)
            whole = job.grid.values

            def fill(values: np.ndarray) -> None:
                values[:] = whole

            grid: FleetGrid = replace(job.grid, values=arrays.new(whole.shape, fill))
            result = {"said": said} | trained(replace(job, grid=grid, arrays=arrays), folder, **options)
    except RankError as problem:
        result = {"problem": str(problem)}
    (folder / f"result-{number}.json").write_text(json.dumps(result))
