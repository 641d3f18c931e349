"""The benchmarks of the risk model: events of several servers, hits."""

import numpy as np
import pytest

from benchmarks.risk import real, simulated
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.risk.alarms import AlarmResults
from fleet_forecast.training.risk.fleets import labelled_fleet

HOUR = 3_600.0
START = np.datetime64("2026-03-02T00:00:00", "s")
ZERO = float(START.astype(np.int64))


def test_kinds_have_their_share_found_and_ahead():
    kinds = np.array(["oom", "oom", "ddos"], dtype=object)
    results = AlarmResults(0, kinds, np.array([True, True, False]), np.array([1_800.0, np.nan, -600.0]))
    found = simulated.by_kind([results])
    assert found["oom"] == {"incidents": 2, "found": 0.5, "ahead": 0.5, "median_lead_minutes": 30.0}
    assert found["ddos"] == {"incidents": 1, "found": 1.0, "ahead": 0.0, "median_lead_minutes": -10.0}


def fleet_of(*labels, days=45):
    grid = FleetGrid(
        ("a", "b", "c"), ("one", "one", "two"), ("cpu_pct",), START, 300, np.zeros((3, days * 288, 1), np.float32)
    )
    records = [IncidentRecord(name, ZERO + start * HOUR, ZERO + end * HOUR, "x") for name, start, end in labels]
    return labelled_fleet(grid, grid.peers(), records, BusinessCalendar("UTC"))


def test_labels_of_a_profile_within_an_hour_are_one_event():
    fleet = fleet_of(("a", 800, 805), ("b", 800.5, 810), ("c", 800.5, 801), ("a", 812, 813))
    events = real.events_of(fleet)
    assert [len(event.labels) for event in events] == [2, 1, 1]
    assert [event.start for event in events] == [ZERO + 800 * HOUR, ZERO + 812 * HOUR, ZERO + 800.5 * HOUR]


def test_one_hit_of_an_event_counts_and_other_alarms_are_false():
    fleet = fleet_of(("a", 800, 805), ("b", 800.5, 810))
    score = np.zeros((3, 45 * 288))
    score[0, 802 * 12 : 803 * 12] = score[1, 804 * 12 : 805 * 12] = 1.0  # two alarms of the event
    score[2, 802 * 12 : 803 * 12] = 1.0
    result = real.evaluate_alarms(score, 0.5, fleet, real.EVALUATE)
    assert result.false_alarms == 1
    np.testing.assert_allclose(result.delays, [2 * HOUR + 600])
    assert real.f1(result) == pytest.approx(2 / 3)
