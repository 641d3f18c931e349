"""Pinball loss and sample weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.network.constants import constant

SAMPLE_WEIGHT_POWER = 0.25  # of the scale; benchmarks/ablations.md has its effect


class WeightSums(NamedTuple):
    """What normalises the weights and the loss of a batch; the sums over its parts are those of the batch.

    windows: their number, [1]. powers: of the scale, summed over windows, [metric]. measured: the same, each counted as
    often as the window has measured targets, [metric].
    """

    windows: Tensor
    powers: Tensor
    measured: Tensor

    @classmethod
    def of(cls, scale: Tensor, targets: Tensor) -> WeightSums:
        """scale: [window, metric]; targets: [window, H, metric], NaN = not measured."""
        powers, counts = scale**SAMPLE_WEIGHT_POWER, (~torch.isnan(targets)).sum(dim=1)
        return cls(scale.new_full((1,), len(scale)), powers.sum(dim=0), (powers * counts).sum(dim=0))

    @property
    def mean_power(self) -> Tensor:
        """[metric]."""
        return self.powers / self.windows

    @property
    def total_weight(self) -> Tensor:
        """Sum of the weights of all measured targets."""
        return (self.measured / self.mean_power).sum()


def sample_weight(scale: Tensor, sums: WeightSums | None = None) -> Tensor:
    """Weights of windows in the loss: [window, metric], mean 1 over the windows.

    Without weights, errors are standardised: an idle server counts as much as a busy one, which trains the network
    best. Scores are in physical units. A small power of the scale is a compromise; with its square root, a few busy
    servers dominate the loss.

    scale: [window, metric]. sums: of the batch that the windows are a part of (they are the batch).
    """
    powers = scale**SAMPLE_WEIGHT_POWER
    return powers / (powers.mean(dim=0) if sums is None else sums.mean_power)


def pinball_loss(
    quantiles: Tensor, targets: Tensor, weights: Tensor | float = 1.0, total_weight: Tensor | None = None
) -> Tensor:
    """Weighted mean of the pinball loss over quantiles and measured targets (Koenker & Bassett 1978).

    quantiles: [window, metric, quantile, H]; targets: [window, H, metric] in the same units, NaN = not measured.
    weights: [window, metric] or a number, positive (sample_weight). total_weight: of the batch that the windows are a
    part of (they are the batch); the losses of its parts add up to that of the batch.
    """
    levels = constant(QUANTILE_LEVELS, quantiles.dtype, quantiles.device)[:, None]
    targets = targets.transpose(1, 2)
    measured = ~torch.isnan(targets)
    error = torch.where(measured, targets, 0.0)[:, :, None] - quantiles
    loss = torch.maximum(levels * error, (levels - 1.0) * error).mean(dim=2)
    weight = measured * torch.as_tensor(weights, dtype=loss.dtype, device=loss.device)[..., None]
    total = weight.sum() if total_weight is None else total_weight
    return (weight * loss).sum() / total.clamp(min=torch.finfo(loss.dtype).tiny)
