"""Demand on a server of a profile, by kind of day and minute of day."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.calendar import BusinessTime
from server_profiles import PROFILES, ServerProfile

RAMP_MINUTES = 10  # demand moves between two levels over this long, centred on the edge of a window
_MINUTES = 24 * 60
BUSINESS_DAY, WEEKEND_DAY, HOLIDAY = 0, 1, 2


def demand_multiplier(profile: ServerProfile, when: BusinessTime) -> npt.NDArray[np.float32]:
    """Demand on a server of the profile, as a multiple of its ordinary demand outside all windows of its rhythm."""
    kind = np.where(when.day_of_week >= 5, WEEKEND_DAY, np.where(when.is_holiday, HOLIDAY, BUSINESS_DAY))
    return demand_table(profile)[kind, when.minute_of_day]


@functools.lru_cache(maxsize=len(ServerProfile))
def demand_table(profile: ServerProfile) -> npt.NDArray[np.float32]:
    """Demand by kind of day (business day, weekend, holiday) and minute of day: float32 [3, 1440]."""
    rhythm = PROFILES[profile].rhythm
    table = np.ones((3, _MINUTES))
    for window in rhythm.windows:
        coverage = _coverage(minutes(window.start), minutes(window.end))
        kinds = slice(None) if window.every_day else BUSINESS_DAY
        table[kinds] += coverage * (window.multiplier - table[kinds])
    table[WEEKEND_DAY] *= rhythm.weekend
    table[HOLIDAY] *= rhythm.holiday
    demand = table.astype(np.float32)
    demand.flags.writeable = False
    return demand


def minutes(clock: str) -> int:
    """Minutes since midnight of "HH:MM"."""
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)


def _coverage(start: int, end: int) -> npt.NDArray[np.float64]:
    """How far each minute of the day lies in the window: 0 outside, 1 inside, linear over the ramp: [1440]."""
    length = (end - start) % _MINUTES
    since_start = (np.arange(_MINUTES) + 0.5 - start) % _MINUTES
    inside = since_start < length
    depth = np.minimum(since_start, length - since_start)
    distance = np.minimum(_MINUTES - since_start, since_start - length)
    coverage: npt.NDArray[np.float64] = np.clip(0.5 + np.where(inside, depth, -distance) / RAMP_MINUTES, 0.0, 1.0)
    return coverage
