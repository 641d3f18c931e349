"""What the profile feature brings and what it costs: beside each model that has it, one is trained without.

Same data, seed and settings, a quarter of the optimisation steps with a whole learning-rate schedule of its own: enough
to stand in the cold-start table, at a quarter of the price. It is not published.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from fleet_forecast.evaluation.backtest import MODEL
from fleet_forecast.evaluation.cold_start import PROFILE_GIVEN
from fleet_forecast.training.job import Job
from fleet_forecast.training.trainer_state import Fit

COMPARISON_SHARE = 0.25  # of the model's steps
METHOD = "model without profiles"
SHORT_HISTORIES = ("none", "1 step", "1 h")


def time_for_the_model(max_seconds: float) -> float:
    """The model's share of the time both together may take."""
    return max_seconds / (1 + COMPARISON_SHARE)


def comparison_job(job: Job, training: Fit, max_seconds: float) -> Job:
    """The job without profiles, within what is left of `max_seconds` after `training`."""
    steps = max(1, round(training.steps * COMPARISON_SHARE))
    settings = replace(job.settings, steps=steps, max_seconds=max_seconds - training.seconds)
    return replace(job.without_profiles(), settings=settings)


def beside(cold_start: pd.DataFrame, without: pd.DataFrame) -> pd.DataFrame:
    """The cold-start table with, for each history, the model trained without profiles from a table of its own."""
    rows = without[without["method"] == MODEL].assign(method=METHOD)
    order = {history: place for place, history in enumerate(cold_start["history"].unique())}
    both = pd.concat([cold_start, rows], ignore_index=True)
    return both.sort_values("history", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def price(training: Fit) -> dict[str, Any]:
    """What a model and its training cost; windows_per_second is that of the training steps alone."""
    return {
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "windows": training.windows,
        "minutes": round(training.seconds / 60, 3),
        "windows_per_second": round(training.windows_per_second, 1),
    }


def in_words(training: Fit, comparison: Fit, cold_start: pd.DataFrame) -> str:
    """What the profile feature brings and costs, for people."""
    profiled, plain = price(training), price(comparison)
    short = cold_start[cold_start["history"].isin(SHORT_HISTORIES)].groupby("method")["accuracy"].mean()
    more = 100 * (profiled["parameters"] / plain["parameters"] - 1)
    return (
        f"{METHOD}: the same training but for the profile feature, on {comparison.windows:,} windows; "
        f"the model had {training.windows:,}\n"
        f"Accuracy on new servers with at most 1 h of history: {short[PROFILE_GIVEN]:.1f} with "
        f"their profile, {short[METHOD]:.1f} by the {METHOD}\n"
        f"Price of the profile: {profiled['parameters']:,} parameters, without it {plain['parameters']:,} "
        f"({more:+.1f} %); {profiled['windows_per_second']:.0f} training windows/s, without it "
        f"{plain['windows_per_second']:.0f}"
    )
