"""The compact calendar against business time computed minute by minute."""

import numpy as np
import pytest

from fleet_forecast.contract.calendar import business_time
from fleet_forecast.simulation import rhythm
from fleet_forecast.simulation.rhythm import (
    CASES,
    DAY_MINUTES,
    MEMORY_RESPONSE,
    Calendar,
    demand_multiplier,
    smoothed,
    tables,
)
from server_profiles import ServerProfile

ZONE = "America/New_York"
# Thanksgiving week, both changes of the clock, a new year.
SPANS = [
    ("2026-11-23", "2026-12-01"),
    ("2026-03-05", "2026-03-12"),
    ("2026-10-29", "2026-11-04"),
    ("2025-12-29", "2026-01-06"),
]


def minutes_of(first, last):
    return (int(np.datetime64(day, "m").astype(np.int64)) for day in (first, last))


@pytest.mark.parametrize(("first", "last"), SPANS)
def test_demand_is_that_of_business_time_minute_by_minute(first, last):
    begin, end = minutes_of(first, last)
    calendar = Calendar.between(begin, end, ZONE)
    when = business_time(np.arange(begin, end).astype("datetime64[m]"), ZONE)
    assert np.array_equal(calendar.case % DAY_MINUTES, when.minute_of_day)
    assert np.array_equal(calendar.day_of_week, when.day_of_week)
    for code, profile in enumerate(ServerProfile):
        demand = np.exp(tables().log_demand[code, calendar.case])
        assert demand == pytest.approx(demand_multiplier(profile, when), rel=1e-6)


@pytest.mark.parametrize(("first", "last"), SPANS)
def test_memory_is_driven_by_what_demand_was(first, last):
    begin, end = minutes_of(first, last)
    lead = 4 * DAY_MINUTES
    when = business_time(np.arange(begin - lead, end).astype("datetime64[m]"), ZONE)
    calendar = Calendar.between(begin, end, ZONE)
    for code, profile in enumerate(ServerProfile):
        plain = MEMORY_RESPONSE * smoothed(np.log(demand_multiplier(profile, when).astype(float)))[lead:]
        assert tables().memory_drive[code, calendar.case] == pytest.approx(plain, abs=0.03)


def test_long_calendars_are_laid_out_in_pieces(monkeypatch):
    begin, end = minutes_of("2026-10-30", "2026-11-03")
    whole = Calendar.between(begin, end, ZONE)
    monkeypatch.setattr(rhythm, "_MINUTES_AT_A_TIME", 777)
    pieces = Calendar.between(begin, end, ZONE)
    assert np.array_equal(whole.case, pieces.case)
    assert np.array_equal(whole.day_of_week, pieces.day_of_week)


def test_cases_fit_their_type_and_only_databases_have_maintenance():
    assert np.iinfo(np.int16).max >= CASES
    assert tables().maintenance.sum(axis=1).tolist() == [60 if p == "database" else 0 for p in ServerProfile]
