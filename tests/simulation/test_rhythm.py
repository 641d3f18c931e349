"""The compact calendar against business time computed minute by minute."""

import numpy as np
import pytest

from fleet_forecast.contract.calendar import DEFAULT_CALENDAR, BusinessTime, business_time
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

ZONE = DEFAULT_CALENDAR
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


def test_long_calendars_are_computed_in_pieces(monkeypatch):
    begin, end = minutes_of("2026-10-30", "2026-11-03")
    whole = Calendar.between(begin, end, ZONE)
    monkeypatch.setattr(rhythm, "_MINUTES_AT_A_TIME", 777)
    pieces = Calendar.between(begin, end, ZONE)
    assert np.array_equal(whole.case, pieces.case)
    assert np.array_equal(whole.day_of_week, pieces.day_of_week)


def test_cases_fit_their_type_and_only_databases_have_maintenance():
    assert np.iinfo(np.int16).max >= CASES
    assert tables().maintenance.sum(axis=1).tolist() == [60 if p == "database" else 0 for p in ServerProfile]


def demand_at(profile: str, clock: str, day_of_week: int = 2, holiday: bool = False) -> float:
    hour, minute = clock.split(":")
    when = BusinessTime(
        np.array([int(hour) * 60 + int(minute)], dtype=np.int16),
        np.array([day_of_week], dtype=np.int8),
        np.array([day_of_week >= 5]),
        np.array([holiday]),
        np.array([False]),
    )
    return float(demand_multiplier(ServerProfile(profile), when)[0])


@pytest.mark.parametrize(
    ("profile", "clock", "multiplier"),
    [
        ("ml_compute", "23:00", 1.4),
        ("ml_compute", "03:00", 1.4),
        ("ml_compute", "08:00", 1.0),
        ("ml_compute", "18:00", 1.0),
        ("database", "10:00", 1.2),
        ("database", "17:30", 1.4),
        ("database", "22:00", 1.0),
        ("web_api", "14:30", 1.3),
        ("web_api", "06:00", 0.5),
        ("web_api", "21:00", 0.5),
        ("web_api", "08:00", 1.0),
        ("conductor_mgmt", "17:00", 1.4),
        ("conductor_mgmt", "12:00", 1.0),
        ("data_ingest", "10:30", 1.5),
        ("data_ingest", "15:30", 1.5),
        ("risk_analytics", "17:30", 2.0),
        ("risk_analytics", "12:00", 1.0),
        ("generic", "12:00", 1.0),
    ],
)
def test_demand_has_the_documented_uplifts_on_a_business_day(profile: str, clock: str, multiplier: float) -> None:
    assert demand_at(profile, clock) == pytest.approx(multiplier)


def test_demand_has_the_documented_shapes() -> None:
    assert demand_at("ml_compute", "12:00") < demand_at("ml_compute", "08:00"), "lower 09-16"
    assert demand_at("ml_compute", "12:00", day_of_week=5) > demand_at("ml_compute", "12:00"), "weekend batch"
    assert demand_at("database", "13:00") > demand_at("database", "20:00"), "steady high in market hours"
    assert demand_at("web_api", "09:15") > demand_at("web_api", "12:30") > demand_at("web_api", "11:00")
    assert demand_at("conductor_mgmt", "09:15") > demand_at("conductor_mgmt", "17:00")
    assert demand_at("data_ingest", "16:30") > demand_at("data_ingest", "15:00")
    assert demand_at("risk_analytics", "17:30", holiday=True) < 1
    assert demand_at("risk_analytics", "17:30", day_of_week=6) < 1


def test_demand_moves_by_ramps_and_never_jumps() -> None:
    for profile in ServerProfile:
        day = [demand_at(profile, f"{minute // 60 % 24}:{minute % 60}") for minute in range(24 * 60 + 1)]
        assert np.abs(np.diff(day)).max() <= 0.11
