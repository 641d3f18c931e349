"""Windows: the input of the network for one server at one forecast origin.

Everything in a window is known at the origin: the standardised values of the context, each with a mask; the calendar of
context and horizon; and for each step of the horizon the values of earlier days at that time. Context and targets are
without the seasonal component (seasonality.py). Trainer and engine build windows with the same function,
`build_windows`. It computes, in this order: seasonal component, loc and scale, window quantiles.

A window with peers (peers.py) has the whole context as encoder, whatever the server's own history: where the server was
not measured, the value is its peers' level plus its offset to it, with mask 0. Seasonality, loc, scale and the prior of
the quantiles come from the peers too (peer_prior.py).

Variable names and order are those of the TimeSeriesDataSet in network/build.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import BusinessCalendar, business_time
from fleet_forecast.features.history import interpolate_between_rows
from fleet_forecast.features.masked_statistics import count_over_steps, repeat_over_steps
from fleet_forecast.features.peer_prior import relative_to_peers, scale_by_peers
from fleet_forecast.features.peers import FleetPeers, peer_counts, peer_levels, splice
from fleet_forecast.features.quantile_map import window_quantiles
from fleet_forecast.features.scaling import FleetScaling, WindowScale
from fleet_forecast.features.seasonality import (
    SEASONAL_MEAN_DAYS,
    ClockChange,
    LagSteps,
    SeasonalLags,
    seasonal_component,
    seasonal_lags,
)
from fleet_forecast.features.window_batch import NetworkInputs, TargetScale, WindowBatch, Windows

WINDOWS_VERSION = 8  # of the content of a window; a network reads only windows of the version it was trained on
# Version 7 is version 8 with a prior that does not depend on the number of peers: the usual number is recorded as 0.
# Version 6 is version 7 with a scale that does not follow the deviation of the peers: their weight is 0.
READABLE_WINDOWS_VERSIONS = (6, 7, WINDOWS_VERSION)
DAY_SECONDS = 86_400
SMOOTHING_HALF_WIDTH_SECONDS = 1_800  # of the smoothed seasonal mean
HOLIDAY = 7  # day_kind: Monday 0 .. Sunday 6, a holiday 7
INPUT_GRID = 128  # inputs are multiples of 1 / INPUT_GRID: the network evaluates each distinct value once
PEER_COUNT_SCALE = 4.0  # log1p of the number of peers is divided by it
LARGE = 1e9  # beyond, asinh(x) is log(2 x), and the square of x may overflow a float32
CALENDAR_SIZES = {"half_hour": 48, "day_kind": 8}


@dataclass(frozen=True)
class WindowSpec:
    """Lengths of a window in steps, and the business calendar."""

    metrics: tuple[str, ...]
    step_seconds: int
    calendar: BusinessCalendar
    context_steps: int
    horizon_steps: int

    @property
    def day_steps(self) -> int:
        """Steps in 24 hours."""
        return DAY_SECONDS // self.step_seconds

    @property
    def seasonal_lag_steps(self) -> int:
        """Whole days from a horizon step back to the latest day that is known for the whole horizon."""
        return self.day_steps * -(-self.horizon_steps // self.day_steps)

    @property
    def half_width_steps(self) -> int:
        """Steps to either side in the smoothed seasonal mean."""
        return SMOOTHING_HALF_WIDTH_SECONDS // self.step_seconds

    @property
    def history_steps(self) -> int:
        """Past steps that a window can use; older ones are ignored."""
        oldest = self.seasonal_lag_steps + (SEASONAL_MEAN_DAYS - 1) * self.day_steps + self.half_width_steps
        return max(self.context_steps, oldest)

    @property
    def encoder_lengths(self) -> tuple[int, ...]:
        """Encoder lengths in use: 1, 3, 6, 12, ... steps, and the context.

        A history shorter than its encoder length has unmeasured steps in front; no history is one unmeasured step.
        """
        lengths = [1]
        while (length := 3 * 2 ** (len(lengths) - 1)) < self.context_steps:
            lengths.append(length)
        return tuple(sorted({*lengths, self.context_steps}))

    @property
    def static_reals(self) -> tuple[str, ...]:
        """Per window: position, seasonal strength, share of the context measured, peers and their weight.

        The position is loc and log-scale relative to the peers, or to the profile's statistics without peers.
        """
        position = (f"{m}_{part}" for m in self.metrics for part in ("loc", "scale"))
        strength = (f"{m}_seasonal_strength" for m in self.metrics)
        return (*position, *strength, "measured_share", "peer_count", *(f"{m}_peer_weight" for m in self.metrics))

    def lag_steps(self, encoder_steps: int) -> LagSteps:
        """Lengths for the seasonal lags of a window."""
        return LagSteps(
            encoder_steps, self.horizon_steps, self.day_steps, self.seasonal_lag_steps, self.half_width_steps
        )

    @property
    def encoder_reals(self) -> tuple[str, ...]:
        """Per context step: the standardised value, and whether it was measured on this server."""
        return tuple(f"{m}_{part}" for m in self.metrics for part in ("scaled", "mask"))

    @property
    def decoder_reals(self) -> tuple[str, ...]:
        """Per horizon step: seasonal lag and smoothed seasonal mean, and which share of each was measured."""
        lags = tuple(f"{m}_{part}" for m in self.metrics for part in ("seasonal_lag", "seasonal_mean"))
        return (*lags, "seasonal_lag_share", "seasonal_mean_share")


@dataclass(frozen=True)
class Calendar:
    """Business calendar of consecutive steps; steps are counted from the Unix epoch.

    clock_changes: across which seasonal lags are looked up by local time (none).
    """

    first_step: int
    half_hour_and_day: np.ndarray  # int64 [step, 2]
    market_open: np.ndarray  # float32 [step, 1]
    clock_changes: tuple[ClockChange, ...] = ()

    @classmethod
    def over(cls, first_step: int, last_step: int, step_seconds: int, calendar: BusinessCalendar) -> Calendar:
        """Steps first_step..last_step in a business calendar."""
        seconds = np.arange(first_step, last_step + 1) * step_seconds
        when = business_time(seconds.astype("datetime64[s]"), calendar)
        half_hour = when.minute_of_day.astype(np.int64) // 30
        day_kind = np.where(when.is_holiday, HOLIDAY, when.day_of_week).astype(np.int64)
        market_open = when.market_open.astype(np.float32)[:, None]
        return cls(first_step, np.stack([half_hour, day_kind], axis=1), market_open)


class FleetArrays(NamedTuple):
    """What windows are built from.

    transformed: float32 [server, step, metric], NaN = not measured (FleetScaling.bounds). peers: of its servers (none).
    row_distances: int64 [server, metric], see history.py; None: all rows are one step apart.
    """

    spec: WindowSpec
    scaling: FleetScaling
    calendar: Calendar
    transformed: np.ndarray
    peers: FleetPeers | None = None
    row_distances: np.ndarray | None = None


@dataclass(frozen=True)
class WindowRequest:
    """Which windows to build.

    rows, origins: int64 [window], server and index of the last known step.
    calendar_steps: int64 [window], step since the epoch whose calendar the origin has; the origin's own except for
        augmentation of windows without a profile.
    profile_rows: int64 [window], 0 = unknown or masked.
    encoder_steps: E, at least 1.
    known_steps: int64 [window], steps up to the origin that may be used (0 = a server without history).
    level_shift: float32 [window, metric], added to the transformed values of the window's server (none).
    masked_peers: boolean [window], where the peers may not be used (nowhere). Windows without a profile and windows
        with a shorter encoder than the context have no peers.
    """

    rows: np.ndarray
    origins: np.ndarray
    calendar_steps: np.ndarray
    profile_rows: np.ndarray
    encoder_steps: int
    known_steps: np.ndarray
    level_shift: np.ndarray | None = None
    masked_peers: np.ndarray | None = None


class _PeerContext(NamedTuple):
    """Peers of a batch of windows over the context.

    level: float32 [window, E, metric], NaN without peers. offset: float32 [window, metric], see peers.Spliced. largest,
    mean_count: see peers.PeerCounts; float32 [window], 0 without peers, and [window, metric].
    """

    level: np.ndarray
    offset: np.ndarray
    largest: np.ndarray
    mean_count: np.ndarray


class _Past(NamedTuple):
    """What windows may use up to their origin.

    whole: float32 [window, step, metric], at least E steps, own values and, where there are none, the peers'; NaN =
    neither. own: of the context, float32 [window, E, metric], part of `whole` without peers. peers: None if no window
    has any.
    """

    whole: np.ndarray
    own: np.ndarray
    peers: _PeerContext | None


class _Standardised(NamedTuple):
    """A batch's context, standardised, and how.

    strength: [window, metric]. seasonal_ahead: seasonal component of the horizon [window, H, metric].
    measured_steps: of the context [window, metric]. position: loc and log-scale relative to peers or profile.
    peer_weight: [window, metric], 0 without peers. context: [window, E, metric]. missing: boolean of the same shape,
    True where the server itself was not measured. quantiles: [window, metric, knot].
    """

    strength: np.ndarray
    seasonal_ahead: np.ndarray
    measured_steps: np.ndarray
    scale: WindowScale
    position: WindowScale
    peer_weight: np.ndarray
    context: np.ndarray
    missing: np.ndarray
    quantiles: np.ndarray


class _Scale(NamedTuple):
    """Scale of a batch of windows, the prior of their quantiles, and two static inputs of the network."""

    scale: WindowScale
    quantiles: np.ndarray
    position: WindowScale
    peer_weight: np.ndarray


def build_windows(fleet: FleetArrays, request: WindowRequest) -> Windows:
    """The requested windows of a fleet."""
    spec, calendar, encoder_steps = fleet.spec, fleet.calendar, request.encoder_steps
    past = _past(fleet, request)
    context = past.whole[:, -encoder_steps:].copy()  # [window, E, metric]
    lag_steps = spec.lag_steps(encoder_steps)
    lags = seasonal_lags(past.whole, request.calendar_steps, calendar.clock_changes, lag_steps)
    own = context if past.peers is None else past.own
    standardised = _standardise(fleet, _Past(context, own, past.peers), lags, request.profile_rows)
    in_calendar = request.calendar_steps[:, None] - calendar.first_step
    encoder_at = in_calendar + np.arange(1 - encoder_steps, 1)
    decoder_at = in_calendar + np.arange(1, spec.horizon_steps + 1)
    inputs = NetworkInputs(
        profile=request.profile_rows,
        encoder_calendar=calendar.half_hour_and_day.take(encoder_at, axis=0),
        decoder_calendar=calendar.half_hour_and_day.take(decoder_at, axis=0),
        encoder_market=calendar.market_open.take(encoder_at, axis=0),
        decoder_market=calendar.market_open.take(decoder_at, axis=0),
        static=_static_reals(spec, standardised, past.peers),
        encoder=_values_and_masks(standardised),
        decoder=_decoder_reals(lags, standardised),
    )
    scale = standardised.scale
    target_scale = TargetScale(scale.loc[:, None] + standardised.seasonal_ahead, scale.scale, standardised.quantiles)
    return WindowBatch(inputs, target_scale)


def may_have_peers(fleet: FleetArrays, rows: np.ndarray, profile_rows: np.ndarray) -> np.ndarray:
    """Whether windows of these servers, with these profiles (0 = unknown or masked), have peers: boolean [window].

    Windows at origins before which no peer was measured have none either way.
    """
    if fleet.peers is None or fleet.scaling.peer_prior is None:
        return np.zeros(len(rows), dtype=bool)
    found: np.ndarray = fleet.scaling.peer_prior.has_peers[profile_rows] & (fleet.peers.rows[rows] >= 0)
    return found


def asinh(values: np.ndarray) -> np.ndarray:
    """Nearly linear within one scale, logarithmic beyond, so that bursts stay in a range the network can use.

    log(x + sqrt(x^2 + 1)) with x^2 kept finite: correct to 1e-6, and three times as fast as NumPy's, which is not
    vectorised.
    """
    size = np.abs(values)
    near = np.minimum(size, LARGE)
    logarithm = near * near
    logarithm += 1.0
    np.sqrt(logarithm, out=logarithm)
    logarithm += near
    np.log(logarithm, out=logarithm)
    large = size > LARGE
    if large.any():
        logarithm[large] += np.log(size[large] / np.float32(LARGE))
    return np.copysign(logarithm, values, out=logarithm)


def quantise(values: np.ndarray) -> np.ndarray:
    """Rounded to multiples of 1 / INPUT_GRID, finer than telemetry repeats; for network/variable_selection.py."""
    multiples = values * INPUT_GRID
    np.rint(multiples, out=multiples)
    multiples /= INPUT_GRID
    return multiples


def _past(fleet: FleetArrays, request: WindowRequest) -> _Past:
    """What each window may use, up to its origin; NaN before the array and before the window's known steps."""
    encoder_steps, history_steps = request.encoder_steps, fleet.spec.history_steps
    servers = servers_with_peers(fleet, request)
    if servers is None or fleet.peers is None:
        most = max(encoder_steps, min(history_steps, int(request.known_steps.max(initial=0))))
        own = _own_past(fleet, request, most, request.known_steps)
        _interpolate(fleet, request, own)
        return _Past(own, own[:, -encoder_steps:], None)
    own = _own_past(fleet, request, history_steps, np.full(len(request.rows), history_steps))
    level = peer_levels(fleet.peers, servers, request.calendar_steps, own)
    counts = peer_counts(fleet.peers, servers, request.calendar_steps, own[:, -encoder_steps:])
    _mask_metrics_without_prior(fleet, request.profile_rows, level)
    for past, known in zip(own, request.known_steps, strict=True):
        past[: max(history_steps - known, 0)] = np.nan
    _interpolate(fleet, request, own)
    spliced = splice(own, level, encoder_steps)
    level = level[:, -encoder_steps:]
    largest = np.where(np.isnan(level).all(axis=(1, 2)), 0, counts.largest)
    peers = _PeerContext(level, spliced.offset, largest.astype(np.float32), counts.mean)
    return _Past(spliced.values, own[:, -encoder_steps:], peers)


def _interpolate(fleet: FleetArrays, request: WindowRequest, own: np.ndarray) -> None:
    """Fills the steps between the rows of coarsely measured servers, in place."""
    if fleet.row_distances is not None:
        interpolate_between_rows(own, fleet.row_distances[request.rows])


def _own_past(fleet: FleetArrays, request: WindowRequest, most: int, known_steps: np.ndarray) -> np.ndarray:
    """Own values: float32 [window, most, metric]. Copied window by window, in contiguous runs."""
    transformed = fleet.transformed
    past = np.empty((len(request.rows), most, transformed.shape[2]), dtype=np.float32)
    for window, (row, origin, known) in enumerate(zip(request.rows, request.origins, known_steps, strict=True)):
        steps = min(known, most, origin + 1)
        past[window, : most - steps] = np.nan
        past[window, most - steps :] = transformed[row, origin + 1 - steps : origin + 1]
    if request.level_shift is not None:
        past += request.level_shift[:, None]
    return past


def servers_with_peers(fleet: FleetArrays, request: WindowRequest) -> np.ndarray | None:
    """Rows of the servers, -1 for windows without peers: int64 [window]; None if no window has any."""
    if request.encoder_steps < fleet.spec.context_steps:
        return None
    usable = may_have_peers(fleet, request.rows, request.profile_rows)
    if request.masked_peers is not None:
        usable &= ~request.masked_peers
    return np.where(usable, request.rows, -1) if usable.any() else None


def _mask_metrics_without_prior(fleet: FleetArrays, profile_rows: np.ndarray, level: np.ndarray) -> None:
    """Sets the peers' level of metrics for which a profile has no prior to NaN, in place."""
    lacking = ~fleet.scaling.peer_prior_by_steps.exists[profile_rows]  # [window, metric]
    for window in np.flatnonzero(lacking.any(axis=1)):
        level[window, :, lacking[window]] = np.nan


def _standardise(fleet: FleetArrays, past: _Past, lags: SeasonalLags, profile_rows: np.ndarray) -> _Standardised:
    """Seasonal component, then loc and scale, then window quantiles; `past`, of the context only, is overwritten."""
    context, own, encoder_steps = past.whole, past.own, past.own.shape[1]
    seasonal = seasonal_component(context, lags.mean, fleet.spec.day_steps)
    component = seasonal.component[:, :encoder_steps]
    for values in (context,) if past.peers is None else (context, own, past.peers.level):
        values -= component
    missing = np.isnan(own)
    measured_steps = encoder_steps - count_over_steps(missing)
    found = _scale(fleet.scaling, own, measured_steps, profile_rows)
    if past.peers is not None:
        found = _scale_with_peers(fleet.scaling, found, past, profile_rows)
    standardised = _standardised(context, found.scale)
    own_standardised = standardised if past.peers is None else np.where(missing, np.float32(np.nan), standardised)
    return _Standardised(
        strength=seasonal.strength,
        seasonal_ahead=seasonal.component[:, encoder_steps:],
        measured_steps=measured_steps,
        scale=found.scale,
        position=found.position,
        peer_weight=found.peer_weight,
        context=standardised,
        missing=missing,
        quantiles=window_quantiles(own_standardised, found.quantiles),
    )


def _scale(scaling: FleetScaling, own: np.ndarray, measured_steps: np.ndarray, profile_rows: np.ndarray) -> _Scale:
    """By the profile statistics."""
    scale = scaling.window_scale(own, measured_steps, profile_rows)
    return _Scale(
        scale,
        scaling.prior_quantiles(measured_steps, profile_rows),
        scaling.relative_to_profile(scale, profile_rows),
        np.zeros(measured_steps.shape, dtype=np.float32),
    )


def _scale_with_peers(scaling: FleetScaling, without: _Scale, past: _Past, profile_rows: np.ndarray) -> _Scale:
    """By the peers where there are any, else `without`."""
    peers, prior = past.peers, scaling.peer_prior_by_steps
    if peers is None:
        return without
    relative = relative_to_peers(past.own, peers.level, peers.offset, peers.mean_count)
    by_peers = scale_by_peers(prior, relative, profile_rows)
    has_peers = ~np.isnan(relative.base)  # [window, metric]
    chosen = np.where(has_peers, by_peers[:2], without.scale)
    position = np.where(has_peers, by_peers[3:], without.position)
    return _Scale(
        WindowScale(*chosen),
        np.where(has_peers[..., None], by_peers.quantiles, without.quantiles),
        WindowScale(*position),
        np.where(has_peers, 1.0 - prior.level_weight[profile_rows, :, 1], np.float32(0.0)),
    )


def _values_and_masks(standardised: _Standardised) -> np.ndarray:
    """Interleaved values (0 where there is none) and masks: float32 [window, E, 2 * metric]."""
    values = quantise(asinh(standardised.context))
    np.copyto(values, 0.0, where=np.isnan(standardised.context))
    return _interleave(values, ~standardised.missing)


def _static_reals(spec: WindowSpec, standardised: _Standardised, peers: _PeerContext | None) -> np.ndarray:
    """Position, seasonal strength, measured steps on a log scale, peers and their weight: [window, 4 M + 2]."""
    measured_share = np.log1p(standardised.measured_steps.mean(axis=1, keepdims=True))
    measured_share = measured_share / np.log1p(spec.context_steps)
    position = _interleave(asinh(standardised.position.loc), standardised.position.scale)
    count = np.zeros(len(position), dtype=np.float32) if peers is None else peers.largest
    peer_count = np.log1p(count)[:, None] / PEER_COUNT_SCALE
    parts = [position, standardised.strength, measured_share, peer_count, standardised.peer_weight]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _decoder_reals(lags: SeasonalLags, standardised: _Standardised) -> np.ndarray:
    """Seasonal lag and smoothed seasonal mean, standardised, and their shares: float32 [window, H, 2 * metric + 2].

    The lag is without the seasonal component, as the targets are; the mean is with it. 0 where nothing was measured.
    """
    latest = lags.latest - standardised.seasonal_ahead
    inputs = [_standardised_inputs(values, standardised.scale) for values in (latest, lags.smoothed_mean)]
    parts = [_interleave(*inputs), lags.latest_share, lags.smoothed_mean_share]
    return quantise(np.concatenate(parts, axis=2, dtype=np.float32))


def _standardised_inputs(values: np.ndarray, scale: WindowScale) -> np.ndarray:
    inputs = asinh(_standardised(values, scale))
    np.copyto(inputs, 0.0, where=np.isnan(inputs))
    return inputs


def _standardised(values: np.ndarray, scale: WindowScale) -> np.ndarray:
    standardised = values - repeat_over_steps(scale.loc, values.shape[1])
    standardised /= repeat_over_steps(scale.scale, values.shape[1])
    return standardised


def _interleave(*parts: np.ndarray) -> np.ndarray:
    """Stack [..., metric] arrays metric by metric: float32 [..., metric * part]."""
    stacked = np.stack(parts, axis=-1)
    return stacked.reshape(*stacked.shape[:-2], -1).astype(np.float32, copy=False)
