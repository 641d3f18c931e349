"""Servers: names, traits, and growth of a fleet without a change of its servers."""

import dataclasses

import numpy as np
import pytest

from fleet_forecast.simulation.fleet import Fleet
from server_profiles import DEFAULT_SERVERS, ServerProfile, infer_profile_from_name


def test_names_are_the_documented_ones_and_give_their_profile_back():
    fleet = Fleet.of(DEFAULT_SERVERS, seed=42)
    assert len(fleet) == len(set(fleet.names)) == 90
    assert {fleet.names[i] for i in (0, 20, 35, 60, 65, 75, 83)} == {
        "ppml0001", "ppdb001", "ppweb001", "ppcon01", "ppetl001", "pprisk001", "ppgen001",
    }  # fmt: skip
    for position, name in enumerate(fleet.names):
        assert infer_profile_from_name(name) == fleet.profile(position)
    assert fleet.composition() == DEFAULT_SERVERS
    assert set(DEFAULT_SERVERS) == set(ServerProfile)


def test_a_larger_fleet_holds_the_smaller_one_unchanged():
    small, large = Fleet.of({"database": 5}, 1), Fleet.of({"database": 50, "web_api": 50}, 1)
    for field in dataclasses.fields(small.traits):
        assert np.array_equal(getattr(small.traits, field.name), getattr(large.traits, field.name)[:5]), field.name


def test_a_server_added_later_is_what_it_would_have_been_from_the_start():
    whole, late = Fleet.of({"web_api": 9}, 1), Fleet.of({"web_api": 1}, 1, {"web_api": 9})
    assert late.names == ("ppweb009",)
    for field in dataclasses.fields(whole.traits):
        assert np.array_equal(getattr(whole.traits, field.name)[8:], getattr(late.traits, field.name)), field.name


def test_another_seed_is_another_fleet():
    one, other = Fleet.of(DEFAULT_SERVERS, 1).traits, Fleet.of(DEFAULT_SERVERS, 2).traits
    assert not np.isclose(one.level, other.level).any(axis=1).all()


@pytest.mark.parametrize("profile", DEFAULT_SERVERS)
def test_levels_of_the_default_fleet_average_to_the_typical_server(profile):
    means = [
        np.abs(Fleet.of({profile: DEFAULT_SERVERS[profile]}, seed).traits.level.mean(axis=0)).max()
        for seed in range(20)
    ]
    assert np.mean(means) < 0.25
    spreads = [Fleet.of({profile: 25}, seed).traits.level.std(axis=0) for seed in range(20)]
    assert np.mean(spreads, axis=0) == pytest.approx(np.ones(6), abs=0.12)


def test_busy_servers_are_busy_in_cpu_disk_and_network_but_not_in_memory():
    level = Fleet.of({"generic": 4_000}, 3).traits.level
    correlation = np.corrcoef(level.T)
    busy = [0, 2, 3, 4, 5]
    assert correlation[np.ix_(busy, busy)][~np.eye(5, dtype=bool)] == pytest.approx(np.full(20, 0.36), abs=0.06)
    assert np.abs(correlation[1, busy]).max() < 0.06


def test_about_a_tenth_is_incident_prone_in_any_run_of_servers():
    for seed in range(10):
        prone = Fleet.of({"web_api": 200}, seed).traits.incident_prone
        assert 18 <= prone.sum() <= 22
        assert 2 <= prone[60:100].sum() <= 6


def test_a_fleet_without_servers_or_with_negative_counts_is_refused():
    with pytest.raises(ValueError, match="the fleet has no server; give at least one profile a number above 0"):
        Fleet.of({"web_api": 0}, 1)
    with pytest.raises(ValueError, match="the number of web_api servers is -2; give 0 or more"):
        Fleet.of({"web_api": -2, "database": 5}, 1)
