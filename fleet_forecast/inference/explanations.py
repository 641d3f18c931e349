"""Explanations: the network's variable and attention weights (Lim et al. 2021, arXiv:1912.09363, section 7).

The network weighs its variables in three groups, anew for each window: static (one weight per variable), encoder (per
step of the context) and decoder (per step of the horizon). Each step of the horizon attends to the steps of the context
and to earlier steps of the horizon. All weights of a group, and all attention weights of a step, sum to 1. They show
what the network attends to, not how the forecast would change with a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.window_batch import Windows
from fleet_forecast.features.windows import CALENDAR_SIZES, WindowSpec
from fleet_forecast.inference.model_config import ModelConfig
from fleet_forecast.inference.peer_support import PeerSupport
from fleet_forecast.network.outputs import NetworkWeights

MOST_LAG_BINS = 24  # attention by lag is summed over at most this number of equal parts of the context
_KNOWN_FUTURE_REALS = ("market_open", "relative_time_idx")
# Labels of the network's variables. Those of a metric are "<metric>, <label>", by the suffix of the variable's name.
_LABELS = {
    "profile": "profile",
    "half_hour": "time of day",
    "day_kind": "day of the week or holiday",
    "market_open": "business hours",
    "relative_time_idx": "distance from the origin",
    "measured_share": "share of the context that was measured",
    "peer_count": "number of peers",
    "seasonal_lag_share": "share of the previous day that was measured",
    "seasonal_mean_share": "share of the earlier days that was measured",
}
_METRIC_LABELS = {
    "scaled": "value",
    "mask": "measured or not",
    "loc": "level in the context",
    "scale": "scale in the context",
    "seasonal_lag": "same time of the previous day",
    "seasonal_mean": "mean of earlier days at this time",
    "seasonal_strength": "strength of the daily seasonality",
    "peer_weight": "weight of the peers after one step",
}


class Variables(NamedTuple):
    """Names of the network's variables by group, in the order of the columns of Interpretation."""

    static: tuple[str, ...]
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]


class Interpretation(NamedTuple):
    """Variable and attention weights of some windows.

    static, encoder, decoder: float32 [window, variable], each row sums to 1. encoder is the mean over the measured
    steps of the context (over all of them with peers, or if none was measured), decoder the mean over the chosen steps
    of the horizon.
    attention: float32 [window, lag], from the chosen steps of the horizon to the context step `lag` steps before the
    origin (0: the origin itself); 0 beyond the encoder. attention_ahead: float32 [window], to earlier steps of the
    horizon; it sums to 1 with `attention`. encoder_steps: int64 [window], length of the encoder. quantiles: float32
    [window, H, metric, quantile], the explained forecast. peers: None if the forecast was made without peers.
    """

    static: np.ndarray
    encoder: np.ndarray
    decoder: np.ndarray
    attention: np.ndarray
    attention_ahead: np.ndarray
    encoder_steps: np.ndarray
    quantiles: np.ndarray
    peers: PeerSupport | None = None


def variables_of(spec: WindowSpec, with_profile: bool) -> Variables:
    """The variables of a network over `spec`."""
    calendar = tuple(CALENDAR_SIZES)
    return Variables(
        static=(("profile",) if with_profile else ()) + spec.static_reals,
        encoder=(*calendar, *_KNOWN_FUTURE_REALS, *spec.encoder_reals),
        decoder=(*calendar, *spec.decoder_reals, *_KNOWN_FUTURE_REALS),
    )


def label_of(variable: str) -> str:
    """Label of a variable: cpu_pct_seasonal_mean -> "cpu_pct, mean of earlier days at this time"."""
    if variable in _LABELS:
        return _LABELS[variable]
    suffix = next(suffix for suffix in _METRIC_LABELS if variable.endswith(f"_{suffix}"))
    return f"{variable.removesuffix(f'_{suffix}')}, {_METRIC_LABELS[suffix]}"


def interpret(
    windows: Windows, weights: NetworkWeights, context_steps: int, horizon_steps: Sequence[int] | None = None
) -> Interpretation:
    """Average the network's weights over steps.

    horizon_steps: the steps of the horizon to explain, 1 is the first after the origin; None: all.
    """
    measured = np.any(windows.inputs.encoder[..., 1::2], axis=2)  # [window, E], from the masks
    metrics = windows.inputs.encoder.shape[2] // 2
    has_peers = windows.inputs.static[:, 3 * metrics + 1] > 0  # the static real peer_count
    measured |= has_peers[:, None] | ~np.any(measured, axis=1, keepdims=True)
    chosen = np.arange(weights.attention.shape[1]) if horizon_steps is None else np.array(horizon_steps) - 1
    encoder_steps = measured.shape[1]
    attention = weights.attention[:, chosen].mean(axis=1)  # [window, E + H]
    by_lag = np.zeros((len(attention), context_steps), dtype=np.float32)
    by_lag[:, :encoder_steps] = attention[:, :encoder_steps][:, ::-1]
    return Interpretation(
        static=weights.static_weights,
        encoder=(weights.encoder_weights * measured[..., None]).sum(axis=1) / measured.sum(axis=1, keepdims=True),
        decoder=weights.decoder_weights[:, chosen].mean(axis=1),
        attention=by_lag,
        attention_ahead=attention[:, encoder_steps:].sum(axis=1),
        encoder_steps=np.full(len(attention), encoder_steps),
        quantiles=weights.quantiles,
    )


def empty_interpretation(windows: int, variables: Variables, config: ModelConfig) -> Interpretation:
    """An Interpretation of zeros for a number of windows, to be filled."""
    spec = config.spec
    shapes: list[tuple[int, ...]] = [(len(group),) for group in variables]
    shapes += [(spec.context_steps,), (), (), (spec.horizon_steps, len(spec.metrics), len(config.quantiles))]
    kinds = [np.int64 if name == "encoder_steps" else np.float32 for name in Interpretation._fields[:-1]]
    arrays = [np.zeros((windows, *shape), kind) for shape, kind in zip(shapes, kinds, strict=True)]
    return Interpretation._make([*arrays, None])


def lag_bin_steps(context_steps: int) -> int:
    """Steps of one part of the context in attention by lag: an hour if the context is a day."""
    return -(-context_steps // MOST_LAG_BINS)


def in_lag_bins(attention: np.ndarray) -> np.ndarray:
    """Attention [..., lag] summed over equal parts of the context: [..., bin], the last part may be shorter."""
    starts = np.arange(0, attention.shape[-1], lag_bin_steps(attention.shape[-1]))
    return np.add.reduceat(attention, starts, axis=-1)
