"""The final fit: the evaluated model, trained further on all servers and all days, which is then published.

The evaluated model was trained neither on the unseen and validation servers nor on the validation and test periods. The
final fit continues from its weights with half of its steps at a fraction of its learning rate. No data are left for
validation, so the number of steps is fixed. Scores are those of the model before the final fit.

The scaling statistics remain those of the evaluated model, to which its weights are adapted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.network.model import ForecastModel
from fleet_forecast.training.job import Job
from fleet_forecast.training.split import Split
from fleet_forecast.training.trainer import TrainerSettings, TrainingData
from fleet_forecast.training.trainer_state import TrainerState, copy_weights, load_weights

KIND = "warm continuation"
STEP_SHARE = 0.5  # of the steps up to the evaluated model's best validation
TIME_SHARE = 1 / 3  # of the time limit of all trainings, at most
LEARNING_RATE_SHARE = 0.3  # of the peak learning rate
CONSTANT_SHARE = 0.5  # of the final fit, then the learning rate falls to zero
WARM_UP_SHARE = 0.05  # AdamW's moments start at zero


def whole_split(grid: FleetGrid) -> Split:
    """All servers and all days for training."""
    none = np.empty(0, dtype=np.int64)
    return Split(np.arange(len(grid.servers)), none, none, grid.steps, grid.steps)


def final_data(job: Job) -> TrainingData:
    """The windows of all servers and all days, scaled as those of the evaluated model."""
    return TrainingData(job.source, whole_split(job.grid))


def final_settings(job: Job, training: TrainerState, seconds_left: float) -> TrainerSettings:
    """Settings of the final fit after `training`, within what is left of the time limit of all trainings.

    Its windows are drawn with another seed.
    """
    settings = job.settings
    return replace(
        settings,
        steps=max(1, round(STEP_SHARE * training.best_step)),
        max_seconds=min(seconds_left, TIME_SHARE * settings.max_seconds),
        learning_rate=LEARNING_RATE_SHARE * settings.learning_rate,
        learning_rate_schedule=constant_then_linear,
        seed=(settings.seed + 1) % 2**63,
    )


def continued_model(job: Job, training: TrainerState) -> ForecastModel:
    """A copy of the evaluated model."""
    model = job.fresh_model()
    load_weights(model, copy_weights(training.model))
    return model


def constant_then_linear(progress: float) -> float:
    """Share of the peak learning rate: linear warm-up, constant, then linear to zero."""
    warm_up = (progress + 1e-3) / (WARM_UP_SHARE + 1e-3)
    return max(0.0, min(1.0, warm_up, (1 - progress) / (1 - CONSTANT_SHARE)))


def final_fit_cost(final_fit: TrainerState) -> dict[str, Any]:
    """Kind and length of the final fit."""
    return {
        "kind": KIND,
        "steps": final_fit.steps,
        "windows": final_fit.windows,
        "minutes": round(final_fit.seconds / 60, 3),
        "stopped_by": final_fit.stopped_by,
    }
