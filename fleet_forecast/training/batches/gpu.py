"""GPU batches: the windows of features/windows.py built in torch, from a fleet in GPU memory.

A GPU trains on a batch faster than a CPU builds it. This module follows features/windows.py and the modules it uses
step by step, with the same names, in operators that never copy a number back to the CPU and have the same shapes in
every batch, so that all of it can be captured in a CUDA graph (gradients.py). Random numbers are those of sampler.py:
the same plan gives the same batch on either side, up to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fleet_forecast.features.cold_start import SCALE_PRIOR_STEPS, SMALLEST_SCALE
from fleet_forecast.features.quantile_map import KNOT_LEVELS, MEDIAN_KNOT, PRIOR_STEPS, SMALLEST_GAP
from fleet_forecast.features.seasonality import (
    FITTED_PARAMETERS,
    INDEPENDENT_POINTS_PER_DAY,
    SEASONAL_MEAN_DAYS,
    SMALLEST_AMPLITUDE,
    overlap,
)
from fleet_forecast.features.window_batch import NetworkInputs, TargetScale, WindowBatch
from fleet_forecast.features.windows import INPUT_GRID, PEER_COUNT_SCALE
from fleet_forecast.training.batches.gpu_parts import (
    GpuPlan,
    Past,
    PeerContext,
    Scale,
    SeasonalLags,
    Standardised,
    masked_mean_and_deviations,
)
from fleet_forecast.training.batches.gpu_peers import GpuPeers
from fleet_forecast.training.batches.source import BatchPlan, TrainingBatch, WindowSource


class GpuBatches:
    """Builds the batches of a WindowSource on `device`."""

    def __init__(self, source: WindowSource, device: torch.device) -> None:
        self.source, self.spec, self.device = source, source.spec, device
        scaling, calendar = source.scaling, source.fleet.calendar
        self._first_calendar_step = calendar.first_step
        self._transformed = torch.from_numpy(source.transformed).to(device)
        self._half_hour_and_day = torch.from_numpy(calendar.half_hour_and_day).to(device)
        self._market_open = torch.from_numpy(calendar.market_open).to(device)
        statistics = scaling.loc, scaling.scale, scaling.scale_within
        self._loc, self._scale, self._within = (torch.from_numpy(table).to(device) for table in statistics)
        prior = (torch.from_numpy(table).to(device) for table in scaling.prior_by_steps)
        self._loc_weight, self._scale_weight, self._prior_quantiles = prior
        self._peers = GpuPeers(source, device) if source.has_peers else None
        self._metrics = torch.arange(len(source.spec.metrics), device=device)
        self._knot_levels = torch.tensor(KNOT_LEVELS, dtype=torch.float64, device=device)

    def plan(self, plan: BatchPlan) -> GpuPlan:
        """The plan on the device; on a GPU the copies are still running when this returns."""
        request = self.source.request(plan.selection)
        shift = request.level_shift
        peer_row, member = self.source.peer_rows(request)
        fields = GpuPlan(
            *(
                torch.from_numpy(np.ascontiguousarray(field))
                for field in (
                    request.rows,
                    request.origins,
                    request.known_steps,
                    request.calendar_steps,
                    request.profile_rows,
                    plan.metric_order,
                    plan.position_noise,
                    np.zeros((len(plan), len(self._metrics)), dtype=np.float32) if shift is None else shift,
                    peer_row,
                    member,
                )
            )
        )
        if self.device.type == "cuda":  # from pageable memory the copy would wait for all queued work
            fields = GpuPlan(*(tensor.pin_memory() for tensor in fields))
        return GpuPlan(*(tensor.to(self.device, non_blocking=True) for tensor in fields))

    def largest_input(self) -> int:
        """Bound on the absolute value of quantised inputs, in steps of the input grid.

        A value is at most twice the range of all values from a window's loc; a seasonal lag without its seasonal
        component, or a value shifted by 4 deviations of the level uncertainty, at most five times. A window's scale is
        at least SMALLEST_SCALE of its profile's.
        """
        measured = self._transformed[~torch.isnan(self._transformed)]
        values = torch.cat([measured, self._loc.flatten()])
        smallest = SMALLEST_SCALE * float(self._scale.min())
        if self._peers is not None:
            smallest = min(smallest, self._peers.smallest_scale())
        farthest = 5 * float(values.max() - values.min()) / smallest
        return int(np.ceil(np.arcsinh(farthest) * INPUT_GRID)) + 1

    def batch(self, plan: GpuPlan, encoder_steps: int) -> TrainingBatch[Tensor]:
        """As WindowSource.augmented_batch."""
        past = self._past(plan, encoder_steps)
        lags = self._seasonal_lags(past.whole, encoder_steps)
        standardised = self._standardise(past, lags, plan.profile)
        target_scale = self._target_scale(standardised, plan)
        future = self._take(plan.rows, plan.origins, 1, self.spec.horizon_steps) + plan.level_shift[:, None]
        targets = torch.asinh((future - target_scale.loc) / target_scale.scale[:, None])
        windows = WindowBatch(self._inputs(lags, standardised, plan, past.peers), target_scale)
        return TrainingBatch(windows, targets.gather(2, plan.metric_order[:, None].expand_as(targets)))

    def _take(self, rows: Tensor, origins: Tensor, first: int, last: int) -> Tensor:
        """Steps origin + first .. origin + last of each window: [window, step, metric], NaN before the grid."""
        steps = self._transformed.shape[1]
        index = origins[:, None] + torch.arange(first, last + 1, device=self.device)
        values = self._transformed.flatten(0, 1)[rows[:, None] * steps + index.clamp(0, steps - 1)]
        return values.masked_fill((index < 0)[..., None], torch.nan)

    def _past(self, plan: GpuPlan, encoder_steps: int) -> Past:
        """What each window may use, up to its origin; NaN before its known steps."""
        # A window with more known steps than its encoder length has a whole context: augmentation.draw_history.
        has_context = encoder_steps == self.spec.context_steps
        most = self.spec.history_steps if has_context else encoder_steps
        measured = self._take(plan.rows, plan.origins, 1 - most, 0) + plan.level_shift[:, None]
        unknown = torch.arange(most, 0, -1, device=self.device) > plan.known_steps[:, None]
        own = measured.masked_fill(unknown[..., None], torch.nan)
        if self._peers is None or not has_context:
            return Past(own, own[:, -encoder_steps:], None)
        level, counts = self._peers.levels(plan, measured)
        difference = (own - level)[:, -encoder_steps:]
        together = ~torch.isnan(difference)
        offset = difference.nan_to_num().sum(dim=1) / together.sum(dim=1)
        whole = torch.where(torch.isnan(own), level + offset.nan_to_num()[:, None], own)
        level, counts = level[:, -encoder_steps:], counts[:, -encoder_steps:]
        largest = counts.amax(dim=(1, 2)) * ~torch.isnan(level).all(dim=2).all(dim=1)
        count = counts.sum(dim=1) / (counts > 0).sum(dim=1).clamp(min=1)
        return Past(whole, own[:, -encoder_steps:], PeerContext(level, offset, largest.float(), count.float()))

    def _seasonal_lags(self, past: Tensor, encoder_steps: int) -> SeasonalLags:
        """As seasonality.seasonal_lags without clock changes."""
        spec, half, length = self.spec, self.spec.half_width_steps, past.shape[1]
        horizon = spec.horizon_steps
        steps = encoder_steps + horizon + 2 * half
        first = length - encoder_steps - half - spec.seasonal_lag_steps
        latest = past.new_full((len(past), horizon, past.shape[2]), torch.nan)
        target, source = overlap(first + half + encoder_steps, horizon, length)
        latest[:, target] = past[:, source]
        measured = ~torch.isnan(past)
        values = past.nan_to_num()
        total = past.new_zeros(len(past), steps, past.shape[2])
        count = torch.zeros_like(total)
        for begin in range(first, first - SEASONAL_MEAN_DAYS * spec.day_steps, -spec.day_steps):
            target, source = overlap(begin, steps, length)
            total[:, target] += values[:, source]
            count[:, target] += measured[:, source]
        smoothed = [_moving_sum(part[:, encoder_steps:], 2 * half + 1) for part in (total, count)]
        return SeasonalLags(
            mean=(total / count)[:, half : half + encoder_steps + horizon],
            latest=latest,
            smoothed_mean=smoothed[0] / smoothed[1],
            latest_share=(~torch.isnan(latest)).float().mean(dim=2, keepdim=True),
            smoothed_mean_share=smoothed[1].mean(dim=2, keepdim=True) / ((2 * half + 1) * SEASONAL_MEAN_DAYS),
        )

    def _standardise(self, past: Past, lags: SeasonalLags, profile: Tensor) -> Standardised:
        """As windows._standardise, without the window quantiles."""
        encoder_steps = past.own.shape[1]
        context = past.whole[:, -encoder_steps:]
        strength, component = self._seasonal_component(context, lags.mean)
        component, ahead = component[:, :encoder_steps], component[:, encoder_steps:]
        own = past.own - component
        missing = torch.isnan(own)
        scale = self._window_scale(own, missing, profile)
        if self._peers is not None and past.peers is not None:
            peers = past.peers._replace(level=past.peers.level - component)
            scale = self._peers.scale(scale, own, peers, profile)
        standardised = (context - component - scale.loc[:, None]) / scale.scale[:, None]
        return Standardised(strength, ahead, missing, scale, standardised)

    def _seasonal_component(self, context: Tensor, seasonal_mean: Tensor) -> tuple[Tensor, Tensor]:
        """As seasonality.seasonal_component: strength [window, metric], component [window, step, metric]."""
        mean_of_context = seasonal_mean[:, : context.shape[1]]
        missing = torch.isnan(context + mean_of_context)
        compared = (~missing).sum(dim=1)
        level, seasonal = masked_mean_and_deviations(mean_of_context, missing, compared)
        _, value = masked_mean_and_deviations(context, missing, compared)
        cross, seasonal_power, value_power = (
            (a * b).sum(dim=1) for a, b in ((seasonal, value), (seasonal, seasonal), (value, value))
        )
        least_amplitude = SMALLEST_AMPLITUDE * level.abs().double().clamp(min=1.0)
        points = INDEPENDENT_POINTS_PER_DAY * compared / self.spec.day_steps - FITTED_PARAMETERS
        finite = torch.isfinite(cross + seasonal_power + value_power)
        is_seasonal = finite & (points > 0) & (cross > 0) & (seasonal_power > compared * least_amplitude**2)
        slope = torch.where(is_seasonal, cross / seasonal_power, 0.0)
        explained = torch.where(is_seasonal, slope * cross / value_power, 0.0)
        chance = torch.where(explained > 0, (1.0 - explained) / (points * explained), 1.0)
        strength = slope.clamp(max=1.0) * (1.0 - chance).clamp(min=0.0)
        component = (seasonal_mean - level[:, None]) * strength[:, None]
        return strength, component.nan_to_num()

    def _window_scale(self, context: Tensor, missing: Tensor, profile: Tensor) -> Scale:
        """As windows._scale."""
        loc, scale, k = self._loc[profile], self._scale[profile], SCALE_PRIOR_STEPS
        n = (~missing).sum(dim=1)
        mean, deviations = masked_mean_and_deviations((context - loc[:, None]) / scale[:, None], missing, n)
        within = self._within[profile] / scale
        deviation = torch.sqrt(((deviations * deviations).sum(dim=1) + k * within**2) / (n + k))
        at = profile[:, None], self._metrics, n
        loc_weight, scale_weight = self._loc_weight[at], self._scale_weight[at]
        prior = torch.sqrt(1.0 - loc_weight + loc_weight * within**2)
        own, prior = (torch.log(width.clamp(min=SMALLEST_SCALE)) for width in (deviation, prior))
        relative_scale = torch.exp(prior + scale_weight * (own - prior))
        window_loc, window_scale = loc + scale * loc_weight * mean, scale * relative_scale
        position = torch.stack([(window_loc - loc) / scale, torch.log(window_scale / scale)], dim=-1)
        return Scale(window_loc, window_scale, self._prior_quantiles[at], position, torch.zeros_like(loc))

    def _target_scale(self, standardised: Standardised, plan: GpuPlan) -> TargetScale[Tensor]:
        quantiles = self._window_quantiles(standardised)
        return TargetScale(
            loc=standardised.scale.loc[:, None] + standardised.seasonal_ahead,
            scale=standardised.scale.scale,
            window_quantiles=quantiles.gather(1, plan.metric_order[..., None].expand_as(quantiles)),
        )

    def _window_quantiles(self, standardised: Standardised) -> Tensor:
        """As quantile_map.window_quantiles: [window, metric, knot]."""
        own = standardised.context.masked_fill(standardised.missing, torch.nan)
        ascending = own.transpose(1, 2).contiguous().sort(dim=2).values  # NaN last
        prior, measured = standardised.scale.quantiles, (~standardised.missing).sum(dim=1)[..., None]
        last = (measured - 1).clamp(min=0)
        position = last * self._knot_levels
        below = position.long()
        above = torch.minimum(below + 1, last)
        low, high = ascending.gather(2, below), ascending.gather(2, above)
        own = (low + (high - low) * (position - below)).nan_to_num()
        weight = measured / (measured + PRIOR_STEPS)
        shrunk = weight * own + (1.0 - weight) * prior
        gaps = shrunk.diff(dim=-1).clamp(min=SMALLEST_GAP)
        median = shrunk[..., MEDIAN_KNOT, None]
        upper = median + gaps[..., MEDIAN_KNOT:].cumsum(dim=-1)
        lower = median - gaps[..., :MEDIAN_KNOT].flip(-1).cumsum(dim=-1).flip(-1)
        return torch.cat([lower, median, upper], dim=-1).float()

    def _inputs(
        self, lags: SeasonalLags, standardised: Standardised, plan: GpuPlan, peers: PeerContext | None
    ) -> NetworkInputs[Tensor]:
        """The network's inputs, augmented."""
        encoder_steps = standardised.context.shape[1]
        calendar, market = self._calendar(plan.calendar_steps, encoder_steps)
        values = _quantise(torch.asinh(standardised.context)).nan_to_num()
        encoder = torch.stack([values, (~standardised.missing).float()], dim=-1)
        return NetworkInputs(
            profile=plan.profile,
            encoder_calendar=calendar[:, :encoder_steps],
            decoder_calendar=calendar[:, encoder_steps:],
            encoder_market=market[:, :encoder_steps],
            decoder_market=market[:, encoder_steps:],
            static=self._static_reals(standardised, plan, peers),
            encoder=_exchanged(encoder, plan.metric_order),
            decoder=_decoder_reals(lags, standardised, plan.metric_order),
        )

    def _static_reals(self, standardised: Standardised, plan: GpuPlan, peers: PeerContext | None) -> Tensor:
        """Static reals [window, 4 M + 2], with noise and in the plan's order of metrics."""
        scale, order = standardised.scale, plan.metric_order
        position = torch.stack([torch.asinh(scale.position[..., 0]), scale.position[..., 1]], dim=-1)
        position = position + plan.position_noise.view_as(position)
        measured = (~standardised.missing).float().sum(dim=1).mean(dim=1, keepdim=True)
        measured_share = torch.log1p(measured) / np.log1p(self.spec.context_steps)
        counts = measured.new_zeros(len(measured)) if peers is None else peers.largest
        peer_count = torch.log1p(counts)[:, None] / PEER_COUNT_SCALE
        ordered = _exchanged(position[:, None], order)[:, 0], standardised.strength.gather(1, order)
        return torch.cat([*ordered, measured_share, peer_count, scale.peer_weight], dim=1)

    def _calendar(self, calendar_steps: Tensor, encoder_steps: int) -> tuple[Tensor, Tensor]:
        """half_hour, day_kind [window, E + H, 2] and market open [window, E + H, 1]."""
        steps = torch.arange(1 - encoder_steps, self.spec.horizon_steps + 1, device=self.device)
        index = calendar_steps[:, None] + steps - self._first_calendar_step
        return self._half_hour_and_day[index], self._market_open[index]


def _decoder_reals(lags: SeasonalLags, standardised: Standardised, metric_order: Tensor) -> Tensor:
    """As windows._decoder_reals, in this order of metrics."""
    loc, scale = standardised.scale.loc[:, None], standardised.scale.scale[:, None]
    inputs = [
        torch.asinh((values - loc) / scale).nan_to_num()
        for values in (lags.latest - standardised.seasonal_ahead, lags.smoothed_mean)
    ]
    pairs = _exchanged(torch.stack(inputs, dim=-1), metric_order)
    return _quantise(torch.cat([pairs, lags.latest_share, lags.smoothed_mean_share], dim=2))


def _moving_sum(values: Tensor, width: int) -> Tensor:
    """Sum over `width` consecutive steps of axis 1."""
    return values.unfold(1, width, 1).sum(dim=-1)


def _quantise(values: Tensor) -> Tensor:
    """As windows.quantise."""
    return torch.round(values * INPUT_GRID) / INPUT_GRID


def _exchanged(pairs: Tensor, order: Tensor) -> Tensor:
    """[window, step, metric, 2] with metrics in another order and the pairs interleaved: [window, step, 2 * metric]."""
    index = order[:, None, :, None].expand_as(pairs)
    return pairs.gather(2, index).flatten(2)
