"""The quantile map in torch: normal scores -> standardised values (features/quantile_map.py).

Between the knots a score is interpolated linearly; beyond the outermost ones it grows as sinh, in units of half the
width between them and the median. `map_scores` uses operators that ONNX has. `map_scores_asinh` is for the loss: the
asinh of the same, with its own derivative, in a quarter of the time.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from fleet_forecast.features.quantile_map import MEDIAN_KNOT, NORMAL_SCORES
from fleet_forecast.network.constants import constant

_ENDS = (0, MEDIAN_KNOT, len(NORMAL_SCORES) - 1)
FARTHEST_SCORE = 16.0  # beyond the outermost knot: its sinh is 4 million half widths


def map_scores(scores: torch.Tensor, window_quantiles: torch.Tensor) -> torch.Tensor:
    """Normal scores [window, metric, quantile, H] -> standardised values, increasing.

    window_quantiles: [window, metric, knot]. A sum over the pieces, so that not even rounding lets it decrease.
    """
    at = NORMAL_SCORES
    knots = window_quantiles[:, :, None, None].unbind(-1)
    mapped = knots[0]
    for (low, below), (high, above) in pairwise(zip(at, knots, strict=True)):
        mapped = mapped + (above - below) / (high - low) * (scores.clamp(low, high) - low)
    lower, upper = (knots[MEDIAN_KNOT] - knots[0]) / at[-1], (knots[-1] - knots[MEDIAN_KNOT]) / at[-1]
    return mapped + upper * _sinh_of_positive(scores - at[-1]) - lower * _sinh_of_positive(at[0] - scores)


def _sinh_of_positive(distance: torch.Tensor) -> torch.Tensor:
    """Hyperbolic sine of the positive part, in exponentials: the ONNX exporter has no sinh."""
    beyond = distance.clamp(0.0, FARTHEST_SCORE)
    return (torch.exp(beyond) - torch.exp(-beyond)) / 2


def map_scores_asinh(scores: torch.Tensor, window_quantiles: torch.Tensor) -> torch.Tensor:
    """asinh(map_scores(scores, window_quantiles)), for training; gradients flow to the scores only."""
    mapped: torch.Tensor = _AsinhMap.apply(scores, window_quantiles)
    return mapped


class _AsinhMap(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, scores: torch.Tensor, window_quantiles: torch.Tensor) -> torch.Tensor:
        """Looks up the linear piece of each score; saves the derivative."""
        knots = constant(NORMAL_SCORES, window_quantiles.dtype, window_quantiles.device)
        slopes = window_quantiles.diff(dim=-1) / knots.diff()  # [window, metric, piece]
        starts = window_quantiles[..., :-1] - slopes * knots[:-1]
        inside = scores.clamp(NORMAL_SCORES[0], NORMAL_SCORES[-1])
        piece = torch.zeros_like(scores, dtype=torch.int32)
        for score in NORMAL_SCORES[1:-1]:
            piece += inside > score
        owner = (
            torch.arange(window_quantiles[..., 0].numel(), dtype=torch.int32, device=window_quantiles.device)
            * slopes.shape[-1]
        )
        piece += owner.view(*window_quantiles.shape[:2], 1, 1)
        slope, mapped = (part.flatten().index_select(0, piece.flatten()).view_as(scores) for part in (slopes, starts))
        mapped.addcmul_(slope, inside)
        beyond = (scores - inside).clamp_(-FARTHEST_SCORE, FARTHEST_SCORE)
        lower, upper = (
            (high - low)[..., None, None] / knots[-1]
            for low, high in pairwise([window_quantiles[..., end] for end in _ENDS])
        )
        width = torch.where(beyond > 0, upper, lower)
        growth, decay = torch.exp(beyond), torch.exp(-beyond)
        mapped.addcmul_(width, growth - decay, value=0.5)
        slope = torch.where(beyond == 0, slope, width * (growth + decay) / 2)
        root = torch.sqrt(mapped.square() + 1)
        context.save_for_backward(slope / root)
        return torch.copysign(torch.log(mapped.abs() + root), mapped)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Gradient of the scores; window quantiles are data."""
        (derivative,) = context.saved_tensors
        return gradients[0] * derivative, None
