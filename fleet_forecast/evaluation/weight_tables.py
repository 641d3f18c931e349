"""Mean weights of explanations by profile, as tables of a model directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fleet_forecast.inference.explanations import Interpretation, Variables, in_lag_bins, lag_bin_steps

UNKNOWN_PROFILE = "unknown"


class WeightTables(NamedTuple):
    """Mean weights by profile as data frames; within a profile each group sums to 1.

    variables: profile, group, variable, weight. attention: profile, on, lag_hours, weight. `on` is "context" for a part
    of the context (it starts lag_hours before the origin and extends into the past) or "horizon" for the earlier steps
    of the horizon.
    """

    variables: pd.DataFrame
    attention: pd.DataFrame


def weight_tables(
    found: Interpretation, variables: Variables, profiles: Sequence[str | None], step_seconds: int
) -> WeightTables:
    """Means by profile; profiles: one per window, None = unknown."""
    names = np.array([profile or UNKNOWN_PROFILE for profile in profiles])
    bin_hours = lag_bin_steps(found.attention.shape[1]) * step_seconds / 3600
    weights, attention = [], []
    for profile in np.unique(names):
        own = names == profile
        for group in Variables._fields:
            means = getattr(found, group)[own].mean(axis=0)
            part = {"profile": profile, "group": group, "variable": getattr(variables, group), "weight": means}
            weights.append(pd.DataFrame(part))
        by_lag = in_lag_bins(found.attention[own].mean(axis=0))
        lags = np.arange(len(by_lag)) * bin_hours
        attention += [
            pd.DataFrame({"profile": profile, "on": "context", "lag_hours": lags, "weight": by_lag}),
            pd.DataFrame({"profile": profile, "on": "horizon", "weight": [found.attention_ahead[own].mean()]}),
        ]
    return WeightTables(pd.concat(weights, ignore_index=True), pd.concat(attention, ignore_index=True))
