"""Scaling that works for strangers: physical units -> link space -> profile units -> window units, and back.

1. A *link* maps each metric's physical range onto the real line, increasing: the identity but for a strip
   along each bound (0, and 100 for percentages), where it turns logarithmic. Metrics do sit at a bound exactly (an idle
   disk writes 0 MB/s), so the bound is at a finite place of the link and all beyond it is the bound too: a censored
   variable (Tobin 1958). Going back keeps any forecast within the physical range by construction.
2. *Profile statistics* (centre and spread of the profile's training servers in link space) standardise the metric, so
   that a server without any history is already on a sensible scale.
3. The *window's own* centre and spread are shrunk toward the profile's (Efron & Morris 1975): with no history the
   profile speaks alone, with a day of it the server. In between, the window's own mean has the weight that would have
   forecast the profile's servers best (short_history.py), and the profile's spread narrows as the level gets known,
   from that of all its servers to the usual one inside a window. The window's own deviation enters with a weight of its
   own, on a log scale (a geometric mean, so that a very quiet server keeps its small scale): a few minutes may tell a
   server's level, but seldom how far it will swing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.cold_start import (
    SMALLEST_SPREAD,
    ShortHistory,
    between_lengths,
    expected_spread,
    incomparable,
    lengths,
    own_deviation,
    short_history,
)
from fleet_forecast.features.masked_statistics import at_each_step, centred, products_summed
from fleet_forecast.features.quantile_map import LEVELS

PERCENT_STRIP = 20.0  # percentage points: width of the strips along 0 and 100 % (better than 5 and 0.5 on Bitbrains)
RATE_STRIP = 0.02  # the same for rates and latencies along 0, as a share of the metric's typical level in the fleet
BOUND = 0.05  # in strips: how far inside the link's open range the bound itself is put
LINKED_AT_ONCE = 2**20  # values, so that what is in between takes little memory
STATISTICS = ("centre", "spread", "spread_within", "level_weight", "spread_weight", "shape")  # by profile


class WindowScale(NamedTuple):
    """Where a window lies and how wide it is, in link space: float32 [window, metric] each."""

    centre: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class FleetScaling:
    """Everything needed to scale any window of any server; fitted once on the training servers.

    metrics: names, in order. percent: True where the metric is a percentage [metric].
    strip: width of the strip along each bound in physical units [metric].
    centre, spread, spread_within: link space, float32 [1 + profile, metric]; row 0 is the whole fleet, used for
        unknown and hidden profiles. spread is the total deviation, spread_within the usual one inside a window.
    profiles: names of the rows after row 0.
    level_weight, spread_weight: of a window's own mean and deviation, by how many steps it has measured: float32
        [1 + profile, metric, length], at short_history.lengths.
    context_steps: of a whole context.
    shape: quantiles at window_shape.LEVELS of what follows so many steps, in spreads from the centre of a window:
        float32 [1 + profile, metric, length, level].
    """

    metrics: tuple[str, ...]
    percent: np.ndarray
    strip: np.ndarray
    profiles: tuple[str, ...]
    centre: np.ndarray
    spread: np.ndarray
    spread_within: np.ndarray
    level_weight: np.ndarray
    spread_weight: np.ndarray
    context_steps: int
    shape: np.ndarray

    def to_link(self, values: np.ndarray) -> np.ndarray:
        """Physical units [..., metric] -> link space [..., metric], float32; NaN stays NaN."""
        if values.ndim == 1 or values.size <= LINKED_AT_ONCE:
            return self._linked(values)
        linked = np.empty(values.shape, dtype=np.float32)
        rows = max(1, len(values) * LINKED_AT_ONCE // values.size)
        for first in range(0, len(values), rows):
            linked[first : first + rows] = self._linked(values[first : first + rows])
        return linked

    def _linked(self, values: np.ndarray) -> np.ndarray:
        # Single precision, in place, on long rows, and one log of a quotient: this runs over every step of a history.
        # Both parts of the quotient are at least 1 - exp(-BOUND / 2): no more than two digits of seven cancel.
        rows = values.reshape(len(values), -1) if values.ndim > 1 else values[None]
        scale, hundred, strip = (
            np.tile(of_metric.astype(np.float32), rows.shape[1] // len(self.metrics))
            for of_metric in (self._inside / self.strip, self._hundred, self.strip)
        )
        inside = np.multiply(rows, scale, dtype=np.float32)
        inside += np.float32(BOUND)
        from_upper = np.maximum(hundred - inside, BOUND / 2)  # never below but by rounding; inf for a rate
        linked = _one_minus_exp_minus(inside.copy())
        linked /= _one_minus_exp_minus(from_upper)
        np.log(linked, out=linked)
        linked += inside
        linked *= strip
        return linked.reshape(values.shape)

    def from_link(self, linked: np.ndarray) -> np.ndarray:
        """Link space [..., metric] -> physical units [..., metric], within [0, 100] or [0, inf)."""
        strips = linked / self.strip
        inside = np.logaddexp(0.0, strips) - np.logaddexp(0.0, strips - self._hundred)
        values = np.clip((inside - BOUND) / self._inside, 0.0, self._hundred)
        return (self.strip * values).astype(np.float32, copy=False)

    @property
    def _hundred(self) -> np.ndarray:
        """The upper bound in strips, inf where there is none: float32 [metric]."""
        return np.where(self.percent, 100.0 / self.strip, np.inf).astype(np.float32)

    @property
    def _inside(self) -> np.ndarray:
        """How much the range shrinks to leave room for the bounds inside the link's open range: float32 [metric]."""
        return np.where(self.percent, 1.0 - 2.0 * BOUND * self.strip / 100.0, 1.0).astype(np.float32)

    @cached_property
    def after_steps(self) -> ShortHistory:
        """level_weight, spread_weight and shape after 0, 1, 2, ... steps: [1 + profile, metric, 1 + context, ...]."""
        shares = between_lengths(self.context_steps)
        return ShortHistory(self.level_weight @ shares.T, self.spread_weight @ shares.T, shares @ self.shape)

    def without_profiles(self) -> FleetScaling:
        """What fit_scaling gives for the same servers if their profiles are not told."""
        return replace(self, profiles=(), **{name: getattr(self, name)[:1] for name in STATISTICS})

    def profile_rows(self, profiles: np.ndarray) -> np.ndarray:
        """Names (None = hidden or unknown) -> rows of `centre`, `spread`; int64 [server]."""
        row_of = {name: row for row, name in enumerate(self.profiles, start=1)}
        return np.array([row_of.get(name, 0) for name in profiles], dtype=np.int64)

    def window_scale(
        self, linked_context: np.ndarray, measured_steps: np.ndarray, profile_rows: np.ndarray
    ) -> WindowScale:
        """Shrunken centre and spread of each window.

        linked_context: [window, encoder_step, metric] in link space, NaN = not measured. measured_steps: how many are
        measured, float32 [window, metric]. profile_rows: [window].
        """
        centre, spread = self.centre[profile_rows], self.spread[profile_rows]  # [window, metric]
        steps = linked_context.shape[1]
        units = linked_context - at_each_step(centre, steps)
        units /= at_each_step(spread, steps)
        mean, rest = centred(units, np.isnan(linked_context), measured_steps)
        within = self.spread_within[profile_rows] / spread
        deviation = own_deviation(products_summed(rest, rest), measured_steps, within)
        where = self._after(measured_steps, profile_rows)
        level_weight, spread_weight = self.after_steps.level_weight[where], self.after_steps.spread_weight[where]
        width = expected_spread(level_weight, spread_weight, within, deviation)
        return WindowScale(
            (centre + spread * level_weight * mean).astype(np.float32),
            (spread * width).astype(np.float32),
        )

    def prior_shape(self, measured_steps: np.ndarray, profile_rows: np.ndarray) -> np.ndarray:
        """The shape each window is drawn toward: float32 [window, metric, level]; arguments as in window_scale."""
        return self.after_steps.shape[self._after(measured_steps, profile_rows)]

    def _after(self, measured_steps: np.ndarray, profile_rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Where a window's metrics are found in after_steps; more than a context is as good as a whole one."""
        steps = np.minimum(measured_steps, self.context_steps).astype(np.int64)
        return profile_rows[:, None], np.arange(len(self.metrics)), steps

    def in_profile_units(self, scale: WindowScale, profile_rows: np.ndarray) -> WindowScale:
        """The same centre and log-spread relative to the profile: what the network is told as static reals."""
        centre, spread = self.centre[profile_rows], self.spread[profile_rows]
        return WindowScale((scale.centre - centre) / spread, np.log(scale.spread / spread))


def fit_scaling(
    values: np.ndarray,
    metrics: tuple[str, ...],
    percent: np.ndarray,
    profiles: tuple[str | None, ...],
    context_steps: int,
    rows: np.ndarray | None = None,
) -> FleetScaling:
    """Fit links and profile statistics on training servers.

    values: float32 [server, step, metric] in physical units (training servers and days only), NaN = not measured.
    context_steps: length over which "the usual deviation inside a window" is taken.
    rows: the servers to fit on (all); `profiles` are those of these.
    """
    chosen = slice(None) if rows is None else rows
    typical = np.array([_typical_level(values[..., index][chosen]) for index in range(len(metrics))])
    strip = np.where(percent, PERCENT_STRIP, RATE_STRIP * typical).astype(np.float32)
    names = tuple(sorted({name for name in profiles if name is not None}))
    owner = np.array([name if name is not None else "" for name in profiles])
    columns = []
    for index in range(len(metrics)):  # one after the other: all at once would be a second fleet in memory
        one, unit = slice(index, index + 1), np.ones((1, 1))
        link = FleetScaling(
            metrics[one], percent[one], strip[one], (), unit, unit, unit, unit, unit, context_steps, unit
        )
        linked = link.to_link(values[..., one][chosen])[..., 0]
        smallest = SMALLEST_SPREAD * min(1.0, typical[index])
        own = [_statistics(linked[owner == name], context_steps, smallest) for name in names]
        columns.append([_statistics(linked, context_steps, smallest), *own])
    table = np.stack(columns, axis=-1)  # [1 + profile, statistic, metric]
    fleet = table[0]
    # What a profile's servers cannot tell (a metric never reported, differences with a single server) the fleet does.
    table = np.where(np.isfinite(table), table, fleet).astype(np.float32)
    table = np.where(np.isfinite(table), table, _side_by_side(0, 0, 0, incomparable(context_steps))[:, None])
    ends = np.cumsum([1, 1, 1, *[len(lengths(context_steps))] * 2])
    fields = (field.swapaxes(1, 2) for field in np.split(table.astype(np.float32), ends, axis=1))
    centre, spread, within, level_weight, spread_weight, shape = fields
    return FleetScaling(
        metrics, percent, strip, names, centre[..., 0], spread[..., 0], within[..., 0], level_weight, spread_weight,
        context_steps, shape.reshape(*shape.shape[:2], -1, len(LEVELS)),
    )  # fmt: skip


def _one_minus_exp_minus(values: np.ndarray) -> np.ndarray:
    """1 - exp(-values), in place."""
    np.negative(values, out=values)
    np.exp(values, out=values)
    return np.subtract(1.0, values, out=values)


def _typical_level(values: np.ndarray) -> float:
    """Median of the positive measurements, 1.0 if there is none."""
    positive = values[values > 0]
    return float(np.median(positive)) if positive.size else 1.0


def _statistics(linked: np.ndarray, context_steps: int, smallest: float) -> np.ndarray:
    """One metric's fields of STATISTICS over [server, step], side by side, NaN where nothing can be said.

    smallest: spread, in link space, of a metric that does not change.
    """
    column = linked[~np.isnan(linked).all(axis=1)].astype(np.float64)
    if column.size == 0:
        return _side_by_side(0, 0, 0, incomparable(context_steps)) + np.nan
    spread = max(float(np.nanstd(column)), smallest)
    windows = max(1, column.shape[1] // context_steps)
    deviations = [
        _deviation(part[~np.isnan(part)])
        for server in column
        for part in np.array_split(server, windows)
        if np.count_nonzero(~np.isnan(part)) > 1
    ]
    within = max(float(np.median(deviations)) if deviations else spread, smallest)
    told = short_history(column, spread, within, context_steps)
    return _side_by_side(float(np.nanmean(column)), spread, within, told)


def _side_by_side(centre: float, spread: float, within: float, told: ShortHistory) -> np.ndarray:
    return np.concatenate([[centre, spread, within], *(field.ravel() for field in told)])


def _deviation(values: np.ndarray) -> float:
    return float(np.std(values))
