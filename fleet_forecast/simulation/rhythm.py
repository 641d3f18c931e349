"""Business time of a scenario, minute by minute, and what it means for each profile.

A minute is one of 9 · 1440 cases: its minute of the business day, the kind of the day (business day, weekend, holiday)
and that of the day before, because memory remembers. What a profile does in a case is a table, so ten years of calendar
take a few megabytes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.calendar import business_time
from fleet_forecast.simulation.calibration import MEMORY_RESPONSE, smoothed
from fleet_forecast.simulation.demand import BUSINESS_DAY, HOLIDAY, WEEKEND_DAY, demand_table, minutes
from server_profiles import PROFILES, ServerProfile

Float32 = npt.NDArray[np.float32]

DAY_MINUTES = 24 * 60
KINDS_OF_DAY = (BUSINESS_DAY, WEEKEND_DAY, HOLIDAY)
CASES = len(KINDS_OF_DAY) ** 2 * DAY_MINUTES
SPIKE_FROM, SPIKE_UNTIL, SPIKE_DEMAND = 9 * 60, 10 * 60, 1.15
_MINUTES_AT_A_TIME = 500_000


@dataclass(frozen=True)
class Tables:
    """What each profile does in each case; arrays [profile, case], maintenance [profile, day of week · minute]."""

    log_demand: Float32
    memory_drive: Float32
    spike: npt.NDArray[np.bool_]
    maintenance: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Calendar:
    """Arrays [minute] from `first_minute` (since 1970) on."""

    first_minute: int
    case: npt.NDArray[np.int16]
    day_of_week: npt.NDArray[np.int8]

    @classmethod
    def between(cls, first_minute: int, last_minute: int, timezone: str) -> Calendar:
        """The minutes from the first to before the last. Raises ValueError for an unknown time zone."""
        cases, days = [], []
        for first in range(first_minute, last_minute, _MINUTES_AT_A_TIME):
            minute = np.arange(first, min(first + _MINUTES_AT_A_TIME, last_minute))
            when = business_time(minute.astype("datetime64[m]"), timezone)
            before = business_time((minute - DAY_MINUTES).astype("datetime64[m]"), timezone)
            kind, kind_before = (
                np.where(day.day_of_week >= 5, WEEKEND_DAY, np.where(day.is_holiday, HOLIDAY, BUSINESS_DAY))
                for day in (when, before)
            )
            case = (kind_before * len(KINDS_OF_DAY) + kind) * DAY_MINUTES + when.minute_of_day
            cases.append(case.astype(np.int16))
            days.append(when.day_of_week)
        return cls(first_minute, np.concatenate(cases), np.concatenate(days))


@functools.cache
def tables() -> Tables:
    """The tables of all profiles, in the order of ServerProfile."""
    profiles = tuple(ServerProfile)
    log_demand, memory = np.empty((2, len(profiles), CASES), dtype=np.float32)
    spike = np.zeros((len(profiles), CASES), dtype=np.bool_)
    maintenance = np.zeros((len(profiles), 7, DAY_MINUTES), dtype=np.bool_)
    minute = np.arange(DAY_MINUTES)
    for code, profile in enumerate(profiles):
        table = np.log(demand_table(profile).astype(np.float64))
        pairs = [(before, kind) for before in KINDS_OF_DAY for kind in KINDS_OF_DAY]
        log_demand[code] = np.concatenate([table[kind] for _, kind in pairs])
        drives = [smoothed(table[[before, kind]].ravel())[-DAY_MINUTES:] for before, kind in pairs]
        memory[code] = MEMORY_RESPONSE * np.concatenate(drives)
        in_the_morning = (minute >= SPIKE_FROM) & (minute < SPIKE_UNTIL)
        surge = in_the_morning & (table[BUSINESS_DAY] >= np.log(SPIKE_DEMAND) - 1e-6)
        spike[code] = np.concatenate([surge & (kind == BUSINESS_DAY) for _, kind in pairs])
        window = PROFILES[profile].rhythm.maintenance
        if window is not None:
            first = minutes(window.start)
            maintenance[code, window.day_of_week, first : first + window.minutes] = True
    return Tables(log_demand, memory, spike, maintenance.reshape(len(profiles), -1))
