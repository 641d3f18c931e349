"""Weightless layers in cheaper operators: dropout with a byte per activation, ELU that ONNX Runtime vectorises."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ByteDropout(nn.Dropout):
    """Dropout whose mask costs a random byte per activation instead of a random double.

    The probability is rounded to 1/256, and the kept activations are scaled accordingly.
    """

    def forward(self, activations: Tensor) -> Tensor:
        """Any shape; the stock module on a GPU, where random numbers are cheap."""
        dropped = round(self.p * 256)
        if not self.training or dropped == 0 or activations.is_cuda:
            return super().forward(activations)
        count = activations.numel()
        words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[:count].view(activations.shape) >= dropped
        return activations * kept.to(activations.dtype).mul_(256 / (256 - dropped))


class ExportableElu(nn.ELU):
    """The stock module, with an export of its own."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape."""
        return elu(values)


def elu(values: Tensor) -> Tensor:
    """Exported as max(x, exp(x) - 1), which takes ONNX Runtime half as long as its own operator."""
    if exporting():
        return torch.maximum(values, torch.exp(values.clamp(max=0.0)) - 1.0)
    return functional.elu(values)


def softplus(values: Tensor) -> Tensor:
    """log(1 + exp(x)); exported in operators that ONNX Runtime vectorises, unlike its own."""
    if exporting():
        return torch.relu(values) + torch.log(1.0 + torch.exp(-values.abs()))
    return functional.softplus(values)


def exporting() -> bool:
    """True during an ONNX export."""
    return torch.onnx.is_in_onnx_export()
