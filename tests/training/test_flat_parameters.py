"""Flattened parameters train like separate ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fleet_forecast.training.trainer_state import flatten_parameters, split_by_parameter


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 5), nn.ELU(), nn.LayerNorm(5), nn.Linear(5, 2, bias=False))
    layers.register_module("same", layers[0])  # a module under two names, as the stock network has some
    return layers


def learn(model: nn.Module, trained: list[nn.Parameter], steps: int = 5) -> list[float]:
    """Losses of some steps with clipped gradients, the gradients zeroed in place."""
    optimizer = torch.optim.AdamW(trained, lr=0.05, fused=True)
    random, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        x = torch.randn(16, 3, generator=random)
        optimizer.zero_grad(set_to_none=False)
        loss = (model[:4](x) - x[:, :2].square()).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 0.3)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_flattened_parameters_train_like_separate_ones() -> None:
    apart, together = network(), network()
    whole = flatten_parameters(together)
    assert learn(apart, list(apart.parameters())) == pytest.approx(learn(together, [whole]), rel=1e-5)
    for expected, parameter in zip(apart.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)


def test_the_named_parts_share_the_memory_of_the_parameters() -> None:
    model = network()
    whole = flatten_parameters(model)
    parts = split_by_parameter(whole.data, model)
    assert list(parts) == [name for name, _ in model.named_parameters()]
    whole.data.mul_(2.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parts[name], parameter)
        assert parts[name].data_ptr() == parameter.data_ptr()
    assert sum(part.numel() for part in parts.values()) == whole.numel()
