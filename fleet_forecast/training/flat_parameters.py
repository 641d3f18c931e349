"""A model's parameters side by side in one tensor.

A network of this kind has some eight hundred parameters of a few numbers each. One by one they cost the optimizer, the
norm of the gradients and the average of the weights a tenth of a step on a processor; as one tensor, next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def side_by_side(model: nn.Module) -> nn.Parameter:
    """One tensor that holds all parameters of the model, and their gradients in its own.

    The model's parameters become views of it, and their gradients of its gradient, to which backward adds: what happens
    to the one happens to the other. Gradients are zeroed in place.
    """
    parameters = list(model.parameters())
    whole = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    whole.grad = torch.zeros_like(whole)
    for parameter, values, gradient in zip(
        parameters, _parts(whole.data, parameters), _parts(whole.grad, parameters), strict=True
    ):
        parameter.data, parameter.grad = values, gradient
    return whole


def named_parts(whole: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Views of a tensor as long as all parameters of the model, by the parameters' names."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, _parts(whole, parameters), strict=True))


def _parts(whole: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    pieces = whole.split([parameter.numel() for parameter in parameters])
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]
