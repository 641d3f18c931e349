"""What a forecast rests on, in the network's own weights (Lim et al. 2021, arXiv:1912.09363, section 7).

The network weighs its variables in three groups, anew in each window: static (what the server is and how it behaves),
encoder (each step of the context) and decoder (each step of the horizon). And each step of the horizon attends to the
steps of the context and to the steps of the horizon before it. Both are averages that add up to 1: they say where the
network looked, which is not the same as what would happen if a value were another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fleet_forecast.features.window_batch import Windows
from fleet_forecast.features.windows import CALENDAR_SIZES, WindowSpec
from fleet_forecast.network.outputs import NetworkWeights

MOST_LAG_BINS = 24  # attention by lag is told in at most so many equal parts of the context
UNKNOWN_PROFILE = "unknown"
_KNOWN_AHEAD = ("market_open", "relative_time_idx")
_LABELS = {
    "profile": "profile",
    "half_hour": "time of day",
    "day_kind": "day of the week or holiday",
    "market_open": "market hours",
    "relative_time_idx": "distance from the origin",
    "measured_share": "share of the context measured",
    "seasonal_lag_share": "share of the day before measured",
    "seasonal_mean_share": "share of the earlier days measured",
}
_LABELS_OF_METRICS = {
    "scaled": "value",
    "mask": "measured or not",
    "loc": "level in the context",
    "scale": "spread in the context",
    "seasonal_lag": "same time of the day before",
    "seasonal_mean": "mean of earlier days",
    "seasonal_strength": "strength of the daily pattern",
}


class Variables(NamedTuple):
    """Names of the network's variables by group, in the order of their weights."""

    static: tuple[str, ...]
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]


class Interpretation(NamedTuple):
    """What the forecasts of some windows rest on.

    static, encoder, decoder: float32 [window, variable], each row sums to 1. encoder is the mean over the context's
    measured steps (over all of them if none was), decoder that over the steps of the horizon that were asked for.
    attention: float32 [window, lag], from these steps of the horizon to the context step so many steps before the
    origin (0 is the origin's own), 0 beyond the encoder. attention_ahead: float32 [window], to earlier steps of the
    horizon; with `attention` it sums to 1.
    encoder_steps: int64 [window], how far back the encoder read. quantiles: float32 [window, H, metric, quantile], the
    forecast explained.
    """

    static: np.ndarray
    encoder: np.ndarray
    decoder: np.ndarray
    attention: np.ndarray
    attention_ahead: np.ndarray
    encoder_steps: np.ndarray
    quantiles: np.ndarray


class WeightTables(NamedTuple):
    """Mean weights by profile, as people and notebooks read them; within a profile each group sums to 1.

    variables: profile, group, variable, weight. attention: profile, on, lag_hours, weight, where `on` is "context" for
    the parts of the context (each begins lag_hours before the origin and reaches back) and "horizon" for the earlier
    steps of the horizon itself.
    """

    variables: pd.DataFrame
    attention: pd.DataFrame


def variables_of(spec: WindowSpec, with_profile: bool) -> Variables:
    """The variables of a network over `spec`."""
    calendar = tuple(CALENDAR_SIZES)
    return Variables(
        static=(("profile",) if with_profile else ()) + spec.static_reals,
        encoder=(*calendar, *_KNOWN_AHEAD, *spec.encoder_reals),
        decoder=(*calendar, *spec.decoder_reals, *_KNOWN_AHEAD),
    )


def label_of(variable: str) -> str:
    """A variable in words: cpu_pct_seasonal_mean -> cpu_pct, mean of earlier days."""
    if variable in _LABELS:
        return _LABELS[variable]
    part = next(part for part in _LABELS_OF_METRICS if variable.endswith(f"_{part}"))
    return f"{variable.removesuffix(f'_{part}')}, {_LABELS_OF_METRICS[part]}"


def interpret(
    windows: Windows, weights: NetworkWeights, context_steps: int, horizon_steps: Sequence[int] | None = None
) -> Interpretation:
    """Average the network's weights over steps.

    horizon_steps: the steps of the horizon to explain, 1 is the first after the origin; None: all.
    """
    measured = np.any(windows.inputs.encoder[..., 1::2], axis=2)  # [window, E], from the masks
    measured |= ~np.any(measured, axis=1, keepdims=True)
    chosen = np.arange(weights.attention.shape[1]) if horizon_steps is None else np.array(horizon_steps) - 1
    encoder_steps = measured.shape[1]
    looked_at = weights.attention[:, chosen].mean(axis=1)  # [window, E + H]
    by_lag = np.zeros((len(looked_at), context_steps), dtype=np.float32)
    by_lag[:, :encoder_steps] = looked_at[:, :encoder_steps][:, ::-1]
    return Interpretation(
        static=weights.static_weights,
        encoder=(weights.encoder_weights * measured[..., None]).sum(axis=1) / measured.sum(axis=1, keepdims=True),
        decoder=weights.decoder_weights[:, chosen].mean(axis=1),
        attention=by_lag,
        attention_ahead=looked_at[:, encoder_steps:].sum(axis=1),
        encoder_steps=np.full(len(looked_at), encoder_steps),
        quantiles=weights.quantiles,
    )


def blank(windows: int, variables: Variables, spec: WindowSpec, quantiles: int) -> Interpretation:
    """An interpretation to be filled in, window by window."""
    shapes: list[tuple[int, ...]] = [(len(group),) for group in variables]
    shapes += [(spec.context_steps,), (), (), (spec.horizon_steps, len(spec.metrics), quantiles)]
    kinds = [np.int64 if name == "encoder_steps" else np.float32 for name in Interpretation._fields]
    return Interpretation(*(np.zeros((windows, *shape), kind) for shape, kind in zip(shapes, kinds, strict=True)))


def lag_bin_steps(context_steps: int) -> int:
    """Width in steps of the parts that attention by lag is told in: an hour of a day's context."""
    return -(-context_steps // MOST_LAG_BINS)


def in_lag_bins(attention: np.ndarray) -> np.ndarray:
    """Attention [..., lag] summed over equal parts of the context: [..., bin], the last part may be shorter."""
    starts = np.arange(0, attention.shape[-1], lag_bin_steps(attention.shape[-1]))
    return np.add.reduceat(attention, starts, axis=-1)


def weight_tables(
    found: Interpretation, variables: Variables, profiles: Sequence[str | None], step_seconds: int
) -> WeightTables:
    """Means by profile; `profiles` are those of the windows, None = unknown."""
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
