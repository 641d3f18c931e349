"""Scaling of windows: transformed values -> standardised values, and back.

1. bounded_transform.py maps each metric's physical range onto the real line.
2. *Profile statistics*, loc and scale of the profile's training servers, are the scale of a server without history.
3. A *window's own* loc and scale are shrunk toward the profile's (Efron & Morris 1975): without history the profile's
   are used, with a day of history the window's own. In between the window's mean has the learned shrinkage weight of
   cold_start.py, and the profile's scale narrows, as loc becomes known, from the deviation over all its servers to the
   typical deviation inside a window. The window's deviation has its own weight, on a log scale, so that a very quiet
   server keeps its small scale: a few minutes show a server's level, but seldom its range.
4. For a window with peers, both come from the current values of its peers (peer_prior.py) instead of the profile
   statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.definitions import Kind
from fleet_forecast.features.bound_width import choose_bound_width
from fleet_forecast.features.bounded_transform import BoundedTransform
from fleet_forecast.features.cold_start import (
    SMALLEST_SCALE,
    ColdStartPrior,
    ServersOfProfile,
    default_prior,
    expected_scale,
    fit_cold_start_priors,
    history_lengths,
    length_interpolation,
    shrunken_deviation,
)
from fleet_forecast.features.masked_statistics import dot_over_steps, masked_mean_and_deviations, repeat_over_steps
from fleet_forecast.features.peer_prior import PeerPrior
from fleet_forecast.features.quantile_map import KNOT_LEVELS

STATISTICS = ("loc", "scale", "scale_within", "loc_weight", "scale_weight", "quantiles")  # fields by profile


class WindowScale(NamedTuple):
    """loc and scale of windows, transformed: float32 [window, metric] each."""

    loc: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class FleetScaling:
    """Scales any window of any server; fitted on the training servers.

    metrics: names, in order. percent, bound_width: [metric], see BoundedTransform.
    profiles: names of the rows after row 0.
    loc, scale, scale_within: transformed, float32 [1 + profile, metric]; row 0 is the whole fleet, used for unknown and
        masked profiles. scale is the total deviation, scale_within the typical one inside a window.
    loc_weight, scale_weight: shrinkage weights of a window's own mean and deviation by number of measured steps,
        float32 [1 + profile, metric, length], at cold_start.history_lengths.
    context_steps: steps of a whole context.
    quantiles: prior of the window quantiles, standardised, float32 [1 + profile, metric, length, knot].
    peer_prior: of windows with peers; None: no window has peers.
    """

    metrics: tuple[str, ...]
    percent: np.ndarray
    bound_width: np.ndarray
    profiles: tuple[str, ...]
    loc: np.ndarray
    scale: np.ndarray
    scale_within: np.ndarray
    loc_weight: np.ndarray
    scale_weight: np.ndarray
    context_steps: int
    quantiles: np.ndarray
    peer_prior: PeerPrior | None = None

    @cached_property
    def bounds(self) -> BoundedTransform:
        """Physical units <-> transformed values."""
        return BoundedTransform(self.percent, self.bound_width)

    @cached_property
    def prior_by_steps(self) -> ColdStartPrior:
        """loc_weight, scale_weight, quantiles after 0, 1, 2, ... steps: [1 + profile, metric, 1 + context, ...]."""
        matrix = length_interpolation(self.context_steps)
        return ColdStartPrior(self.loc_weight @ matrix.T, self.scale_weight @ matrix.T, matrix @ self.quantiles)

    @cached_property
    def peer_prior_by_steps(self) -> PeerPrior:
        """The peer prior after 0, 1, 2, ... steps. Raises ValueError if there is none."""
        if self.peer_prior is None:
            raise ValueError("peer_prior: this scaling was fitted without peers")
        return self.peer_prior.by_steps(self.context_steps)

    def without_profiles(self) -> FleetScaling:
        """What fit_scaling returns for the same servers without profiles."""
        rows = {name: getattr(self, name)[:1] for name in STATISTICS}
        return replace(self, profiles=(), peer_prior=None, **rows)

    def profile_rows(self, profiles: np.ndarray) -> np.ndarray:
        """Names (None = unknown or masked) -> rows of the statistics; int64 [server]."""
        row_of = {name: row for row, name in enumerate(self.profiles, start=1)}
        return np.array([row_of.get(name, 0) for name in profiles], dtype=np.int64)

    def window_scale(self, context: np.ndarray, measured_steps: np.ndarray, profile_rows: np.ndarray) -> WindowScale:
        """Shrunken loc and scale of each window.

        context: [window, E, metric], transformed, NaN = not measured. measured_steps: float32 [window, metric].
        profile_rows: [window].
        """
        loc, scale = self.loc[profile_rows], self.scale[profile_rows]  # [window, metric]
        steps = context.shape[1]
        standardised = context - repeat_over_steps(loc, steps)
        standardised /= repeat_over_steps(scale, steps)
        mean, deviations = masked_mean_and_deviations(standardised, np.isnan(context), measured_steps)
        within = self.scale_within[profile_rows] / scale
        deviation = shrunken_deviation(dot_over_steps(deviations, deviations), measured_steps, within)
        at = self._index_by_steps(measured_steps, profile_rows)
        loc_weight, scale_weight = self.prior_by_steps.loc_weight[at], self.prior_by_steps.scale_weight[at]
        relative_scale = expected_scale(loc_weight, scale_weight, within, deviation)
        return WindowScale(
            (loc + scale * loc_weight * mean).astype(np.float32),
            (scale * relative_scale).astype(np.float32),
        )

    def prior_quantiles(self, measured_steps: np.ndarray, profile_rows: np.ndarray) -> np.ndarray:
        """Prior of the window quantiles: float32 [window, metric, knot]; arguments as in window_scale."""
        return self.prior_by_steps.quantiles[self._index_by_steps(measured_steps, profile_rows)]

    def _index_by_steps(self, measured_steps: np.ndarray, profile_rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Index of windows and metrics in prior_by_steps; more than a context counts as a whole one."""
        steps = np.minimum(measured_steps, self.context_steps).astype(np.int64)
        return profile_rows[:, None], np.arange(len(self.metrics)), steps

    def relative_to_profile(self, window: WindowScale, profile_rows: np.ndarray) -> WindowScale:
        """Loc and log-scale of windows in units of their profile's: static inputs of the network."""
        loc, scale = self.loc[profile_rows], self.scale[profile_rows]
        return WindowScale((window.loc - loc) / scale, np.log(window.scale / scale))


def fit_scaling(
    values: np.ndarray,
    kinds: Mapping[str, Kind],
    profiles: tuple[str | None, ...],
    context_steps: int,
    rows: np.ndarray | None = None,
) -> FleetScaling:
    """Fit bounded transform and profile statistics on training servers.

    values: float32 [server, step, metric] in physical units (training servers and days only), NaN = not measured.
    kinds: by metric, in their order.
    context_steps: length of a window in "the typical deviation inside a window".
    rows: the servers to fit on (all); `profiles` are those of these.
    """
    metrics, percent = tuple(kinds), np.array([kind == "percent" for kind in kinds.values()])
    chosen = slice(None) if rows is None else rows
    typical = np.array([_typical_level(values[..., index][chosen]) for index in range(len(metrics))])
    widths = [
        _bound_width(values[..., index][chosen], kind, typical[index], context_steps)
        for index, kind in enumerate(kinds.values())
    ]
    bound_width = np.array(widths, dtype=np.float32)
    names = tuple(sorted({name for name in profiles if name is not None}))
    owner = np.array([name if name is not None else "" for name in profiles])
    columns = []
    for index in range(len(metrics)):  # one at a time: all at once would be a second fleet in memory
        one = slice(index, index + 1)
        transform = BoundedTransform(percent[one], bound_width[one])
        transformed = transform.transform(values[..., one][chosen])[..., 0]
        smallest = SMALLEST_SCALE * min(1.0, typical[index])
        owners = [np.full(owner.shape, True), *(owner == name for name in names)]
        columns.append(_statistics([transformed[chosen] for chosen in owners], context_steps, smallest))
    table = _without_gaps(np.stack(columns, axis=-1), context_steps)  # [1 + profile, statistic, metric]
    ends = np.cumsum([1, 1, 1, *[len(history_lengths(context_steps))] * 2])
    fields = (field.swapaxes(1, 2) for field in np.split(table.astype(np.float32), ends, axis=1))
    loc, scale, within, loc_weight, scale_weight, quantiles = fields
    return FleetScaling(
        metrics=metrics,
        percent=percent,
        bound_width=bound_width,
        profiles=names,
        loc=loc[..., 0],
        scale=scale[..., 0],
        scale_within=within[..., 0],
        loc_weight=loc_weight,
        scale_weight=scale_weight,
        context_steps=context_steps,
        quantiles=quantiles.reshape(*quantiles.shape[:2], -1, len(KNOT_LEVELS)),
    )


def _bound_width(values: np.ndarray, kind: Kind, typical_level: float, context_steps: int) -> float:
    """Bound width of a metric; 0 for one without bounds."""
    if kind == "value":
        return 0.0
    return choose_bound_width(values, kind == "percent", typical_level, context_steps)


def _without_gaps(table: np.ndarray, context_steps: int) -> np.ndarray:
    """What a profile cannot provide (a metric never reported, a single server) the fleet does, or the default."""
    table = np.where(np.isfinite(table), table, table[0]).astype(np.float32)
    defaults = _concatenated(0, 0, 0, default_prior(context_steps))
    return np.where(np.isfinite(table), table, defaults[:, None])


def _typical_level(values: np.ndarray) -> float:
    """Median size of the measurements other than zero, 1.0 without any."""
    sizes = np.abs(values[(values > 0) | (values < 0)])
    return float(np.median(sizes)) if sizes.size else 1.0


def _statistics(groups: Sequence[np.ndarray], context_steps: int, smallest: float) -> list[np.ndarray]:
    """STATISTICS of one metric of the fleet and of each profile, concatenated; NaN where they are undefined.

    groups: transformed values of their servers, [server, step]. smallest: scale of a constant metric.
    """
    servers = [_servers_of_profile(values, context_steps, smallest) for values in groups]
    priors = fit_cold_start_priors(servers[0], servers[1:], context_steps)
    return [
        _concatenated(float(np.nanmean(values)), scale, within, prior)
        if len(values)
        else np.nan * _concatenated(0, 0, 0, default_prior(context_steps))
        for (values, scale, within), prior in zip(servers, priors, strict=True)
    ]


def _servers_of_profile(transformed: np.ndarray, context_steps: int, smallest: float) -> ServersOfProfile:
    """The servers that measured the metric, with their scale."""
    values = transformed[~np.isnan(transformed).all(axis=1)].astype(np.float64)
    if not len(values):
        return ServersOfProfile(values, smallest, smallest)
    scale = max(float(np.nanstd(values)), smallest)
    windows = max(1, values.shape[1] // context_steps)
    deviations = [
        float(np.std(part[~np.isnan(part)]))
        for server in values
        for part in np.array_split(server, windows)
        if np.count_nonzero(~np.isnan(part)) > 1
    ]
    within = max(float(np.median(deviations)) if deviations else scale, smallest)
    return ServersOfProfile(values, scale, within)


def _concatenated(loc: float, scale: float, within: float, prior: ColdStartPrior) -> np.ndarray:
    return np.concatenate([[loc, scale, within], *(field.ravel() for field in prior)])
