"""Pinball loss and sample weights."""

from __future__ import annotations

import torch
from torch import Tensor

from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.network.constants import constant

SAMPLE_WEIGHT_POWER = 0.25  # of the scale; benchmarks/ablations.md has its effect


def sample_weight(scale: Tensor) -> Tensor:
    """Weights of windows in the loss: [window, metric], mean 1 over the windows.

    Without weights, errors are standardised: an idle server counts as much as a busy one, which trains the network
    best. Scores are in physical units. A small power of the scale is a compromise; with its square root, a few busy
    servers dominate the loss.

    scale: [window, metric].
    """
    powers = scale**SAMPLE_WEIGHT_POWER
    return powers / powers.mean(dim=0)


def pinball_loss(quantiles: Tensor, targets: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """Weighted mean of the pinball loss over quantiles and measured targets (Koenker & Bassett 1978).

    quantiles: [window, metric, quantile, H]; targets: [window, H, metric] in the same units, NaN = not measured.
    weights: [window, metric] or a number, positive (sample_weight).
    """
    levels = constant(QUANTILE_LEVELS, quantiles.dtype, quantiles.device)[:, None]
    targets = targets.transpose(1, 2)
    measured = ~torch.isnan(targets)
    error = torch.where(measured, targets, 0.0)[:, :, None] - quantiles
    loss = torch.maximum(levels * error, (levels - 1.0) * error).mean(dim=2)
    weight = measured * torch.as_tensor(weights, dtype=loss.dtype, device=loss.device)[..., None]
    return (weight * loss).sum() / weight.sum().clamp(min=torch.finfo(loss.dtype).tiny)
