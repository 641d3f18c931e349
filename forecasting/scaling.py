"""Scaling that works for strangers: physical units -> link space -> profile units -> window units, and back.

1. A *link* maps each metric's physical range onto the real line, increasing: the identity but for a strip
   along each bound (0, and 100 for percentages), where it turns logarithmic. Metrics do sit at a bound exactly (an idle
   disk writes 0 MB/s), so the bound is at a finite place of the link and all beyond it is the bound too: a censored
   variable (Tobin 1958). Going back keeps any forecast within the physical range by construction.
2. *Profile statistics* (centre and spread of the profile's training servers in link space) standardise the metric, so
   that a server without any history is already on a sensible scale.
3. The *window's own* centre and spread are shrunk toward the profile's: with n measured steps of the context the
   window's own mean has weight n / (n + k), and its deviation enters with the same weight on a log scale (a geometric
   mean, so that a very quiet server keeps its small scale). With no history the profile speaks alone; with a day of it
   mostly the server. k is estimated per profile and metric as in a random-effects model (Efron & Morris 1975): it is
   the history at which a window's mean tells as much about the server as its profile does. Where servers differ little
   and swing a lot over the day, a few hours prove nothing and k is large; where they differ a lot it is small. It falls
   to almost nothing as the history fills the context, a day, over which the daily swing averages out. The spread has a
   k of its own: a few minutes may tell a server's level, but seldom how far it will swing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from forecasting.measured import at_each_step, centred, counted, products_summed
from forecasting.window_shape import LEVELS

PERCENT_STRIP = 20.0  # percentage points: width of the strips along 0 and 100 % (better than 5 and 0.5 on Bitbrains)
RATE_STRIP = 0.02  # the same for rates and latencies along 0, as a share of the metric's typical level in the fleet
BOUND = 0.05  # in strips: how far inside the link's open range the bound itself is put
SMALLEST_SPREAD = 1e-3  # in profile units: a constant series keeps this scale
LEAST_SHRINKAGE = 3.0  # steps, with a whole context measured
MOST_SHRINKAGE_CONTEXTS = 2.0  # of the context
SHRINKAGE_WINDOWS = 4  # parts of the context over which k is estimated
LINKED_AT_ONCE = 2**20  # values, so that what is in between takes little memory
STATISTICS = ("centre", "spread", "spread_within", "shrinkage_steps", "spread_shrinkage_steps", "shape")  # by profile
QUANTILE_VALUES = 2**20  # of a metric that its quantiles are taken of, about
PRIOR_STEPS_OF_SPREAD = 2.0  # a deviation measured on few steps is averaged with this many steps of the profile's


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
    shrinkage_steps, spread_shrinkage_steps: the k above for short histories, in measured steps, of the centre and of
        the spread: float32 [1 + profile, metric].
    context_steps: measured steps from which on k is LEAST_SHRINKAGE.
    shape: quantiles at window_shape.LEVELS of what the servers measure, in `spread`s from `centre`: float32
        [1 + profile, metric, level].
    """

    metrics: tuple[str, ...]
    percent: np.ndarray
    strip: np.ndarray
    profiles: tuple[str, ...]
    centre: np.ndarray
    spread: np.ndarray
    spread_within: np.ndarray
    shrinkage_steps: np.ndarray
    spread_shrinkage_steps: np.ndarray
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

    def without_profiles(self) -> FleetScaling:
        """What fit_scaling gives for the same servers if their profiles are not told."""
        return replace(self, profiles=(), **{name: getattr(self, name)[:1] for name in STATISTICS})

    def profile_rows(self, profiles: np.ndarray) -> np.ndarray:
        """Names (None = hidden or unknown) -> rows of `centre`, `spread`; int64 [server]."""
        row_of = {name: row for row, name in enumerate(self.profiles, start=1)}
        return np.array([row_of.get(name, 0) for name in profiles], dtype=np.int64)

    def window_scale(self, linked_context: np.ndarray, profile_rows: np.ndarray) -> WindowScale:
        """Shrunken centre and spread of each window.

        linked_context: [window, encoder_step, metric] in link space, NaN = not measured. profile_rows: [window].
        """
        centre, spread = self.centre[profile_rows], self.spread[profile_rows]  # [window, metric]
        unknown = np.isnan(linked_context)
        steps = linked_context.shape[1]
        n = steps - counted(unknown)
        units = linked_context - at_each_step(centre, steps)
        units /= at_each_step(spread, steps)
        mean, rest = centred(units, unknown, n)
        squares = products_summed(rest, rest)
        within = self.spread_within[profile_rows] / spread
        deviation = np.sqrt((squares + PRIOR_STEPS_OF_SPREAD * within**2) / (n + PRIOR_STEPS_OF_SPREAD))
        missing_share = np.maximum(1.0 - n / self.context_steps, 0.0)
        weight, weight_of_spread = (
            n / (n + LEAST_SHRINKAGE + (k[profile_rows] - LEAST_SHRINKAGE) * missing_share)
            for k in (self.shrinkage_steps, self.spread_shrinkage_steps)
        )
        width = np.exp(weight_of_spread * np.log(np.maximum(deviation, SMALLEST_SPREAD)))
        return WindowScale(
            (centre + spread * weight * mean).astype(np.float32),
            (spread * width).astype(np.float32),
        )

    def in_profile_units(self, scale: WindowScale, profile_rows: np.ndarray) -> WindowScale:
        """The same centre and log-spread relative to the profile: what the network is told as static reals."""
        centre, spread = self.centre[profile_rows], self.spread[profile_rows]
        return WindowScale((scale.centre - centre) / spread, np.log(scale.spread / spread))


def fit_scaling(
    values: np.ndarray,
    metrics: tuple[str, ...],
    percent: np.ndarray,
    profiles: tuple[str | None, ...],
    window_steps: int,
    shrinkage_steps: float | None = None,
    rows: np.ndarray | None = None,
) -> FleetScaling:
    """Fit links and profile statistics on training servers.

    values: float32 [server, step, metric] in physical units (training servers and days only), NaN = not measured.
    window_steps: length over which "the usual deviation inside a window" is taken (the context).
    shrinkage_steps: one k for all profiles and metrics instead of the estimated ones.
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
        fields = (0 * unit, unit, unit, unit, unit, window_steps, unit)
        link = FleetScaling(metrics[one], percent[one], strip[one], (), *fields)
        linked = link.to_link(values[..., one][chosen])[..., 0]
        own = [_statistics(linked[owner == name], window_steps) for name in names]
        columns.append([_statistics(linked, window_steps), *own])
    table = np.stack(columns, axis=-1)  # [1 + profile, statistic, metric]
    fleet = table[0]
    # What a profile's servers cannot tell (a metric never reported, differences with a single server) the fleet does.
    table = np.where(np.isfinite(table), table, fleet).astype(np.float32)
    centre, spread, within, *ks = table[:, :5].swapaxes(0, 1)
    ks = [
        np.full_like(k, shrinkage_steps)
        if shrinkage_steps is not None
        else np.where(np.isfinite(k), k, LEAST_SHRINKAGE)
        for k in ks
    ]
    shape = table[:, 5:].swapaxes(1, 2)
    return FleetScaling(metrics, percent, strip, names, centre, spread, within, ks[0], ks[1], window_steps, shape)


def _one_minus_exp_minus(values: np.ndarray) -> np.ndarray:
    """1 - exp(-values), in place."""
    np.negative(values, out=values)
    np.exp(values, out=values)
    return np.subtract(1.0, values, out=values)


def _typical_level(values: np.ndarray) -> float:
    """Median of the positive measurements, 1.0 if there is none."""
    positive = values[values > 0]
    return float(np.median(positive)) if positive.size else 1.0


def _statistics(linked: np.ndarray, window_steps: int) -> np.ndarray:
    """Centre, total deviation, usual one inside a window, both k and quantiles of one metric over [server, step]."""
    column = linked[~np.isnan(linked).all(axis=1)].astype(np.float64)
    if column.size == 0:
        return np.full(5 + len(LEVELS), np.nan)
    spread = max(float(np.nanstd(column)), SMALLEST_SPREAD)
    windows = max(1, column.shape[1] // window_steps)
    deviations = [
        _deviation(part[~np.isnan(part)])
        for server in column
        for part in np.array_split(server, windows)
        if np.count_nonzero(~np.isnan(part)) > 1
    ]
    within = max(float(np.median(deviations)) if deviations else spread, SMALLEST_SPREAD)
    centre, ks = np.nanmean(column), _shrinkage_steps(column, window_steps)
    some = column[:, :: column.size // QUANTILE_VALUES | 1]  # an odd stride meets every time of day
    return np.array([centre, spread, within, *ks, *(np.nanquantile(some, LEVELS) - centre) / spread])


def _shrinkage_steps(column: np.ndarray, window_steps: int) -> tuple[float, float]:
    """Both k of one metric over [server, step], of centre and spread, NaN if fewer than two servers can be compared.

    Over windows of n steps (a quarter of the context), with B the variance between servers' long-run means and W the
    variance of a server's window means around its own, the best weight of a window's mean is B / (B + W): what
    window_scale gives it with the k returned. For the centre, W is that of the median server: a few that swing widely
    are no reason to distrust the level the others show. For the spread it is the mean, as these few are why it should
    not be thought narrow too soon.
    """
    n = max(1, window_steps // SHRINKAGE_WINDOWS)
    windows = column[:, : column.shape[1] // n * n].reshape(len(column), -1, n)
    count = (~np.isnan(windows)).sum(axis=2)
    means = np.where(count > n // 2, np.nansum(windows, axis=2) / np.maximum(count, 1), np.nan)
    means = means[(~np.isnan(means)).sum(axis=1) > 1]
    if len(means) < 2:
        return float("nan"), float("nan")
    own_windows = (~np.isnan(means)).sum(axis=1)
    variances = np.nanvar(means, axis=1, ddof=1)
    between = float(np.var(np.nanmean(means, axis=1), ddof=1) - np.mean(variances / own_windows))
    usual, mean = (_k(float(within), between, n, window_steps) for within in (np.median(variances), np.mean(variances)))
    return usual, mean


def _k(within: float, between: float, n: int, window_steps: int) -> float:
    most = MOST_SHRINKAGE_CONTEXTS * window_steps
    if between <= 0:
        return most
    missing_share = 1.0 - n / window_steps if window_steps > n else 1.0
    k = LEAST_SHRINKAGE + (n * within / between - LEAST_SHRINKAGE) / missing_share
    return min(max(k, LEAST_SHRINKAGE), most)


def _deviation(values: np.ndarray) -> float:
    return float(np.std(values))
