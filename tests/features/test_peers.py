"""Peers: leave-one-out medians equal those of a plain loop, in every part of a table."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fleet_forecast.features.bounded_transform import BoundedTransform
from fleet_forecast.features.peers import (
    MAX_MEMBERS,
    FleetPeers,
    PeerTable,
    ProfileMembers,
    leave_one_out,
    medians_without_one,
    order_statistics,
    peer_counts,
    peer_levels,
    splice,
)

BOUNDS = BoundedTransform(np.array([True, False]), np.array([20.0, 0.5], dtype=np.float32))


def median(values: np.ndarray) -> np.ndarray:
    """Over axis 0, NaN without any value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=0) if len(values) else np.full(values.shape[1:], np.nan)


# Few distinct values: ties are frequent.
FLEETS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 7), st.integers(1, 5), st.just(2)),
    elements=st.sampled_from([np.nan, 0.0, 1.0, 2.0, 5.0]),
)


@given(FLEETS)
def test_the_level_is_the_median_of_the_others(values: np.ndarray) -> None:
    for server in range(len(values)):
        found = leave_one_out(medians_without_one(order_statistics(values)), values[server])
        np.testing.assert_allclose(found, median(np.delete(values, server, axis=0)))


@given(FLEETS)
def test_the_level_of_a_server_that_is_not_a_member_is_the_median_of_all(values: np.ndarray) -> None:
    found = leave_one_out(medians_without_one(order_statistics(values)), np.full_like(values[0], np.nan))
    np.testing.assert_allclose(found, median(values))


@pytest.fixture
def fleet() -> np.ndarray:
    random = np.random.default_rng(0)
    values = random.uniform(0, 90, (9, 40, 2)).astype(np.float32)
    values[random.random(values.shape) < 0.2] = np.nan
    return values


PROFILES = ["web", "web", "db", "web", None, "db", "web", "web", "cache"]
NAMES = [f"server{row}" for row in range(9)]


def test_a_table_has_the_members_of_each_profile(fleet: np.ndarray) -> None:
    members = ProfileMembers.of(NAMES, PROFILES)
    table = PeerTable.build(fleet, members, 1000)
    assert table.profiles == ("cache", "db", "web")
    assert members.mask(9).tolist() == [profile is not None for profile in PROFILES]
    assert table.rows_of(["web", None, "unknown", "cache"]).tolist() == [2, -1, -1, 0]
    for found, expected in zip(table.statistics, order_statistics(fleet[[0, 1, 3, 6, 7]]), strict=True):
        np.testing.assert_array_equal(found[2], expected)


def test_a_large_profile_has_a_table_of_some_members_that_do_not_depend_on_the_order() -> None:
    names = [f"server{row}" for row in range(3 * MAX_MEMBERS)]
    (rows,) = ProfileMembers.of(names, ["web"] * len(names)).rows
    (reversed_rows,) = ProfileMembers.of(names[::-1], ["web"] * len(names)).rows
    assert len(rows) == MAX_MEMBERS
    assert {names[row] for row in rows} == {names[::-1][row] for row in reversed_rows}


def test_the_transformed_table_is_the_table_of_transformed_values(fleet: np.ndarray) -> None:
    members = ProfileMembers.of(NAMES, PROFILES)
    found = PeerTable.build(fleet, members, 0).transformed(BOUNDS)
    expected = PeerTable.build(BOUNDS.transform(fleet), members, 0)
    for ours, theirs in zip(found.statistics, expected.statistics, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_peers_of_windows_equal_a_plain_loop(fleet: np.ndarray) -> None:
    """Also before and after the table, for servers without a profile, and for a server that is not a member."""
    members = ProfileMembers.of(NAMES[:8], PROFILES[:8])
    table = PeerTable.build(fleet[:8], members, 1000)
    profiles = [*PROFILES[:8], "web"]
    medians = medians_without_one(table.statistics)
    peers = FleetPeers(table.first_step, medians, table.rows_of(profiles), np.arange(9) < 8)
    servers, origins = np.array([0, 2, 4, 8, -1, 6]), np.array([1039, 1010, 1039, 1020, 1039, 1045])
    own = np.full((6, 15, 2), np.nan, dtype=np.float32)
    for window, (server, origin) in enumerate(zip(servers, origins, strict=True)):
        for step in range(15):
            at = origin - 1000 - 14 + step
            if 0 <= at < 40:
                own[window, step] = fleet[server, at]
    level, counts = peer_levels(peers, servers, origins, own), peer_counts(peers, servers, origins, own)
    for window, (server, origin) in enumerate(zip(servers, origins, strict=True)):
        profile = profiles[server] if server >= 0 else None
        others = [row for row in range(8) if PROFILES[row] == profile and profile and row != server]
        steps = [origin - 1000 - 14 + step for step in range(15)]
        values = [fleet[others, at] if 0 <= at < 40 else np.empty((0, 2)) for at in steps]
        for step in range(15):
            np.testing.assert_allclose(level[window, step], median(values[step]))
        measured = np.array([(~np.isnan(of_step)).sum(axis=0) for of_step in values])
        assert counts.largest[window] == measured.max()
        for metric, of_metric in enumerate(measured.T):
            expected = of_metric[of_metric > 0].mean() if of_metric.any() else 0
            assert counts.mean[window, metric] == pytest.approx(expected)


def test_values_in_the_table_that_differ_from_the_history_are_also_taken_out(fleet: np.ndarray) -> None:
    """A history that is shorter than what the table has of the server."""
    table = PeerTable.build(fleet[:8], ProfileMembers.of(NAMES[:8], PROFILES[:8]), 1000)
    medians, rows = medians_without_one(table.statistics), table.rows_of(PROFILES[:8])
    whole = FleetPeers(table.first_step, medians, rows, np.ones(8, dtype=bool))
    servers, origins = np.arange(8), np.full(8, 1039)
    short = np.where(np.arange(40)[:, None] < 30, np.float32(np.nan), fleet[:8] + 1)
    stored = whole._replace(values=fleet[:8])
    expected = peer_levels(whole, servers, origins, fleet[:8])
    np.testing.assert_array_equal(peer_levels(stored, servers, origins, short), expected)
    some = np.array([5, 2])
    np.testing.assert_array_equal(
        peer_levels(stored.select(some), np.arange(2), origins[:2], short[some]), expected[some]
    )


def test_values_that_were_not_measured_are_the_peers_plus_the_offset() -> None:
    level = np.arange(12, dtype=np.float32).reshape(1, 12, 1)
    own = level + 3.0
    own[0, :8] = np.nan
    spliced = splice(own, level, 6)
    np.testing.assert_array_equal(spliced.values, level + 3.0)
    np.testing.assert_array_equal(spliced.offset, [[3.0]])
    without_own = splice(np.full_like(own, np.nan), level, 6)
    np.testing.assert_array_equal(without_own.values, level)
    assert np.isnan(without_own.offset).all()
    without_peers = splice(own, np.full_like(level, np.nan), 6)
    np.testing.assert_array_equal(without_peers.values, own)
