"""Windows: what the network reads of one server at one forecast origin.

Everything in a window is known at the origin: the standardised values of the context, each with a mask; the calendar of
context and horizon; and for each step of the horizon the values of earlier days at that time. Context and targets are
without the seasonal component (seasonality.py). Trainer and engine build windows with the same function,
`build_windows`. It computes, in this order: seasonal component, loc and scale, window quantiles.

Variable names and order are those of the TimeSeriesDataSet in network/build.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import business_time
from fleet_forecast.features.masked_statistics import count_over_steps, repeat_over_steps
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

WINDOWS_VERSION = 5  # of the content of a window; a network reads only windows of the version it was trained on
DAY_SECONDS = 86_400
SMOOTHING_HALF_WIDTH_SECONDS = 1_800  # of the smoothed seasonal mean
HOLIDAY = 7  # day_kind: Monday 0 .. Sunday 6, a market holiday 7
INPUT_GRID = 128  # inputs are multiples of 1 / INPUT_GRID: the network evaluates each distinct value once
LARGE = 1e9  # beyond, asinh(x) is log(2 x), and the square of x may overflow a float32
CALENDAR_SIZES = {"half_hour": 48, "day_kind": 8}


@dataclass(frozen=True)
class WindowSpec:
    """Lengths of a window in steps, and the calendar's time zone."""

    metrics: tuple[str, ...]
    step_seconds: int
    timezone: str
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
        """Per window: loc and log-scale relative to the profile, seasonal strength, share of the context measured."""
        position = (f"{m}_{part}" for m in self.metrics for part in ("loc", "scale"))
        return (*position, *(f"{m}_seasonal_strength" for m in self.metrics), "measured_share")

    @property
    def encoder_reals(self) -> tuple[str, ...]:
        """Per context step: the standardised value, and whether it was measured."""
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
    def over(cls, first_step: int, last_step: int, step_seconds: int, timezone: str) -> Calendar:
        """Calendar of steps first_step..last_step in `timezone` (ValueError if the zone is unknown)."""
        seconds = np.arange(first_step, last_step + 1) * step_seconds
        when = business_time(seconds.astype("datetime64[s]"), timezone)
        half_hour = when.minute_of_day.astype(np.int64) // 30
        day_kind = np.where(when.is_holiday, HOLIDAY, when.day_of_week).astype(np.int64)
        market_open = when.market_open.astype(np.float32)[:, None]
        return cls(first_step, np.stack([half_hour, day_kind], axis=1), market_open)


class FleetArrays(NamedTuple):
    """What windows are built from.

    transformed: float32 [server, step, metric], NaN = not measured (FleetScaling.bounds).
    """

    spec: WindowSpec
    scaling: FleetScaling
    calendar: Calendar
    transformed: np.ndarray


@dataclass(frozen=True)
class WindowRequest:
    """Which windows to build.

    rows, origins: int64 [window], server and index of the last known step.
    calendar_steps: int64 [window], step since the epoch whose calendar the origin has; the origin's own except for
        augmentation.
    profile_rows: int64 [window], 0 = unknown or masked.
    encoder_steps: E, at least 1.
    known_steps: int64 [window], steps up to the origin that may be used (0 = a server without history).
    level_shift: float32 [window, metric], added to the transformed values of the window's server (none).
    """

    rows: np.ndarray
    origins: np.ndarray
    calendar_steps: np.ndarray
    profile_rows: np.ndarray
    encoder_steps: int
    known_steps: np.ndarray
    level_shift: np.ndarray | None = None


class _Standardised(NamedTuple):
    """A batch's context, standardised, and how.

    strength: [window, metric]. seasonal_ahead: seasonal component of the horizon [window, H, metric].
    measured_steps: of the context [window, metric]. context: [window, E, metric]. quantiles: [window, metric, knot].
    """

    strength: np.ndarray
    seasonal_ahead: np.ndarray
    measured_steps: np.ndarray
    scale: WindowScale
    context: np.ndarray
    quantiles: np.ndarray


def build_windows(fleet: FleetArrays, request: WindowRequest) -> Windows:
    """The requested windows of a fleet."""
    spec, calendar, encoder_steps = fleet.spec, fleet.calendar, request.encoder_steps
    past = _past(fleet, request)
    context = past[:, -encoder_steps:].copy()  # [window, E, metric]
    lag_steps = LagSteps(
        encoder_steps, spec.horizon_steps, spec.day_steps, spec.seasonal_lag_steps, spec.half_width_steps
    )
    lags = seasonal_lags(past, request.calendar_steps, calendar.clock_changes, lag_steps)
    standardised = _standardise(fleet, context, lags, request.profile_rows)
    in_calendar = request.calendar_steps[:, None] - calendar.first_step
    encoder_at = in_calendar + np.arange(1 - encoder_steps, 1)
    decoder_at = in_calendar + np.arange(1, spec.horizon_steps + 1)
    inputs = NetworkInputs(
        profile=request.profile_rows,
        encoder_calendar=calendar.half_hour_and_day.take(encoder_at, axis=0),
        decoder_calendar=calendar.half_hour_and_day.take(decoder_at, axis=0),
        encoder_market=calendar.market_open.take(encoder_at, axis=0),
        decoder_market=calendar.market_open.take(decoder_at, axis=0),
        static=_static_reals(fleet, standardised, request.profile_rows),
        encoder=_values_and_masks(standardised.context),
        decoder=_decoder_reals(lags, standardised),
    )
    scale = standardised.scale
    target_scale = TargetScale(scale.loc[:, None] + standardised.seasonal_ahead, scale.scale, standardised.quantiles)
    return WindowBatch(inputs, target_scale)


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


def _past(fleet: FleetArrays, request: WindowRequest) -> np.ndarray:
    """What each window may use, up to its origin: float32 [window, step, metric], at least E steps.

    NaN before the array and before the window's known steps. Copied window by window, in contiguous runs.
    """
    known_steps, transformed = request.known_steps, fleet.transformed
    most = max(request.encoder_steps, min(fleet.spec.history_steps, int(known_steps.max(initial=0))))
    past = np.empty((len(request.rows), most, transformed.shape[2]), dtype=np.float32)
    for window, (row, origin, known) in enumerate(zip(request.rows, request.origins, known_steps, strict=True)):
        steps = min(known, most, origin + 1)
        past[window, : most - steps] = np.nan
        past[window, most - steps :] = transformed[row, origin + 1 - steps : origin + 1]
    if request.level_shift is not None:
        past += request.level_shift[:, None]
    return past


def _standardise(
    fleet: FleetArrays, context: np.ndarray, lags: SeasonalLags, profile_rows: np.ndarray
) -> _Standardised:
    """Seasonal component, then loc and scale, then window quantiles; `context` is overwritten."""
    scaling, encoder_steps = fleet.scaling, context.shape[1]
    seasonal = seasonal_component(context, lags.mean, fleet.spec.day_steps)
    context -= seasonal.component[:, :encoder_steps]
    measured_steps = encoder_steps - count_over_steps(np.isnan(context))
    scale = scaling.window_scale(context, measured_steps, profile_rows)
    standardised = _standardised(context, scale)
    return _Standardised(
        strength=seasonal.strength,
        seasonal_ahead=seasonal.component[:, encoder_steps:],
        measured_steps=measured_steps,
        scale=scale,
        context=standardised,
        quantiles=window_quantiles(standardised, scaling.prior_quantiles(measured_steps, profile_rows)),
    )


def _values_and_masks(standardised: np.ndarray) -> np.ndarray:
    """Interleaved values (0 where not measured) and masks: float32 [window, E, 2 * metric]."""
    missing = np.isnan(standardised)
    values = quantise(asinh(standardised))
    np.copyto(values, 0.0, where=missing)
    return _interleave(values, ~missing)


def _static_reals(fleet: FleetArrays, standardised: _Standardised, profile_rows: np.ndarray) -> np.ndarray:
    """Loc and log-scale in profile units, seasonal strength, measured steps on a log scale: [window, 3 M + 1]."""
    relative = fleet.scaling.relative_to_profile(standardised.scale, profile_rows)
    measured_share = np.log1p(standardised.measured_steps.mean(axis=1, keepdims=True))
    measured_share = measured_share / np.log1p(fleet.spec.context_steps)
    position = _interleave(asinh(relative.loc), relative.scale)
    return np.concatenate([position, standardised.strength, measured_share], axis=1, dtype=np.float32)


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
