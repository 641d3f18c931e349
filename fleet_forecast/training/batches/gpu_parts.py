"""Parts of the windows that gpu.py builds, as tensors; as the classes of their names in features/."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GpuPlan(NamedTuple):
    """A source.BatchPlan as tensors.

    profile: 0 where masked. peer_row: in the peer table, -1 without peers. member: whether the server is in the table.
    """

    rows: Tensor
    origins: Tensor
    known_steps: Tensor
    calendar_steps: Tensor
    profile: Tensor
    metric_order: Tensor
    position_noise: Tensor
    level_shift: Tensor
    peer_row: Tensor
    member: Tensor

    def copy_(self, other: GpuPlan) -> None:
        """Overwrite with another plan of as many windows, in the same memory."""
        for own, new in zip(self, other, strict=True):
            own.copy_(new, non_blocking=True)


class SeasonalLags(NamedTuple):
    """As seasonality.SeasonalLags."""

    mean: Tensor
    latest: Tensor
    smoothed_mean: Tensor
    latest_share: Tensor
    smoothed_mean_share: Tensor


class Standardised(NamedTuple):
    """As windows._Standardised, without the window quantiles but with their prior; position [window, metric, 2]."""

    strength: Tensor
    seasonal_ahead: Tensor
    missing: Tensor
    scale: Scale
    context: Tensor


class Scale(NamedTuple):
    """As windows._Scale; position [window, metric, 2]."""

    loc: Tensor
    scale: Tensor
    quantiles: Tensor
    position: Tensor
    peer_weight: Tensor


class PeerContext(NamedTuple):
    """As windows._PeerContext."""

    level: Tensor
    offset: Tensor
    largest: Tensor
    mean_count: Tensor


class Past(NamedTuple):
    """As windows._Past."""

    whole: Tensor
    own: Tensor
    peers: PeerContext | None


def masked_mean_and_deviations(values: Tensor, missing: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """As masked_statistics.masked_mean_and_deviations."""
    values = values.masked_fill(missing, 0.0)
    mean = values.sum(dim=1) / count.clamp(min=1)
    return mean, (values - mean[:, None]).masked_fill(missing, 0.0)
