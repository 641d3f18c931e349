"""The profile audit of simulated fleets whose true profiles are known."""

import numpy as np
import pytest

from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.profile_audit.audit import AuditedFleet, AuditError, audit_document, audit_profiles
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.metric_model import simulated
from fleet_forecast.simulation.scenario import Scenario
from fleet_forecast.simulation.simulator import simulate
from server_profiles import profile_of

COUNTS = {"database": 12, "web_api": 13, "data_ingest": 11}  # rows 0 to 11, 12 to 24, 25 to 35
START = np.datetime64("2026-09-14T00:00:00", "s")


@pytest.fixture(scope="module")
def fleet():
    """One day of three profiles."""
    servers = Fleet.of(COUNTS, seed=7)
    trace = simulate(Scenario(servers, START, steps=288, step_seconds=300, incident_rate=0.0))
    profiles = [str(servers.profile(row)) for row in range(len(servers))]
    return AuditedFleet(servers.names, profiles, [True] * len(profiles), simulated().names, trace.metrics)


def audited(fleet, profiles=None, matched=None, day=None):
    changed = AuditedFleet(
        fleet.names,
        fleet.profiles if profiles is None else profiles,
        fleet.matched if matched is None else matched,
        fleet.metrics,
        fleet.day if day is None else day,
    )
    return audit_profiles(changed)


def replaced(values, row, value):
    return [value if each == row else old for each, old in enumerate(values)]


def test_right_names_get_no_suggestion(fleet):
    audit = audited(fleet)
    assert audit.suggestions == []
    assert {server.verdict for server in audit.servers} == {"agrees"}
    assert audit.two_in_one == ()


def test_most_wrong_names_are_found_and_no_suggestion_is_wrong(fleet):
    """Each server in turn is called by another profile."""
    found = 0
    for row, profile in enumerate(fleet.profiles):
        wrong = "database" if profile == "web_api" else "web_api"
        suggestions = audited(fleet, replaced(fleet.profiles, row, wrong)).suggestions
        found += len(suggestions)
        for each in suggestions:
            assert (each.server_name, each.profile, each.verdict) == (fleet.names[row], wrong, "contradicts")
            assert each.suggested == profile
            assert each.probability >= 0.8
    assert found >= 0.8 * len(fleet.names)


def test_a_server_that_no_rule_matches_gets_the_profile_it_behaves_like(fleet):
    audit = audited(fleet, replaced(fleet.profiles, 3, "generic"), replaced(fleet.matched, 3, False))
    (found,) = audit.suggestions
    assert (found.server_name, found.verdict, found.suggested) == (fleet.names[3], "unmatched", "database")


def test_a_server_unlike_all_others_gets_no_suggestion(fleet):
    """Its disk is a thousand times busier, its memory nearly full, and neither changes over the day."""
    day = fleet.day.copy()
    day[3] = [99.0, 98.0, 9_000.0, 0.1, 9_000.0, 9_000.0]
    found = audited(fleet, replaced(fleet.profiles, 3, "generic"), replaced(fleet.matched, 3, False), day).servers[3]
    assert (found.verdict, found.suggested) == ("unclear", None)


def test_a_server_with_an_hour_of_history_has_no_verdict(fleet):
    day = fleet.day.copy()
    day[5, :-12] = np.nan
    found = audited(fleet, day=day).servers[5]
    assert (found.verdict, found.suggested, found.probability) == ("too_short", None, None)


def test_metrics_that_only_some_servers_have_are_left_out_of_the_comparison(fleet):
    day = fleet.day.copy()
    day[::2, :, 1] = np.nan
    day[:, :, 5] = np.nan
    audit = audited(fleet, replaced(fleet.profiles, 12, "database"), day=day)
    assert [server.server_name for server in audit.suggestions] == [fleet.names[12]]


def test_the_unit_of_a_rate_does_not_matter(fleet):
    profiles = replaced(fleet.profiles, 12, "database")
    day = fleet.day.copy()
    day[:, :, 2:5] *= 1024
    in_other_unit = audited(fleet, profiles, day=day)
    for one, other in zip(audited(fleet, profiles).servers, in_other_unit.servers, strict=True):
        assert one.verdict == other.verdict
        assert one.probability == pytest.approx(other.probability, abs=0.02)


def test_two_kinds_of_servers_under_one_name_are_told_apart(fleet):
    joined = ["web_api" if profile == "data_ingest" else profile for profile in fleet.profiles]
    (found,) = audited(fleet, joined).two_in_one
    assert found.profile == "web_api"
    groups = {frozenset(found.first_group), frozenset(found.second_group)}
    truth = np.array(fleet.profiles)
    names = np.array(fleet.names, dtype=object)
    assert groups == {frozenset(names[truth == "web_api"]), frozenset(names[truth == "data_ingest"])}


def test_the_suggested_lines_are_a_fleet_file_that_accepts_the_suggestion(fleet, tmp_path):
    audit = audited(fleet, replaced(fleet.profiles, 12, "database"))
    file = tmp_path / "fleet.toml"
    file.write_text(audit_document(audit)["toml"])
    assert profile_of(fleet.names[12], "database", read_fleet(file).rules)[0] == "web_api"


def test_a_suggested_profile_that_is_not_built_in_is_added_by_the_lines(fleet, tmp_path):
    own = ["frontend" if profile == "web_api" else profile for profile in fleet.profiles]
    audit = audited(fleet, replaced(own, 12, "database"))
    assert [server.suggested for server in audit.suggestions] == ["frontend"]
    (tmp_path / "fleet.toml").write_text("\n".join(audit.toml_lines()))
    assert read_fleet(tmp_path / "fleet.toml").rules.pins == {fleet.names[12]: "frontend"}


def test_a_fleet_of_single_servers_cannot_be_audited(fleet):
    with pytest.raises(AuditError, match="nothing to compare with"):
        audited(fleet, profiles=[str(row) for row in range(len(fleet.names))])
