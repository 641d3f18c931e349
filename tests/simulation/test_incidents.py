"""Incidents: documented, visible, labelled, as frequent as asked for."""

from pathlib import Path

import numpy as np
import pytest

from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.incident_kinds import KINDS, LABELS, incident_table
from fleet_forecast.simulation.incidents import (
    CALM_MINUTES,
    Period,
    incident_rate_factors,
    injected_event,
    schedule_events,
)
from fleet_forecast.simulation.outages import schedule_outages
from fleet_forecast.simulation.scenario import Scenario, World
from fleet_forecast.simulation.simulator import Simulator
from fleet_forecast.simulation.states import CRITICAL, RECOVERY
from server_profiles import PROFILES, ServerProfile

START = np.datetime64("2026-09-14T04:00:00", "s")
MONTH = 30 * 86_400.0
NAMES = {label: spec.profile for spec in PROFILES.values() for label in spec.incidents}


def test_every_documented_incident_has_its_phases_in_the_order_of_the_profiles():
    assert tuple(label for spec in PROFILES.values() for label in spec.incidents) == LABELS
    for label, kind in KINDS.items():
        assert kind.signs, label
        assert kind.worst, label
        sudden = kind.warning == (0, 0)
        assert bool(kind.before) != sudden, f"{label}: a precursor shows if and only if there is a warning"


def test_some_incidents_warn_hours_ahead_some_minutes_and_some_not_at_all():
    longest = {label: kind.warning[1] for label, kind in KINDS.items()}
    assert longest["oom"] >= 240
    assert longest["job_queue_overflow"] >= 120
    assert 0 < longest["ddos"] <= 15
    assert longest["ssl_expiry"] == 0


@pytest.mark.parametrize("label", LABELS)
def test_an_incident_has_precursor_peak_recovery_and_label_and_leaves_the_rest_alone(label):
    """The same server with and without it: the noise is the same, so the difference is the incident."""
    fleet = Fleet.of({NAMES[label]: 2}, seed=3)
    scenario = Scenario(fleet, START, 2_000, 60, incident_rate=0, outage_rate=0)
    event = injected_event(fleet, fleet.names[1], label, 100 * 60.0)
    plain, struck = Simulator(World.of(scenario)), Simulator(World.of(scenario))
    struck.add_events(event)
    before, after = plain.advance(2_000), struck.advance(2_000)
    change = np.abs(after.metrics - before.metrics).max(axis=0)  # [server, step]
    seconds = np.arange(2_000) * 60.0
    onset, start, peak, fade, end = (float(times[0]) for times in event[2:7])

    assert not change[0].any(), "another server"
    assert not change[1, (seconds < onset) | (seconds >= end)].any()
    relative = np.abs(np.log((after.metrics[:, 1] + 0.5) / (before.metrics[:, 1] + 0.5))).max(axis=0)
    warning, worst = (seconds > onset) & (seconds < start), (seconds >= peak) & (seconds < fade)
    assert relative[worst].mean() > 0.5
    if KINDS[label].before:
        late = warning & (seconds > onset + 0.7 * (start - onset))
        assert not late.any() or 0.03 < relative[late].mean() < relative[worst].mean()
    assert relative[(seconds > fade + 0.6 * (end - fade)) & (seconds < end)].mean() < 0.5 * relative[worst].mean()

    labelled = (seconds >= start) & (seconds < end)
    assert np.array_equal(after.incidents[1] == LABELS.index(label), labelled)
    assert (after.states[1, labelled & (seconds < fade)] == CRITICAL).all()
    assert (after.states[1, labelled & (seconds >= fade)] == RECOVERY).all()
    assert np.array_equal(after.states[1, ~labelled], before.states[1, ~labelled])
    assert np.nanmax(after.metrics[:2]) <= 100


def test_memory_leaks_for_hours_before_an_oom():
    fleet = Fleet.of({"ml_compute": 1}, seed=3)
    scenario = Scenario(fleet, START, 600, 60, incident_rate=0, outage_rate=0)
    event = injected_event(fleet, "ppml0001", "oom", 0.0)
    struck = Simulator(World.of(scenario))
    struck.add_events(event)
    memory = struck.advance(600).metrics[1, 0]
    start, peak = int(event.start[0] // 60), int(event.peak[0] // 60)
    assert start >= 180
    assert memory[:30].mean() + 5 < memory[start - 30 : start].mean() < memory[peak : peak + 5].mean()
    assert memory[int(event.fade[0] // 60) + 3] < memory[:30].mean(), "a restart empties memory"


def test_the_rate_is_incidents_a_server_and_month_and_incident_prone_servers_have_more():
    fleet = Fleet.of({"web_api": 400, "database": 400}, seed=1)
    for rate in (0.5, 1.0, 3.0):
        events = schedule_events(fleet, fleet.seed, rate, Period(0.0, 3 * MONTH))
        assert events.server.size / len(fleet) / 3 == pytest.approx(rate, rel=0.12)
    counts = np.bincount(events.server, minlength=len(fleet))
    prone = fleet.traits.incident_prone
    assert prone.mean() == pytest.approx(0.1, abs=0.01)
    assert counts[prone].mean() > 4 * counts[~prone].mean()
    assert incident_rate_factors(fleet).mean() == pytest.approx(1.0, abs=0.05)


def test_no_incidents_at_rate_0_and_none_on_generic_servers():
    assert schedule_events(Fleet.of({"web_api": 50}, 1), 1, 0.0, Period(0.0, MONTH)).server.size == 0
    assert schedule_events(Fleet.of({"generic": 50}, 1), 1, 50.0, Period(0.0, MONTH)).server.size == 0


def test_times_are_in_order_and_a_server_has_one_incident_at_a_time():
    fleet = Fleet.of({profile: 20 for profile in ServerProfile if profile != "data_ingest"}, seed=1)
    events = schedule_events(fleet, 1, 8.0, Period(0.0, 3 * MONTH))
    for earlier, later in ((events.onset, events.start), (events.start, events.peak), (events.peak, events.fade)):
        assert (earlier <= later).all()
    assert (events.fade < events.end).all()
    followed = events.server[1:] == events.server[:-1]
    assert (events.onset[1:] - events.end[:-1])[followed].min() > CALM_MINUTES * 60 - 1
    kinds = np.bincount(events.kind, minlength=len(LABELS))
    own = np.array([NAMES[label] != "data_ingest" for label in LABELS])
    assert (kinds[own] > 0).all()
    assert not kinds[~own].any()


def test_a_backpressure_cascade_spreads_later_and_weaker_to_other_servers():
    fleet = Fleet.of({"data_ingest": 10, "database": 5, "web_api": 5}, seed=2)
    events = schedule_events(fleet, 2, 4.0, Period(0.0, 6 * MONTH))
    cascade = events.kind == LABELS.index("backpressure_cascade")
    sources = cascade & (events.onset < events.start)
    spread = cascade & (events.onset == events.start)
    assert sources.any()
    assert spread.sum() == 5 * sources.sum()
    for source in np.flatnonzero(sources):
        hit = spread & (events.start > events.start[source]) & (events.start < events.start[source] + 1_260)
        assert hit.sum() >= 5
        assert events.server[source] not in events.server[hit]
        assert (events.severity[hit] < events.severity[source]).any()
    profiles = {fleet.profile(server) for server in events.server[spread]}
    assert profiles == {"data_ingest", "database"}


def test_outages_last_minutes_to_hours():
    fleet = Fleet.of({"generic": 300}, seed=2)
    outages = schedule_outages(fleet, 2, 1.0, Period(0.0, 6 * MONTH))
    minutes = (outages.end - outages.start) / 60
    assert outages.server.size / 300 / 6 == pytest.approx(0.5, rel=0.15)
    assert 10 <= minutes.min() < np.median(minutes) < minutes.max() <= 480


@pytest.mark.parametrize(
    ("server", "label", "message"),
    [
        ("ppdb999", "lock_contention", "no server 'ppdb999' in the fleet; use one of its names, such as ppdb001"),
        ("ppdb001", "oom", "a database server such as ppdb001 has no incident 'oom'; it has: lock_contention, disk_io"),
        ("ppgen001", "oom", "it has: none"),
    ],
)
def test_an_incident_that_cannot_be_is_refused_with_the_remedy(server, label, message):
    with pytest.raises(ValueError, match=message):
        injected_event(Fleet.of({"database": 2, "generic": 1}, 1), server, label, 0.0)


def test_the_documents_table_is_that_of_the_code():
    assert incident_table() in (Path(__file__).parents[2] / "docs" / "incidents.md").read_text(encoding="utf-8")
