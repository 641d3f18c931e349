"""Small fixed tensors, made once a device: to send numbers to a GPU in every step would make it wait."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The values as a tensor, usable in training, whoever asks first."""
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device)
