"""Windows: what the network sees of one server at one forecast origin.

A window is cut from a linked history array (scaling.FleetScaling.to_link) by index. Everything in it is known at the
origin: the context's scaled values with a mask beside each, the calendar of context and horizon, and for each decoder
step the same time of earlier days. Context and targets are what remains when the server's own daily rhythm is taken off
(daily_rhythm.py), so that it need not be learned, for no server. The trainer cuts windows out of the whole fleet's
array, the engine out of the histories it is given; both use `build_windows`, so what is trained is what is served.

Variable names and order are those of the TimeSeriesDataSet that model.py builds the network from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import business_time
from fleet_forecast.features.clock_change import ClockChange, earlier_days_by_the_clock
from fleet_forecast.features.daily_rhythm import DailyRhythm, daily_rhythm
from fleet_forecast.features.earlier_days import DAILY_MEAN_DAYS, EarlierDays, Lengths
from fleet_forecast.features.masked_statistics import at_each_step, counted
from fleet_forecast.features.quantile_map import window_shape
from fleet_forecast.features.scaling import FleetScaling, WindowScale

WINDOWS_VERSION = 5  # of what a window holds; a network reads only windows of the version it was trained on
DAY_SECONDS = 86_400
DAILY_MEAN_HALF_WIDTH_SECONDS = 1_800  # and averages half an hour to either side
HOLIDAY = 7  # day_kind: Monday 0 .. Sunday 6, a market holiday 7
CATEGORICALS = ("profile", "half_hour", "day_kind")
INPUT_GRID = 128  # scaled values are rounded to this fraction of a spread: the network evaluates each of them once
LARGE_UNITS = 1e9  # spreads: beyond, asinh(x) is log(2 x) and the square of x need not fit a float32
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
    def yesterday_steps(self) -> int:
        """Distance from a decoder step to the latest earlier day that is known over the whole horizon."""
        return self.day_steps * -(-self.horizon_steps // self.day_steps)

    @property
    def half_width_steps(self) -> int:
        """Steps to either side that the mean over earlier days averages."""
        return DAILY_MEAN_HALF_WIDTH_SECONDS // self.step_seconds

    @property
    def history_steps(self) -> int:
        """How many past steps a window can use; older ones are ignored."""
        oldest = self.yesterday_steps + (DAILY_MEAN_DAYS - 1) * self.day_steps + self.half_width_steps
        return max(self.context_steps, oldest)

    @property
    def encoder_lengths(self) -> tuple[int, ...]:
        """The encoder lengths in use, doubling from three steps to the context.

        A server with less history than its length has unmeasured steps in front; one without any has a single one.
        """
        lengths = [1]
        while (length := 3 * 2 ** (len(lengths) - 1)) < self.context_steps:
            lengths.append(length)
        return tuple(sorted({*lengths, self.context_steps}))

    @property
    def static_reals(self) -> tuple[str, ...]:
        """Per window: level and width relative to the profile, share of the daily rhythm, how much was measured."""
        position = (f"{m}_{part}" for m in self.metrics for part in ("centre", "spread"))
        return (*position, *(f"{m}_rhythm" for m in self.metrics), "measured_share")

    @property
    def encoder_reals(self) -> tuple[str, ...]:
        """Per context step: the scaled value and, beside it, whether it was measured."""
        return tuple(f"{m}_{part}" for m in self.metrics for part in ("scaled", "mask"))

    @property
    def decoder_reals(self) -> tuple[str, ...]:
        """Per horizon step: yesterday's value and the mean of earlier days at this time, with the share measured."""
        lags = tuple(f"{m}_{part}" for m in self.metrics for part in ("yesterday", "daily_mean"))
        return (*lags, "yesterday_share", "daily_mean_share")


class Windows(NamedTuple):
    """A batch of windows of one encoder length E; H is the horizon, M the number of metrics.

    profile: int64 [window], row of the profile, 0 = unknown.
    encoder_calendar, decoder_calendar: int64 [window, E | H, 2]: half_hour, day_kind.
    encoder_market, decoder_market: float32 [window, E | H, 1]: market open.
    static: float32 [window, 3 * M + 1]; encoder: float32 [window, E, 2 * M]; decoder: float32 [window, H, 2 * M + 2].
    centre: float32 [window, H, M], spread: float32 [window, M], link space: how to undo the scaling.
    shape: float32 [window, M, level], on what scale the answers are read (window_shape.py).
    """

    profile: np.ndarray
    encoder_calendar: np.ndarray
    decoder_calendar: np.ndarray
    encoder_market: np.ndarray
    decoder_market: np.ndarray
    static: np.ndarray
    encoder: np.ndarray
    decoder: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    shape: np.ndarray


@dataclass(frozen=True)
class Calendar:
    """Business calendar of a run of steps; step numbers count from the Unix epoch.

    changes: of the clock, across which earlier days are looked up (none).
    """

    first_step: int
    half_hour_and_day: np.ndarray  # int64 [step, 2]
    market_open: np.ndarray  # float32 [step, 1]
    changes: tuple[ClockChange, ...] = ()

    @classmethod
    def over(cls, first_step: int, last_step: int, step_seconds: int, timezone: str) -> Calendar:
        """Calendar of steps first_step..last_step in `timezone` (ValueError if the zone is unknown)."""
        seconds = np.arange(first_step, last_step + 1) * step_seconds
        when = business_time(seconds.astype("datetime64[s]"), timezone)
        half_hour = when.minute_of_day.astype(np.int64) // 30
        day_kind = np.where(when.is_holiday, HOLIDAY, when.day_of_week).astype(np.int64)
        market_open = when.market_open.astype(np.float32)[:, None]
        return cls(first_step, np.stack([half_hour, day_kind], axis=1), market_open)


def build_windows(
    spec: WindowSpec,
    scaling: FleetScaling,
    calendar: Calendar,
    linked: np.ndarray,
    rows: np.ndarray,
    origins: np.ndarray,
    origin_steps: np.ndarray,
    profile_rows: np.ndarray,
    encoder_steps: int,
    known_steps: np.ndarray,
    raised: np.ndarray | None = None,
) -> Windows:
    """Cut a batch of windows.

    linked: float32 [server, step, metric] in link space, NaN = not measured. rows, origins: int64 [window], server and
    index of the last known step. origin_steps: int64 [window], the same moment as a step number since the epoch.
    profile_rows: int64 [window], 0 hides the profile. encoder_steps: E, at least 1.
    known_steps: int64 [window], how many steps up to the origin the forecaster may use (0 = a server without history).
    raised: float32 [window, metric], added to all that the window's server measured (nothing).
    """
    past = _past(spec, linked, rows, origins, known_steps, encoder_steps)
    if raised is not None:
        past += raised[:, None]
    context = past[:, -encoder_steps:].copy()  # [window, E, metric]
    lengths = Lengths(encoder_steps, spec.horizon_steps, spec.day_steps, spec.yesterday_steps, spec.half_width_steps)
    days = earlier_days_by_the_clock(past, origin_steps, calendar.changes, lengths)
    rhythm = daily_rhythm(context, days.usual, spec.day_steps)
    context -= rhythm.lift[:, :encoder_steps]
    measured_steps = encoder_steps - counted(np.isnan(context))
    scale = scaling.window_scale(context, measured_steps, profile_rows)
    units = _in_spreads(context, scale)
    in_calendar = origin_steps[:, None] - calendar.first_step
    encoder_at = in_calendar + np.arange(1 - encoder_steps, 1)
    decoder_at = in_calendar + np.arange(1, spec.horizon_steps + 1)
    return Windows(
        profile=profile_rows,
        encoder_calendar=calendar.half_hour_and_day.take(encoder_at, axis=0),
        decoder_calendar=calendar.half_hour_and_day.take(decoder_at, axis=0),
        encoder_market=calendar.market_open.take(encoder_at, axis=0),
        decoder_market=calendar.market_open.take(decoder_at, axis=0),
        static=_static_reals(spec, scaling, scale, profile_rows, measured_steps, rhythm),
        encoder=_value_and_mask(units),
        decoder=_decoder_reals(days, scale, rhythm.lift[:, encoder_steps:]),
        centre=scale.centre[:, None] + rhythm.lift[:, encoder_steps:],
        spread=scale.spread,
        shape=window_shape(units, scaling.prior_shape(measured_steps, profile_rows)),
    )


def compress(units: np.ndarray) -> np.ndarray:
    """asinh: about linear within one spread, logarithmic beyond, so that bursts stay readable for the network.

    To 1e-6, three times as fast as numpy's, which takes one number at a time: log(x + sqrt(x^2 + 1)), x^2 kept finite.
    """
    size = np.abs(units)
    near = np.minimum(size, LARGE_UNITS)
    logarithm = near * near
    logarithm += 1.0
    np.sqrt(logarithm, out=logarithm)
    logarithm += near
    np.log(logarithm, out=logarithm)
    large = size > LARGE_UNITS
    if large.any():
        logarithm[large] += np.log(size[large] / np.float32(LARGE_UNITS))
    return np.copysign(logarithm, units, out=logarithm)


def on_grid(scaled: np.ndarray) -> np.ndarray:
    """Rounded to multiples of 1 / INPUT_GRID, far finer than telemetry repeats; fleet_tft.py says what it buys."""
    places = scaled * INPUT_GRID
    np.rint(places, out=places)
    places /= INPUT_GRID
    return places


def _past(
    spec: WindowSpec,
    linked: np.ndarray,
    rows: np.ndarray,
    origins: np.ndarray,
    known_steps: np.ndarray,
    encoder_steps: int,
) -> np.ndarray:
    """What each window may read, up to its origin: float32 [window, step, metric], at least E steps.

    NaN before the array and before the window's known steps. Copied server by server, as whole stretches of memory.
    """
    most = max(encoder_steps, min(spec.history_steps, int(known_steps.max(initial=0))))
    past = np.empty((len(rows), most, linked.shape[2]), dtype=np.float32)
    for window, (row, origin, known) in enumerate(zip(rows, origins, known_steps, strict=True)):
        steps = min(known, most, origin + 1)
        past[window, : most - steps] = np.nan
        past[window, most - steps :] = linked[row, origin + 1 - steps : origin + 1]
    return past


def _value_and_mask(units: np.ndarray) -> np.ndarray:
    """Interleaved scaled value (0 where not measured) and mask: float32 [window, E, 2 * metric]."""
    unknown = np.isnan(units)
    scaled = on_grid(compress(units))
    np.copyto(scaled, 0.0, where=unknown)
    return _interleave(scaled, ~unknown)


def _static_reals(
    spec: WindowSpec,
    scaling: FleetScaling,
    scale: WindowScale,
    profile_rows: np.ndarray,
    measured_steps: np.ndarray,
    rhythm: DailyRhythm,
) -> np.ndarray:
    """Centre and log-spread in profile units, share of the rhythm, measured steps on a log scale: [window, 3 M + 1]."""
    relative = scaling.in_profile_units(scale, profile_rows)
    measured_share = np.log1p(measured_steps.mean(axis=1, keepdims=True)) / np.log1p(spec.context_steps)
    position = _interleave(compress(relative.centre), relative.spread)
    return np.concatenate([position, rhythm.share, measured_share], axis=1, dtype=np.float32)


def _decoder_reals(days: EarlierDays, scale: WindowScale, lift: np.ndarray) -> np.ndarray:
    """What this time of day looked like on earlier days, in window units: float32 [window, H, 2 * metric + 2].

    Yesterday without its rhythm, as the targets are, and the usual day with it. Zeros where nothing was measured, as
    the two shares at the end tell.
    """
    units = [_in_window_units(values, scale) for values in (days.yesterday - lift, days.around)]
    parts = [_interleave(*units), days.yesterday_share, days.around_share]
    return on_grid(np.concatenate(parts, axis=2, dtype=np.float32))


def _in_window_units(values: np.ndarray, scale: WindowScale) -> np.ndarray:
    units = compress(_in_spreads(values, scale))
    np.copyto(units, 0.0, where=np.isnan(units))
    return units


def _in_spreads(values: np.ndarray, scale: WindowScale) -> np.ndarray:
    units = values - at_each_step(scale.centre, values.shape[1])
    units /= at_each_step(scale.spread, values.shape[1])
    return units


def _interleave(*parts: np.ndarray) -> np.ndarray:
    """Stack [..., metric] arrays metric by metric: float32 [..., metric * part]."""
    stacked = np.stack(parts, axis=-1)
    return stacked.reshape(*stacked.shape[:-2], -1).astype(np.float32, copy=False)
