"""The windows of windows.py cut in torch, out of a fleet that stays in a GPU's memory.

A GPU trains a batch in less time than a processor takes to cut it. So the same windows are cut there: the same steps as
in windows.py and the modules it uses, in operators that never ask for a number back and have the same shapes in every
batch, so that all of it can be recorded and replayed (gradients.py). What is random is drawn by sampling.py: the same
plan gives the same batch on either side, but for rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fleet_forecast.features.cold_start import PRIOR_STEPS_OF_SPREAD, SMALLEST_SPREAD
from fleet_forecast.features.daily_rhythm import FITTED, FLAT, INDEPENDENT_POINTS
from fleet_forecast.features.earlier_days import DAILY_MEAN_DAYS, overlap
from fleet_forecast.features.quantile_map import LEVELS, MIDDLE, NARROWEST_GAP, PRIOR_STEPS
from fleet_forecast.features.windows import INPUT_GRID
from fleet_forecast.training.sampling import Plan, WindowSource


class ResidentPlan(NamedTuple):
    """sampling.Plan as tensors: profile is the row told, 0 where it is hidden."""

    rows: Tensor
    origins: Tensor
    known_steps: Tensor
    clock_origins: Tensor
    profile: Tensor
    order: Tensor
    noise: Tensor
    raised: Tensor

    def take_over(self, other: ResidentPlan) -> None:
        """Become the other plan, of as many windows, in the same memory."""
        for mine, theirs in zip(self, other, strict=True):
            mine.copy_(theirs, non_blocking=True)


class _Days(NamedTuple):
    """As earlier_days.EarlierDays."""

    usual: Tensor
    yesterday: Tensor
    around: Tensor
    yesterday_share: Tensor
    around_share: Tensor


class ResidentWindows:
    """Cuts the batches of a WindowSource on `device`."""

    def __init__(self, source: WindowSource, device: torch.device) -> None:
        self.spec, self.scaling, self.device = source.spec, source.scaling, device
        self._told = source.profile_rows
        self._first_step_in_calendar = source.first_step - source.calendar.first_step
        self._linked = torch.from_numpy(source.linked).to(device)
        self._half_hour_and_day = torch.from_numpy(source.calendar.half_hour_and_day).to(device)
        self._market_open = torch.from_numpy(source.calendar.market_open).to(device)
        statistics = source.scaling.centre, source.scaling.spread, source.scaling.spread_within
        self._centre, self._spread, self._within = (torch.from_numpy(table).to(device) for table in statistics)
        told = (torch.from_numpy(table).to(device) for table in source.scaling.after_steps)
        self._level_weight, self._spread_weight, self._prior_shape = told
        self._metrics = torch.arange(len(source.spec.metrics), device=device)
        self._levels = torch.tensor(LEVELS, dtype=torch.float64, device=device)

    def plan(self, plan: Plan) -> ResidentPlan:
        """The plan on the device; on a GPU the copies are under way when this returns."""
        whole = plan.rows, plan.origins, plan.known_steps, plan.clock_origins
        fields = (*whole, np.where(plan.hidden, 0, self._told[plan.rows]), plan.order, plan.noise, plan.raised)
        tensors = [torch.from_numpy(np.ascontiguousarray(field)) for field in fields]
        if self.device.type == "cuda":  # else the copy would wait for all that is queued
            tensors = [tensor.pin_memory() for tensor in tensors]
        return ResidentPlan(*(tensor.to(self.device, non_blocking=True) for tensor in tensors))

    def largest_input(self) -> int:
        """No scaled input of any window is larger, in steps of the input grid.

        A value lies no farther from a window's centre than twice the range of all, a lagged one without its rhythm or
        that of a server raised by 4 deviations of level_doubt.py than five times, and no window's spread is smaller
        than SMALLEST_SPREAD of its profile's.
        """
        measured = self._linked[~torch.isnan(self._linked)]
        values = torch.cat([measured, self._centre.flatten()])
        farthest = 5 * float(values.max() - values.min()) / (SMALLEST_SPREAD * float(self._spread.min()))
        return int(np.ceil(np.arcsinh(farthest) * INPUT_GRID)) + 1

    def cut(self, plan: ResidentPlan, encoder_steps: int) -> tuple[list[Tensor], Tensor]:
        """Fields of windows.Windows and the targets, as WindowSource.cut gives them."""
        spec = self.spec
        past = self._past(plan, encoder_steps)
        context = past[:, -encoder_steps:]  # [window, E, metric]
        days = self._earlier_days(past, encoder_steps)
        share, lift = self._daily_rhythm(context, days.usual)
        ahead = lift[:, encoder_steps:]
        context = context - lift[:, :encoder_steps]
        unknown = torch.isnan(context)
        centre, spread = self._scale(context, unknown, plan.profile)
        units = (context - centre[:, None]) / spread[:, None]
        forecast_centre = centre[:, None] + ahead
        calendar, market = self._calendar(plan.clock_origins, encoder_steps)
        static = self._static(unknown, centre, spread, share, plan)
        encoder = torch.stack([_on_grid(torch.asinh(units)).nan_to_num(), (~unknown).float()], dim=-1)
        decoder = torch.stack(
            [
                torch.asinh((values - centre[:, None]) / spread[:, None]).nan_to_num()
                for values in (days.yesterday - ahead, days.around)
            ],
            dim=-1,
        )
        future = self._take(plan.rows, plan.origins, 1, spec.horizon_steps) + plan.raised[:, None]
        targets = torch.asinh((future - forecast_centre) / spread[:, None])
        order = plan.order
        lags = [_exchanged(decoder, order), days.yesterday_share, days.around_share]
        windows = [
            plan.profile,
            calendar[:, :encoder_steps],
            calendar[:, encoder_steps:],
            market[:, :encoder_steps],
            market[:, encoder_steps:],
            static,
            _exchanged(encoder, order),
            _on_grid(torch.cat(lags, dim=2)),
            forecast_centre,
            spread,
            self._shape(units, unknown, plan.profile).gather(1, order[..., None].expand(-1, -1, len(LEVELS))),
        ]
        return windows, targets.gather(2, order[:, None].expand_as(targets))

    def _take(self, rows: Tensor, origins: Tensor, first: int, last: int) -> Tensor:
        """Steps origin + first .. origin + last of each window: [window, step, metric], NaN before the grid."""
        steps = self._linked.shape[1]
        index = origins[:, None] + torch.arange(first, last + 1, device=self.device)
        values = self._linked.flatten(0, 1)[rows[:, None] * steps + index.clamp(0, steps - 1)]
        return values.masked_fill((index < 0)[..., None], torch.nan)

    def _past(self, plan: ResidentPlan, encoder_steps: int) -> Tensor:
        """What each window may read, up to its origin: [window, step, metric], NaN before its known steps."""
        # A window that knows more than its encoder's steps has a whole context: sampling.draw_history.
        most = self.spec.history_steps if encoder_steps == self.spec.context_steps else encoder_steps
        past = self._take(plan.rows, plan.origins, 1 - most, 0) + plan.raised[:, None]
        withheld = torch.arange(most, 0, -1, device=self.device) > plan.known_steps[:, None]
        return past.masked_fill(withheld[..., None], torch.nan)

    def _earlier_days(self, past: Tensor, encoder_steps: int) -> _Days:
        """As earlier_days.earlier_days."""
        spec, half, length = self.spec, self.spec.half_width_steps, past.shape[1]
        horizon = spec.horizon_steps
        steps = encoder_steps + horizon + 2 * half
        first = length - encoder_steps - half - spec.yesterday_steps
        yesterday = past.new_full((len(past), horizon, past.shape[2]), torch.nan)
        there, here = overlap(first + half + encoder_steps, horizon, length)
        yesterday[:, there] = past[:, here]
        measured = ~torch.isnan(past)
        values = past.nan_to_num()
        total = past.new_zeros(len(past), steps, past.shape[2])
        count = torch.zeros_like(total)
        for begin in range(first, first - DAILY_MEAN_DAYS * spec.day_steps, -spec.day_steps):
            there, here = overlap(begin, steps, length)
            total[:, there] += values[:, here]
            count[:, there] += measured[:, here]
        ahead = [_moving_sum(part[:, encoder_steps:], 2 * half + 1) for part in (total, count)]
        return _Days(
            usual=(total / count)[:, half : half + encoder_steps + horizon],
            yesterday=yesterday,
            around=ahead[0] / ahead[1],
            yesterday_share=(~torch.isnan(yesterday)).float().mean(dim=2, keepdim=True),
            around_share=ahead[1].mean(dim=2, keepdim=True) / ((2 * half + 1) * DAILY_MEAN_DAYS),
        )

    def _daily_rhythm(self, context: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
        """As daily_rhythm.daily_rhythm: share [window, metric], lift [window, step, metric]."""
        before = usual[:, : context.shape[1]]
        unknown = torch.isnan(context + before)
        compared = (~unknown).sum(dim=1)
        level, swing = _centred(before, unknown, compared)
        _, value = _centred(context, unknown, compared)
        together, of_usual, of_values = (
            (a * b).sum(dim=1) for a, b in ((swing, value), (swing, swing), (value, value))
        )
        least_swing = FLAT * level.abs().double().clamp(min=1.0)
        points = INDEPENDENT_POINTS * compared / self.spec.day_steps - FITTED
        finite = torch.isfinite(together + of_usual + of_values)
        has_rhythm = finite & (points > 0) & (together > 0) & (of_usual > compared * least_swing**2)
        slope = torch.where(has_rhythm, together / of_usual, 0.0)
        explained = torch.where(has_rhythm, slope * together / of_values, 0.0)
        chance = torch.where(explained > 0, (1.0 - explained) / (points * explained), 1.0)
        share = slope.clamp(max=1.0) * (1.0 - chance).clamp(min=0.0)
        lift = (usual - level[:, None]) * share[:, None]
        return share, lift.nan_to_num()

    def _scale(self, context: Tensor, unknown: Tensor, profile: Tensor) -> tuple[Tensor, Tensor]:
        """As FleetScaling.window_scale: centre and spread [window, metric]."""
        centre, spread, k = self._centre[profile], self._spread[profile], PRIOR_STEPS_OF_SPREAD
        n = (~unknown).sum(dim=1)
        mean, rest = _centred((context - centre[:, None]) / spread[:, None], unknown, n)
        within = self._within[profile] / spread
        deviation = torch.sqrt(((rest * rest).sum(dim=1) + k * within**2) / (n + k))
        where = profile[:, None], self._metrics, n
        weight, weight_of_spread = self._level_weight[where], self._spread_weight[where]
        usual = torch.sqrt(1.0 - weight + weight * within**2)
        own, usual = (torch.log(width.clamp(min=SMALLEST_SPREAD)) for width in (deviation, usual))
        width = torch.exp(usual + weight_of_spread * (own - usual))
        return centre + spread * weight * mean, spread * width

    def _static(self, unknown: Tensor, centre: Tensor, spread: Tensor, share: Tensor, plan: ResidentPlan) -> Tensor:
        """Static reals [window, 3 M + 1], blurred and in the plan's order."""
        own_centre, own_spread = self._centre[plan.profile], self._spread[plan.profile]
        position = torch.stack(
            [torch.asinh((centre - own_centre) / own_spread), torch.log(spread / own_spread)], dim=-1
        )
        position = position + plan.noise.view_as(position)
        known = (~unknown).float().sum(dim=1).mean(dim=1, keepdim=True)
        measured_share = torch.log1p(known) / np.log1p(self.spec.context_steps)
        return torch.cat(
            [_exchanged(position[:, None], plan.order)[:, 0], share.gather(1, plan.order), measured_share], dim=1
        )

    def _shape(self, units: Tensor, unknown: Tensor, profile: Tensor) -> Tensor:
        """As window_shape.window_shape: [window, metric, level]."""
        ascending = units.transpose(1, 2).contiguous().sort(dim=2).values  # NaN last
        steps = (~unknown).sum(dim=1)
        prior, known = self._prior_shape[profile[:, None], self._metrics, steps], steps[..., None]
        last = (known - 1).clamp(min=0)
        place = last * self._levels
        below = place.long()
        above = torch.minimum(below + 1, last)
        low, high = ascending.gather(2, below), ascending.gather(2, above)
        own = (low + (high - low) * (place - below)).nan_to_num()
        weight = known / (known + PRIOR_STEPS)
        shape = weight * own + (1.0 - weight) * prior
        gaps = shape.diff(dim=-1).clamp(min=NARROWEST_GAP)
        middle = shape[..., MIDDLE, None]
        upper = middle + gaps[..., MIDDLE:].cumsum(dim=-1)
        lower = middle - gaps[..., :MIDDLE].flip(-1).cumsum(dim=-1).flip(-1)
        return torch.cat([lower, middle, upper], dim=-1).float()

    def _calendar(self, clock_origins: Tensor, encoder_steps: int) -> tuple[Tensor, Tensor]:
        """half_hour, day_kind [window, E + H, 2] and market open [window, E + H, 1]."""
        steps = torch.arange(1 - encoder_steps, self.spec.horizon_steps + 1, device=self.device)
        index = clock_origins[:, None] + steps + self._first_step_in_calendar
        return self._half_hour_and_day[index], self._market_open[index]


def _centred(values: Tensor, unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """As scaling.centred."""
    values = values.masked_fill(unknown, 0.0)
    mean = values.sum(dim=1) / known.clamp(min=1)
    return mean, (values - mean[:, None]).masked_fill(unknown, 0.0)


def _moving_sum(values: Tensor, width: int) -> Tensor:
    """As earlier_days: sum over `width` consecutive steps of axis 1."""
    return values.unfold(1, width, 1).sum(dim=-1)


def _on_grid(scaled: Tensor) -> Tensor:
    """As windows.on_grid."""
    return torch.round(scaled * INPUT_GRID) / INPUT_GRID


def _exchanged(pairs: Tensor, order: Tensor) -> Tensor:
    """[window, step, metric, 2] with the metrics in another order and the pairs side by side: [window, step, 2 * m]."""
    index = order[:, None, :, None].expand_as(pairs)
    return pairs.gather(2, index).flatten(2)
