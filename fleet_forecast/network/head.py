"""The head: raw network outputs -> quantiles in physical units that cannot cross and stay within their bounds.

Within the head the horizon is the last axis, [window, metric, quantile, H]: scaling by window, metric or quantile then
runs over H contiguous numbers, several times as fast in ONNX Runtime as over seven.
"""

from __future__ import annotations

from itertools import accumulate, groupby

import numpy as np
import torch
from torch import Tensor, nn

from fleet_forecast.contract.forecast_spec import MEDIAN_LEVEL, QUANTILE_LEVELS
from fleet_forecast.features.bounded_transform import BOUND, BoundedTransform
from fleet_forecast.features.window_batch import TargetScale
from fleet_forecast.network.activations import softplus
from fleet_forecast.network.quantile_map import map_scores

MEDIAN = QUANTILE_LEVELS.index(MEDIAN_LEVEL)


class QuantileHead(nn.Module):
    """Undoes the scaling of normal scores; no weights.

    The quantile map turns scores into standardised values, loc and scale into transformed values, and the inverse of
    the bounded transform into physical units.
    """

    def __init__(self, bounds: BoundedTransform) -> None:
        super().__init__()
        # Neighbouring metrics of a kind, (inverse, count): each run has one inverse.
        inverses = [
            _inverse_value if not width else _inverse_percent if percent else _inverse_rate
            for percent, width in zip(bounds.percent, bounds.bound_width, strict=True)
        ]
        self.runs = [(inverse, len(list(run))) for inverse, run in groupby(inverses)]
        self.bound_width: Tensor
        widths = np.where(bounds.bound_width > 0, bounds.bound_width, 1.0)
        width = torch.as_tensor(widths, dtype=torch.float32)
        self.register_buffer("bound_width", width, persistent=False)

    def forward(self, scores: Tensor, target_scale: TargetScale[Tensor]) -> Tensor:
        """Increasing normal scores [window, metric, quantile, H] -> quantiles [window, H, metric, quantile]."""
        standardised = map_scores(scores, target_scale.window_quantiles)
        scaled = target_scale.scale[..., None, None] * standardised
        transformed = target_scale.loc.transpose(1, 2)[:, :, None] + scaled
        return self.inverse(transformed).permute(0, 3, 1, 2)

    def inverse(self, transformed: Tensor) -> Tensor:
        """BoundedTransform.inverse of [window, metric, quantile, H]."""
        width = self.bound_width[:, None, None]
        counts = [count for _, count in self.runs]
        in_widths, hundreds = (transformed / width).split(counts, dim=1), (100.0 / width).split(counts)
        values = [
            inverse(part, hundred) for (inverse, _), part, hundred in zip(self.runs, in_widths, hundreds, strict=True)
        ]
        return _non_decreasing(width * torch.cat(values, dim=1))


def ordered(raw: Tensor) -> Tensor:
    """Raw outputs [..., quantile, H] -> increasing values: the median, and softplus distances outward from it."""
    median = raw[..., MEDIAN : MEDIAN + 1, :]
    below = softplus(raw[..., :MEDIAN, :]).flip(-2).cumsum(-2).flip(-2)
    above = softplus(raw[..., MEDIAN + 1 :, :]).cumsum(-2)
    return torch.cat([median - below, median, median + above], dim=-2)


def raw_of(scores: Tensor) -> Tensor:
    """The inverse of `ordered`: increasing values [..., quantile, H] -> raw outputs."""
    median = scores[..., MEDIAN : MEDIAN + 1, :]
    distances = torch.log(torch.expm1(scores.diff(dim=-2)))
    return torch.cat([distances[..., :MEDIAN, :], median, distances[..., MEDIAN:, :]], dim=-2)


def _inverse_percent(in_widths: Tensor, hundred: Tensor) -> Tensor:
    """Percentages in bound widths; hundred: 100 % in bound widths [metric, 1, 1]."""
    inside = softplus(in_widths) - softplus(in_widths - hundred)
    return torch.relu(torch.minimum((inside - BOUND) / (1 - 2 * BOUND / hundred), hundred))


def _inverse_rate(in_widths: Tensor, _hundred: Tensor) -> Tensor:
    """Rates in bound widths."""
    return torch.relu(softplus(in_widths) - BOUND)


def _inverse_value(transformed: Tensor, _hundred: Tensor) -> Tensor:
    """Metrics without bounds, which are not transformed."""
    return transformed


def _non_decreasing(values: Tensor) -> Tensor:
    """Removes decreases by rounding between nearly equal quantiles [window, metric, quantile, H]."""
    return torch.cat(list(accumulate(values.split(1, dim=2), torch.maximum)), dim=2)
