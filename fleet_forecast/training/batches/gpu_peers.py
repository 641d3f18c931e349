"""The peer table and the peer prior on a GPU, as features/peers.py, peer_prior.py and fewer_peers.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fleet_forecast.features.cold_start import SCALE_PRIOR_STEPS
from fleet_forecast.features.fewer_peers import MEDIAN_EFFICIENCY
from fleet_forecast.training.batches.gpu_parts import GpuPlan, PeerContext, Scale, masked_mean_and_deviations
from fleet_forecast.training.batches.source import WindowSource


class GpuPeers:
    """The peer table and the peer prior of a WindowSource on `device`."""

    def __init__(self, source: WindowSource, device: torch.device) -> None:
        peers, scaling = source.fleet.peers, source.scaling
        if peers is None or scaling.peer_prior is None:
            raise ValueError("source: has no peers")
        if (peers.first_step, peers.steps) != (source.first_step, source.transformed.shape[1]):
            raise ValueError("source: its peers and its grid must have the same steps")
        self._steps = peers.steps
        medians = (torch.from_numpy(field).to(device).flatten(0, 1) for field in peers.medians)
        self._whole, self._smaller, self._equal, self._larger, self._counts = medians
        by_steps = scaling.peer_prior_by_steps
        self._noise = GpuNoise(*(torch.from_numpy(table).to(device) for table in by_steps.noise))
        prior = (torch.from_numpy(np.ascontiguousarray(table)).to(device) for table in by_steps[:-1])
        self._level_weight, self._error_scale, self._usual_deviation, *rest = prior
        self._peer_scale_weight, self._scale_weight, self._quantiles = rest
        self._exists = torch.from_numpy(scaling.peer_prior.exists).to(device)
        self._metrics = torch.arange(len(source.spec.metrics), device=device)

    def smallest_scale(self) -> float:
        """A lower bound of the scale of a window with peers."""
        smallest = float(self._error_scale[~torch.isnan(self._error_scale)].min())
        # Both deviations may be those of constant values.
        return smallest * SCALE_PRIOR_STEPS / (SCALE_PRIOR_STEPS + self._level_weight.shape[2])

    def levels(self, plan: GpuPlan, measured: Tensor) -> tuple[Tensor, Tensor]:
        """As peers.peer_levels: median and number of the peers [window, step, metric]."""
        index = plan.origins[:, None] + torch.arange(1 - measured.shape[1], 1, device=measured.device)
        at = plan.peer_row.clamp(min=0)[:, None] * self._steps + index.clamp(0, self._steps - 1)
        covered = ((plan.peer_row >= 0)[:, None] & (index >= 0))[..., None]
        own = measured.masked_fill(~(plan.member[:, None, None] & covered), torch.nan)
        whole = self._whole[at]
        level = torch.where(own < whole, self._smaller[at], self._equal[at])
        level = torch.where(own > whole, self._larger[at], level)
        level = torch.where(torch.isnan(own), whole, level)
        usable = covered & self._exists[plan.profile][:, None]
        others = torch.where(covered, self._counts[at], 0) - (~torch.isnan(own)).to(torch.int16)
        return level.masked_fill(~usable, torch.nan), others

    def scale(self, without: Scale, own: Tensor, peers: PeerContext, profile: Tensor) -> Scale:
        """As windows._scale_with_peers; own and peers' level are seasonally adjusted."""
        missing, k = torch.isnan(own), SCALE_PRIOR_STEPS
        n = (~missing).sum(dim=1)
        mean, deviations = masked_mean_and_deviations(own, missing, n)
        unknown = torch.isnan(peers.level)
        base_steps = (~unknown).sum(dim=1)
        base, base_deviations = masked_mean_and_deviations(peers.level, unknown, base_steps)
        base = base.masked_fill(base_steps == 0, torch.nan)
        relative = torch.where(torch.isnan(peers.offset), mean - base, peers.offset).masked_fill(n == 0, 0.0)
        at = profile[:, None], self._metrics, n
        usual_weight, usual_first = self._level_weight[at], self._error_scale[profile, :, 0]
        variance = self._noise.level_variance(peers.mean_count, profile)
        odds = usual_weight * variance
        weight = odds / (1 - usual_weight + odds)
        loc = base + weight * relative
        unknown_level = self._noise.level_share[profile] * usual_first**2
        more = variance * (1 - weight) - (1 - usual_weight)
        error_scale = torch.sqrt(self._error_scale[at] ** 2 + unknown_level * more.clamp(min=0))
        first = torch.sqrt(usual_first**2 + unknown_level * (variance - 1))
        usual = self._usual_deviation[at]
        base_squares, squares = ((part * part).sum(dim=1) for part in (base_deviations, deviations))
        peers_deviation = torch.sqrt((base_squares + k * usual**2) / (base_steps + k))
        by_peers = error_scale * (peers_deviation / usual) ** self._peer_scale_weight[at]
        deviation = torch.sqrt((squares + k * by_peers**2) / (n + k))
        scale = by_peers * (deviation / by_peers) ** self._scale_weight[at]
        position = torch.stack([(loc - base) / first, torch.log(scale / first)], dim=-1)
        has_peers = ~torch.isnan(base)
        return Scale(
            loc=torch.where(has_peers, loc, without.loc),
            scale=torch.where(has_peers, scale, without.scale),
            quantiles=torch.where(has_peers[..., None], self._quantiles[at], without.quantiles),
            position=torch.where(has_peers[..., None], position, without.position),
            peer_weight=torch.where(has_peers, 1.0 - self._level_weight[profile, :, 1], 0.0),
        )


class GpuNoise(NamedTuple):
    """As fewer_peers.PeerNoise."""

    usual_count: Tensor
    level_share: Tensor

    def level_variance(self, count: Tensor, profile: Tensor) -> Tensor:
        """As fewer_peers.level_variance."""
        usual, share = self.usual_count[profile], MEDIAN_EFFICIENCY
        fewer = (usual > count) & (count > 0)
        numbers = (torch.where(fewer, number, 1.0) for number in (count, usual))
        now, in_training = (1 + (share - (share - 1) / number) / number for number in numbers)
        return now / in_training
