"""Small constant tensors, made once per device: copying numbers to a GPU in every step would make it wait."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The values as a tensor that can be used in training, even if first made in inference mode."""
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=dtype, device=device)
