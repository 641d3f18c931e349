"""Normal scores read on the scale of a window's own distribution (window_shape.py), in torch.

Between the levels of a shape a score is interpolated linearly; beyond the outermost it grows by sinh, in units of half
the shape's width. `in_window_units` says it in operators that ONNX has. `compressed_window_units` is what the loss
wants, compressed as the targets are, with a derivative of its own: a quarter of the time, forth and back.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from fleet_forecast.features.quantile_map import MIDDLE, NORMAL_SCORES
from fleet_forecast.network.constants import constant

_ENDS = (0, MIDDLE, len(NORMAL_SCORES) - 1)
FARTHEST_SCORE = 16.0  # beyond the outermost level: sinh of it is 4 million half-widths of a window


def in_window_units(scores: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Normal scores [window, metric, quantile, H] -> spreads from the window's centre, increasing.

    shape: [window, metric, level]. A sum of what lies on each piece, so that not even rounding lets it fall.
    """
    at = NORMAL_SCORES
    quantiles = shape[:, :, None, None].unbind(-1)
    units = quantiles[0]
    for (low, below), (high, above) in pairwise(zip(at, quantiles, strict=True)):
        units = units + (above - below) / (high - low) * (scores.clamp(low, high) - low)
    lower, upper = (quantiles[MIDDLE] - quantiles[0]) / at[-1], (quantiles[-1] - quantiles[MIDDLE]) / at[-1]
    return units + upper * _sinh_beyond(scores - at[-1]) - lower * _sinh_beyond(at[0] - scores)


def _sinh_beyond(distance: torch.Tensor) -> torch.Tensor:
    """Hyperbolic sine of what is above 0, in exponentials, as the ONNX exporter does not know it."""
    beyond = distance.clamp(0.0, FARTHEST_SCORE)
    return (torch.exp(beyond) - torch.exp(-beyond)) / 2


def compressed_window_units(scores: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """asinh(in_window_units(scores, shape)), for training; gradients flow to the scores alone."""
    compressed: torch.Tensor = _CompressedUnits.apply(scores, shape)
    return compressed


class _CompressedUnits(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, scores: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
        """Looks the linear pieces up; keeps the derivative."""
        at = constant(NORMAL_SCORES, shape.dtype, shape.device)
        slopes = shape.diff(dim=-1) / at.diff()  # [window, metric, piece]
        starts = shape[..., :-1] - slopes * at[:-1]
        inside = scores.clamp(NORMAL_SCORES[0], NORMAL_SCORES[-1])
        piece = torch.zeros_like(scores, dtype=torch.int32)
        for score in NORMAL_SCORES[1:-1]:
            piece += inside > score
        owner = torch.arange(shape[..., 0].numel(), dtype=torch.int32, device=shape.device) * slopes.shape[-1]
        piece += owner.view(*shape.shape[:2], 1, 1)
        slope, units = (part.flatten().index_select(0, piece.flatten()).view_as(scores) for part in (slopes, starts))
        units.addcmul_(slope, inside)
        beyond = (scores - inside).clamp_(-FARTHEST_SCORE, FARTHEST_SCORE)
        lower, upper = (
            (high - low)[..., None, None] / at[-1] for low, high in pairwise([shape[..., end] for end in _ENDS])
        )
        width = torch.where(beyond > 0, upper, lower)
        growth, decay = torch.exp(beyond), torch.exp(-beyond)
        units.addcmul_(width, growth - decay, value=0.5)
        slope = torch.where(beyond == 0, slope, width * (growth + decay) / 2)
        root = torch.sqrt(units.square() + 1)
        context.save_for_backward(slope / root)
        return torch.copysign(torch.log(units.abs() + root), units)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """To the scores; a shape is data."""
        (derivative,) = context.saved_tensors
        return gradients[0] * derivative, None
