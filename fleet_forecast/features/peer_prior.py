"""Peer prior: loc, scale and quantiles of a window from its peers, by number of own measured steps.

The seasonally adjusted level of the peers over the context is the base. A server's level relative to its peers, the
relative level, is shrunk by a learned weight. The scale is the usual error, adjusted with learned weights for how much
the peers' level and the server's own values deviate in this context. The weights, the usual error and the quantiles
of what follows are fitted on windows of the training servers in which only n own steps are known and the server is not
among its peers (leave-one-out cross-validation, Stone 1974). Between servers of a load-balanced profile the weight of
the relative level is small; between servers that share no load it is near 1. How alike servers are changes over weeks,
so the windows are of the later half of the training period. With fewer peers than in these windows the prior is less
certain (fewer_peers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.bounded_transform import BoundedTransform
from fleet_forecast.features.cold_start import (
    history_lengths,
    least_absolute_deviation_weight,
    length_interpolation,
    shrunken_deviation,
)
from fleet_forecast.features.fewer_peers import PeerNoise, level_variance, own_weight, wider_error
from fleet_forecast.features.history import future_values, past_values
from fleet_forecast.features.masked_statistics import (
    count_over_steps,
    dot_over_steps,
    masked_mean_and_deviations,
)
from fleet_forecast.features.peers import FleetPeers, peer_counts, peer_levels, splice
from fleet_forecast.features.quantile_map import KNOT_LEVELS
from fleet_forecast.features.seasonality import LagSteps, seasonal_component, seasonal_lags

MAX_WINDOWS = 600  # sampled for each profile; more hardly change the weights
FEWEST_WINDOWS = 20  # with a relative level and values after it; with fewer there is no prior
ORIGINS_PER_CONTEXT = 8
NORMAL_DEVIATION = 1.4826  # standard deviation of a normal distribution in units of its median absolute deviation
SEED = 0


class PeerPrior(NamedTuple):
    """By profile, metric and number of own measured steps, at cold_start.history_lengths; NaN for rows without peers.

    level_weight: of the relative level, 0 to 1. error_scale: usual root mean square of what follows around loc,
    transformed. usual_deviation: of the peers' level over a context, transformed. peer_scale_weight: of the peers'
    deviation relative to the usual one, on a log scale, 0 to 1. scale_weight: of the own deviation, likewise. Each is
    float32 [1 + profile, metric, length]; row 0, the unknown profile, has no peers. quantiles: of (what follows - loc)
    / scale, float32 [1 + profile, metric, length, knot]. noise: of the peers' level.
    """

    level_weight: np.ndarray
    error_scale: np.ndarray
    usual_deviation: np.ndarray
    peer_scale_weight: np.ndarray
    scale_weight: np.ndarray
    quantiles: np.ndarray
    noise: PeerNoise

    def by_steps(self, context_steps: int) -> PeerPrior:
        """The fields after 0, 1, 2, ... measured steps: [1 + profile, metric, 1 + context, ...]."""
        matrix = length_interpolation(context_steps)
        return PeerPrior(
            self.level_weight @ matrix.T,
            np.exp(np.log(self.error_scale) @ matrix.T),
            np.exp(np.log(self.usual_deviation) @ matrix.T),
            self.peer_scale_weight @ matrix.T,
            self.scale_weight @ matrix.T,
            matrix @ self.quantiles,
            self.noise,
        )

    @property
    def exists(self) -> np.ndarray:
        """Whether there is a prior: boolean [1 + profile, metric]."""
        return np.asarray(~np.isnan(self.error_scale[..., 0]))

    @property
    def has_peers(self) -> np.ndarray:
        """Whether any metric has a prior: boolean [1 + profile]."""
        return np.asarray(self.exists.any(axis=1))


class RelativeToPeers(NamedTuple):
    """A window's own values relative to its peers, seasonally adjusted; float32 [window, metric].

    base: mean level of the peers over the context, NaN without peers. base_squares: sum of squares of their level
    around it. base_steps: steps with peers. relative: own level minus base, 0 without own values. squares: sum of
    squares of the own values around their mean. measured_steps: of the context. mean_count: of peers, see PeerCounts.
    """

    base: np.ndarray
    base_squares: np.ndarray
    base_steps: np.ndarray
    relative: np.ndarray
    squares: np.ndarray
    measured_steps: np.ndarray
    mean_count: np.ndarray


class PeerScale(NamedTuple):
    """Scale of windows by their peers, transformed; NaN without peers.

    loc, scale: float32 [window, metric]. quantiles: prior of the window quantiles, float32 [window, metric, knot].
    position: loc and log-scale relative to the base and the expected error without history, float32 [window, metric].
    """

    loc: np.ndarray
    scale: np.ndarray
    quantiles: np.ndarray
    loc_position: np.ndarray
    scale_position: np.ndarray


class PeerSample(NamedTuple):
    """What the prior is fitted on.

    values: float32 [server, step, metric], physical units, of the training period. bounds: their transform. servers:
    int64, the training servers. profile_rows: int64 [server], from 1. peers: of all servers. first_step: of `values`,
    since the epoch. smallest_scale: transformed, [1 + profile, metric].
    """

    values: np.ndarray
    bounds: BoundedTransform
    servers: np.ndarray
    profile_rows: np.ndarray
    peers: FleetPeers
    first_step: int
    smallest_scale: np.ndarray


class _SampledWindows(NamedTuple):
    """Windows of one profile, transformed: own and peers' past, and what follows; origins since the epoch.

    mean_count: mean number of peers [window, metric].
    """

    own: np.ndarray
    level: np.ndarray
    mean_count: np.ndarray
    following: np.ndarray
    origin_steps: np.ndarray


class _Errors(NamedTuple):
    """Of sampled windows with n own steps: relative to their peers, and what follows, seasonally adjusted."""

    relative: RelativeToPeers
    following: np.ndarray


def relative_to_peers(
    own: np.ndarray, level: np.ndarray, offset: np.ndarray, mean_count: np.ndarray
) -> RelativeToPeers:
    """Of windows: own and level are float32 [window, step, metric], seasonally adjusted, NaN = not measured.

    offset: float32 [window, metric], peers.Spliced.offset. mean_count: float32 [window, metric], peers.peer_counts.
    """
    steps = own.shape[1]
    missing = np.isnan(own)
    measured_steps = steps - count_over_steps(missing)
    mean, deviations = masked_mean_and_deviations(own.copy(), missing, measured_steps)
    unknown = np.isnan(level)
    base_steps = steps - count_over_steps(unknown)
    base, base_deviations = masked_mean_and_deviations(level.copy(), unknown, base_steps)
    base[base_steps == 0] = np.nan
    relative = np.where(np.isnan(offset), mean - base, offset)
    relative[measured_steps == 0] = 0.0
    base_squares, squares = (dot_over_steps(part, part) for part in (base_deviations, deviations))
    return RelativeToPeers(base, base_squares, base_steps, relative, squares, measured_steps, mean_count)


def scale_by_peers(prior: PeerPrior, relative: RelativeToPeers, profile_rows: np.ndarray) -> PeerScale:
    """Loc, scale and quantiles of windows.

    prior: by steps (PeerPrior.by_steps). profile_rows: int64 [window].
    """
    metrics, last = prior.level_weight.shape[1], prior.level_weight.shape[2] - 1
    steps = np.minimum(relative.measured_steps, last).astype(np.int64)
    profile, metric = profile_rows[:, None], np.arange(metrics)
    at = profile, metric, steps
    usual_weight, usual_first = prior.level_weight[at], prior.error_scale[profile, metric, 0]
    variance = level_variance(prior.noise, relative.mean_count, profile_rows)
    weight, unknown_level = own_weight(usual_weight, variance), prior.noise.level_share[profile_rows] * usual_first**2
    loc = relative.base + weight * relative.relative
    error_scale = wider_error(prior.error_scale[at], unknown_level, (usual_weight, weight), variance)
    without_history = np.sqrt(usual_first**2 + unknown_level * (variance - 1.0))
    usual = prior.usual_deviation[at]
    peers_deviation = shrunken_deviation(relative.base_squares, relative.base_steps, usual)
    by_peers = error_scale * (peers_deviation / usual) ** prior.peer_scale_weight[at]
    deviation = shrunken_deviation(relative.squares, relative.measured_steps, by_peers)
    scale = by_peers * (deviation / by_peers) ** prior.scale_weight[at]
    return PeerScale(
        loc=loc.astype(np.float32),
        scale=scale.astype(np.float32),
        quantiles=prior.quantiles[at],
        loc_position=((loc - relative.base) / without_history).astype(np.float32),
        scale_position=np.log(scale / without_history).astype(np.float32),
    )


def fit_peer_prior(sample: PeerSample, lag_steps: LagSteps, history_steps: int) -> PeerPrior | None:
    """The prior of all profiles; None if no profile has one. Deterministic.

    lag_steps: of windows with a whole context. history_steps: past steps that a window can use.
    """
    profiles, metrics = sample.smallest_scale.shape
    lengths = history_lengths(lag_steps.encoder)
    shape = (profiles, metrics, len(lengths))
    level_weight, error_scale, usual_deviation, peer_scale_weight, scale_weight = (
        np.full(shape, np.nan) for _ in range(5)
    )
    quantiles = np.full((*shape, len(KNOT_LEVELS)), np.nan)
    fields = (level_weight, error_scale, usual_deviation, peer_scale_weight, scale_weight, quantiles)
    noise = np.full((len(PeerNoise._fields), profiles, metrics), np.nan)
    for profile in range(1, profiles):
        windows = _sampled_windows(sample, profile, lag_steps, history_steps)
        if windows is None:
            continue
        smallest = sample.smallest_scale[profile]
        for index, errors in enumerate(_errors_by_length(windows, lag_steps)):
            for metric in range(metrics):
                of_metric = _fitted(errors, metric, int(lengths[index]), float(smallest[metric]))
                # Too few windows of a length: the estimate of the next shorter one.
                earlier = tuple(field[profile, metric, max(index - 1, 0)] for field in fields)
                for field, value in zip(fields, of_metric or earlier, strict=True):
                    field[profile, metric, index] = value
        noise[:, profile] = _noise(errors, error_scale[profile, :, 0])  # the last errors are with a whole context
    if np.isnan(error_scale).all():
        return None
    of_peers = PeerNoise(*np.where(np.isnan(error_scale[..., 0]), np.nan, np.nan_to_num(noise)).astype(np.float32))
    names = PeerPrior._fields[:-1]
    return PeerPrior(
        **{name: field.astype(np.float32) for name, field in zip(names, fields, strict=True)}, noise=of_peers
    )


def _sampled_windows(
    sample: PeerSample, profile: int, lag_steps: LagSteps, history_steps: int
) -> _SampledWindows | None:
    """Windows of the profile's training servers at regular origins in the later half; None without peers or origins."""
    servers = sample.servers[sample.profile_rows[sample.servers] == profile]
    last = sample.values.shape[1] - lag_steps.horizon
    every = max(1, lag_steps.encoder // ORIGINS_PER_CONTEXT)
    origins = np.arange(max(0, last // 2), last, every)
    rows, origins = (part.ravel() for part in np.meshgrid(servers, origins, indexing="ij"))
    if not len(rows):
        return None
    if len(rows) > MAX_WINDOWS:
        chosen = np.random.default_rng([SEED, profile]).choice(len(rows), MAX_WINDOWS, replace=False)
        rows, origins = rows[chosen], origins[chosen]
    own = sample.bounds.transform(past_values(sample.values, rows, origins, history_steps))
    level = peer_levels(sample.peers, rows, sample.first_step + origins, own)
    if np.isnan(level).all():
        return None
    context = own[:, -lag_steps.encoder :]
    mean_count = peer_counts(sample.peers, rows, sample.first_step + origins, context).mean
    following = sample.bounds.transform(future_values(sample.values, rows, origins, lag_steps.horizon))
    return _SampledWindows(own, level, mean_count, following, sample.first_step + origins)


def _errors_by_length(windows: _SampledWindows, lag_steps: LagSteps) -> Iterator[_Errors]:
    """For each length of history; at the longest, a context, all of the past is known."""
    context_steps, lengths = lag_steps.encoder, history_lengths(lag_steps.encoder)
    for n in lengths:
        own = windows.own.copy()
        if n < context_steps:
            own[:, : own.shape[1] - n] = np.nan
        spliced = splice(own, windows.level, context_steps)
        context = spliced.values[:, -context_steps:].copy()
        lags = seasonal_lags(spliced.values, windows.origin_steps, (), lag_steps)
        component = seasonal_component(context, lags.mean, lag_steps.day).component
        past, ahead = component[:, :context_steps], component[:, context_steps:]
        relative = relative_to_peers(
            own[:, -context_steps:] - past, windows.level[:, -context_steps:] - past, spliced.offset, windows.mean_count
        )
        yield _Errors(relative, windows.following - ahead)


def _fitted(errors: _Errors, metric: int, n: int, smallest: float) -> tuple[float | np.ndarray, ...] | None:
    """The fields of a PeerPrior for one metric after n steps; None with too few windows."""
    of_metric = RelativeToPeers(*(field[:, metric].astype(np.float64) for field in errors.relative))
    following = errors.following[..., metric].astype(np.float64)
    known = ~np.isnan(following)
    usable = ~np.isnan(of_metric.base) & (2 * known.sum(axis=1) > following.shape[1])
    usable &= (2 * of_metric.measured_steps >= n) & ((of_metric.measured_steps >= 1) | (n == 0))
    if usable.sum() < FEWEST_WINDOWS:
        return None
    of_metric, following = RelativeToPeers(*(field[usable] for field in of_metric)), following[usable]
    base, relative = of_metric.base, of_metric.relative
    level_weight = _weight(relative, np.nanmean(following, axis=1) - base) if n else 0.0
    error = following - (base + level_weight * relative)[:, None]
    size = np.maximum(np.sqrt(np.nanmean(error**2, axis=1)), smallest)
    error_scale = _geometric_mean(size)
    peers_deviation = np.sqrt(of_metric.base_squares / of_metric.base_steps)
    usual_deviation = _geometric_mean(np.maximum(peers_deviation, smallest))
    relative_deviation = (
        shrunken_deviation(of_metric.base_squares, of_metric.base_steps, usual_deviation) / usual_deviation
    )
    peer_scale_weight = _weight(np.log(relative_deviation), np.log(size / error_scale))
    scale, scale_weight = error_scale * relative_deviation**peer_scale_weight, 0.0
    if n:
        ratio = shrunken_deviation(of_metric.squares, of_metric.measured_steps, scale) / scale
        scale_weight = _weight(np.log(ratio), np.log(size / scale))
        scale = scale * ratio**scale_weight
    quantiles = np.nanquantile(error / scale[:, None], KNOT_LEVELS)
    return level_weight, error_scale, usual_deviation, peer_scale_weight, scale_weight, quantiles


def _noise(with_context: _Errors, error_scale: np.ndarray) -> np.ndarray:
    """Fields of a PeerNoise for one profile: [field, metric]; 0 where too little is known.

    error_scale: without history, [metric]. The variance between servers is that of a normal distribution with the same
    median deviation: a few unusual servers change neither the median of the others nor its error.
    """
    relative = with_context.relative
    usable = (2 * relative.measured_steps >= relative.measured_steps.max()) & ~np.isnan(relative.base)
    found = np.zeros((len(PeerNoise._fields), len(error_scale)))
    for metric in range(len(error_scale)):
        of_server, count = (
            field[usable[:, metric], metric].astype(np.float64) for field in (relative.relative, relative.mean_count)
        )
        if len(of_server) >= FEWEST_WINDOWS:
            between = NORMAL_DEVIATION * np.median(np.abs(of_server))
            found[:, metric] = np.median(count), min(1.0, (between / error_scale[metric]) ** 2)
    return found


def _weight(predictor: np.ndarray, target: np.ndarray) -> float:
    """The least absolute deviation weight, 0 where nothing can be compared."""
    weight = least_absolute_deviation_weight(predictor, target)
    return 0.0 if np.isnan(weight) else weight


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(values))))
