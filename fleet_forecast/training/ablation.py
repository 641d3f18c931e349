"""The ablation of the profile feature: a second model without it, its cost and its cold-start scores.

It has the same data, seed and settings as the model, a quarter of the optimisation steps and a complete learning-rate
schedule over these. It is not published.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from fleet_forecast.evaluation.backtest import MODEL
from fleet_forecast.evaluation.cold_start import PROFILE_GIVEN
from fleet_forecast.training.job import Job
from fleet_forecast.training.trainer_state import TrainerState

STEP_SHARE = 0.25  # of the model's steps
METHOD = "model without profiles"  # its rows in the cold-start table
COLD_START_HISTORIES = ("none", "1 step", "1 h")  # the rows that `cold_start_difference` averages


def ablation_job(job: Job, training: TrainerState, max_seconds: float) -> Job:
    """The job without profiles, limited to the rest of `max_seconds` after `training`."""
    steps = max(1, round(training.steps * STEP_SHARE))
    settings = replace(job.settings, steps=steps, max_seconds=max_seconds - training.seconds)
    return replace(job.without_profiles(), settings=settings)


def join(cold_start: pd.DataFrame, ablation: pd.DataFrame) -> pd.DataFrame:
    """The cold-start table with the ablation's model as a further method of each history length."""
    rows = ablation[ablation["method"] == MODEL].assign(method=METHOD)
    order = {history: place for place, history in enumerate(cold_start["history"].unique())}
    both = pd.concat([cold_start, rows], ignore_index=True)
    return both.sort_values("history", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def cost(training: TrainerState) -> dict[str, Any]:
    """Size of the model and cost of its training; windows_per_second excludes validations."""
    return {
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "windows": training.windows,
        "minutes": round(training.seconds / 60, 3),
        "windows_per_second": round(training.windows_per_second, 1),
    }


def cold_start_difference(training: TrainerState, ablation: TrainerState, cold_start: pd.DataFrame) -> str:
    """Benefit and cost of the profile feature in three lines."""
    with_profiles, without = cost(training), cost(ablation)
    short = cold_start[cold_start["history"].isin(COLD_START_HISTORIES)].groupby("method")["accuracy"].mean()
    more = 100 * (with_profiles["parameters"] / without["parameters"] - 1)
    return (
        f"{METHOD}: the same training without the profile feature, on {ablation.windows:,} windows; "
        f"the model had {training.windows:,}\n"
        f"Accuracy on new servers with at most 1 h of history: {short[PROFILE_GIVEN]:.1f} with their "
        f"profile, {short[METHOD]:.1f} by the {METHOD}\n"
        f"Cost of the profile feature: {with_profiles['parameters']:,} parameters, without it "
        f"{without['parameters']:,} ({more:+.1f} %); {with_profiles['windows_per_second']:.0f} training windows/s, "
        f"without it {without['windows_per_second']:.0f}"
    )
