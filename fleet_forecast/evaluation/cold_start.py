"""Scores of unseen servers by length of history, with the profile given, with it masked, and with the peers masked."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from fleet_forecast.evaluation.backtest import MEAN, MODEL, BacktestPlan, Forecaster, backtest, model_forecasts
from fleet_forecast.evaluation.baselines import TrainingQuantiles
from fleet_forecast.evaluation.peers_by_hand import PEERS_BY_HAND, PeersByHand

HISTORY_HOURS = (1, 6, 24)  # besides none and a single step
PROFILE_GIVEN, PROFILE_MASKED = f"{MODEL}, profile given", f"{MODEL}, profile masked"
PEERS_MASKED = f"{MODEL}, peers masked"


def history_lengths(step_seconds: int) -> dict[str, int]:
    """The lengths of history of the table: label -> steps. Hours that are not two or more whole steps are left out."""
    hours = {f"{hours} h": divmod(hours * 3600, step_seconds) for hours in HISTORY_HOURS}
    return {
        "none": 0,
        "1 step": 1,
        **{label: steps for label, (steps, rest) in hours.items() if steps > 1 and not rest},
    }


def cold_start_table(
    plan: BacktestPlan,
    forecaster: Forecaster,
    by_profile: TrainingQuantiles,
    has_profiles: bool,
    by_hand: PeersByHand | None = None,
) -> pd.DataFrame:
    """Scores of the plan's servers by length of history and method: history, method, wql, accuracy, coverage_80.

    by_profile: input of the baseline profile_quantiles. has_profiles: the model has the profile feature; it is then
    scored with profiles masked, with profiles given and, if the plan has peers, with peers masked; otherwise once as
    MODEL. by_hand: the baseline of that name, left out without it.
    """
    tables = []
    for label, steps in history_lengths(plan.grid.step_seconds).items():
        compared = backtest(plan, forecaster, steps, with_profiles=False, by_profile=by_profile)
        if has_profiles:
            compared = compared.with_forecast(PROFILE_GIVEN, model_forecasts(plan, forecaster, steps))
        if has_profiles and plan.peers is not None:
            masked = replace(plan, peers=None)
            compared = compared.with_forecast(PEERS_MASKED, model_forecasts(masked, forecaster, steps))
        if by_hand is not None:
            compared = compared.with_forecast(PEERS_BY_HAND, by_hand.forecasts(plan, steps))
        scores = compared.scores()
        means = scores[scores["metric"] == MEAN]
        tables.append(means[["method", "wql", "accuracy", "coverage_80"]].assign(history=label))
    table = pd.concat(tables, ignore_index=True)
    if has_profiles:
        table["method"] = table["method"].replace({MODEL: PROFILE_MASKED})
    return table[["history", "method", "wql", "accuracy", "coverage_80"]]
