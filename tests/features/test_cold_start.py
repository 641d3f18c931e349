"""How far a short history is believed: against plain loops over strangers, and on fleets where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.features.cold_start import (
    ShortHistory,
    between_lengths,
    expected_spread,
    incomparable,
    lengths,
    short_history,
)

CONTEXT, FOLLOWING, DAYS = 96, 24, 10


def told_by(column: np.ndarray) -> ShortHistory:
    """By a fleet's histories, with its own statistics."""
    deviations = [part.std() for server in column for part in np.array_split(server[~np.isnan(server)], DAYS)]
    return short_history(column, float(np.nanstd(column)), float(np.median(deviations)), CONTEXT)


def swinging_fleet(servers: int = 8, seed: int = 0) -> np.ndarray:
    """Servers of different levels under a slow random walk and noise: float64 [server, step]."""
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.normal(0, 0.15, (servers, CONTEXT * DAYS)), axis=1)
    return random.normal(50, 3, (servers, 1)) + walk + random.normal(0, 2, walk.shape)


def test_lengths_reach_from_one_step_to_the_context() -> None:
    assert lengths(288).tolist() == [0, 1, 4, 16, 64, 288]
    assert lengths(24).tolist() == [0, 1, 4, 24]
    assert lengths(1).tolist() == [0, 1]


def test_no_other_weight_of_a_strangers_mean_comes_nearer_to_what_follows() -> None:
    """Every server in turn unknown, its steps' mean against the others': plain loops over a grid of weights."""
    column = swinging_fleet()
    level = told_by(column).level_weight
    for length, weight in zip(lengths(CONTEXT)[1:-1], level[1:-1], strict=True):
        misses = []
        for server in range(len(column)):
            others = np.mean([column[other].mean() for other in range(len(column)) if other != server])
            for origin in range(max(lengths(CONTEXT)[:-1]), column.shape[1] - FOLLOWING + 1, CONTEXT // 8):
                mean = column[server, origin - length : origin].mean()
                follows = column[server, origin : origin + FOLLOWING].mean()
                misses.append([abs(follows - others - w * (mean - others)) for w in (weight, *np.linspace(0, 1, 51))])
        ours, *others_ = np.mean(misses, axis=0)
        assert ours <= min(others_) + 1e-12
        assert 0.1 < weight < 0.99


def test_servers_far_apart_and_steady_are_believed_at_once_and_servers_alike_never() -> None:
    hours = 10 * np.sin(2 * np.pi * np.arange(CONTEXT * DAYS) / CONTEXT)
    noise = np.random.default_rng(0).normal(0, 1, (6, CONTEXT * DAYS))
    apart = told_by(np.linspace(20, 80, 6)[:, None] + noise).level_weight
    alike = told_by(50 + hours + noise).level_weight
    assert apart[1] > 0.95
    assert alike[1] < 0.75


def test_a_server_that_swings_widely_does_not_take_away_the_others_word() -> None:
    column = np.linspace(20, 80, 6)[:, None] + np.random.default_rng(0).normal(0, 1, (6, CONTEXT * DAYS))
    column[3] = 100.0 * (np.arange(CONTEXT * DAYS) // 33 % 2)
    level = told_by(column).level_weight
    assert (level[1:] > 0.9).all()


def test_a_deviation_counts_where_servers_differ_in_it() -> None:
    """Quiet and restless servers are told apart by a few steps; where all are alike these add nothing but noise."""
    noise = np.random.default_rng(0).normal(0, 1, (12, CONTEXT * DAYS))
    differing = told_by(50 + np.geomspace(0.05, 20, 12)[:, None] * noise).spread_weight
    alike = told_by(50 + noise).spread_weight
    assert differing[2] > 0.8
    assert alike[2] < 0.4


def test_a_gap_is_no_measurement() -> None:
    column = swinging_fleet()
    whole = told_by(column).level_weight
    column[np.random.default_rng(0).random(column.shape) < 0.2] = np.nan
    gaps = told_by(column).level_weight
    assert gaps == pytest.approx(whole, abs=0.1)


def test_servers_looked_at_in_parts_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = told_by(swinging_fleet())
    monkeypatch.setattr(
        "fleet_forecast.features.cold_start.SERVER_STEPS_AT_ONCE", 3 * CONTEXT * DAYS
    )  # three, three, two
    for part, expected in zip(told_by(swinging_fleet()), whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-9)


def test_what_follows_lies_within_the_shape_as_often_as_its_levels_say() -> None:
    """A fleet never seen, forecast by hand at every length of history: coverage of the outermost quantiles."""
    told, strangers = told_by(column := swinging_fleet(200)), swinging_fleet(200, seed=1)
    spread, centre = column.std(), column.mean()
    within = float(np.median([part.std() for server in column for part in np.array_split(server, DAYS)])) / spread
    for index, n in enumerate(lengths(CONTEXT)[:-1]):
        covered = []
        for server in (strangers - centre) / spread:
            for origin in range(CONTEXT, len(server) - FOLLOWING, 53):
                seen = server[origin - n : origin]
                expected = told.level_weight[index] * (seen.mean() if n else 0.0)
                own = (((seen - seen.mean()) ** 2).sum() if n else 0.0) + 2 * within**2
                scale = expected_spread(
                    told.level_weight[index], told.spread_weight[index], within, np.sqrt(own / (n + 2))
                )
                low, high = expected + scale * told.shape[index, [0, -1]]
                following = server[origin : origin + FOLLOWING]
                covered.append((following >= low) & (following <= high))
        assert np.mean(covered) == pytest.approx(0.96, abs=0.02)


@pytest.mark.parametrize("column", [np.full((1, 960), 5.0), np.full((3, 30), 5.0)])
def test_servers_that_cannot_be_compared_tell_only_of_a_whole_context(column: np.ndarray) -> None:
    """A single one, and too few steps."""
    told, whole = short_history(column, 1.0, 1.0, CONTEXT), incomparable(CONTEXT)
    for found, expected in zip(told, whole, strict=True):
        assert np.isnan(found[1:-1]).all()
        np.testing.assert_array_equal(found[-1], expected[-1])


def test_between_the_lengths_all_changes_evenly() -> None:
    table = between_lengths(CONTEXT) @ np.array([0.0, 0.2, 0.6, 0.5, 0.9])
    assert table.shape == (CONTEXT + 1,)
    assert table[[0, 1, 4, 16, CONTEXT]] == pytest.approx([0.0, 0.2, 0.6, 0.5, 0.9])
    assert table[2] == pytest.approx(0.4)  # halfway from 1 to 4 on a log scale
    assert (np.diff(table[16:]) > 0).all()
    assert between_lengths(1) @ np.array([0.0, 0.3]) == pytest.approx([0.0, 0.3])
