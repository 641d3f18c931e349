"""Demand on the servers of each profile in business time, and what follows from it: memory, spikes, maintenance.

A minute of a scenario is one of 9 · 1440 cases: its minute of the business day, the kind of the day (business day,
weekend, holiday) and the kind of the day before, because memory follows demand with a lag. The rhythm of a profile is a
table by case, so a calendar of ten years takes a few megabytes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.calendar import (
    BUSINESS_DAY,
    HOLIDAY,
    WEEKEND_DAY,
    BusinessCalendar,
    BusinessTime,
    business_time,
    kind_of_day,
)
from fleet_forecast.contract.definitions import PROFILES, per_fleet
from fleet_forecast.simulation.metric_model import profile_order

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

DAY_MINUTES = 24 * 60
KINDS_OF_DAY = (BUSINESS_DAY, WEEKEND_DAY, HOLIDAY)
CASES = len(KINDS_OF_DAY) ** 2 * DAY_MINUTES
RAMP_MINUTES = 10  # demand changes linearly between two levels over this time, centred on the edge of a window
MEMORY_RESPONSE = 0.25  # change of memory's log odds per change of log demand
MEMORY_LAG_MINUTES = 180
SPIKE_FROM, SPIKE_UNTIL, SPIKE_DEMAND = 9 * 60, 10 * 60, 1.15  # morning spike: minutes of the day, least demand
_MINUTES_AT_A_TIME = 500_000


def demand_multiplier(profile: str, when: BusinessTime) -> npt.NDArray[np.float32]:
    """Demand on a server of the profile; 1 is the demand of a business day outside all windows of its rhythm."""
    return demand_table(profile)[kind_of_day(when), when.minute_of_day]


@per_fleet
def demand_table(profile: str) -> npt.NDArray[np.float32]:
    """Demand by kind of day (business day, weekend, holiday) and minute of day: float32 [3, 1440]."""
    rhythm = PROFILES[profile].rhythm
    table = np.ones((3, DAY_MINUTES))
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
    """[1440] weight of the window in each minute of the day: 0 outside, 1 inside, linear over the ramp."""
    length = (end - start) % DAY_MINUTES
    since_start = (np.arange(DAY_MINUTES) + 0.5 - start) % DAY_MINUTES
    inside = since_start < length
    depth = np.minimum(since_start, length - since_start)
    distance = np.minimum(DAY_MINUTES - since_start, since_start - length)
    coverage: npt.NDArray[np.float64] = np.clip(0.5 + np.where(inside, depth, -distance) / RAMP_MINUTES, 0.0, 1.0)
    return coverage


def smoothed(per_minute: Floats) -> Floats:
    """Exponential moving average with MEMORY_LAG_MINUTES of a curve by minute; it starts at the first value."""
    decay = math.exp(-1 / MEMORY_LAG_MINUTES)
    updates = ((1 - decay) * per_minute).tolist()
    updates[0] = float(per_minute[0])
    return np.array(list(itertools.accumulate(updates, lambda average, update: decay * average + update)))


@dataclass(frozen=True)
class Tables:
    """Rhythm of each profile by case; arrays [profile, case], maintenance [profile, day of week · minute]."""

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
    def between(cls, first_minute: int, last_minute: int, calendar: BusinessCalendar) -> Calendar:
        """The minutes from the first to before the last."""
        cases, days = [], []
        for first in range(first_minute, last_minute, _MINUTES_AT_A_TIME):
            minute = np.arange(first, min(first + _MINUTES_AT_A_TIME, last_minute))
            when = business_time(minute.astype("datetime64[m]"), calendar)
            before = business_time((minute - DAY_MINUTES).astype("datetime64[m]"), calendar)
            case = (kind_of_day(before) * len(KINDS_OF_DAY) + kind_of_day(when)) * DAY_MINUTES + when.minute_of_day
            cases.append(case.astype(np.int16))
            days.append(when.day_of_week)
        return cls(first_minute, np.concatenate(cases), np.concatenate(days))


@per_fleet
def tables() -> Tables:
    """The tables of all profiles, in the order of profile_order()."""
    profiles = profile_order()
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
