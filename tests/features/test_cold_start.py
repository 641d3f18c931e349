"""Cold-start prior: against plain leave-one-server-out loops, and on fleets whose prior is known."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.features.cold_start import (
    ColdStartPrior,
    ServersOfProfile,
    default_prior,
    expected_scale,
    fit_cold_start_prior,
    fit_cold_start_priors,
    history_lengths,
    length_interpolation,
)

CONTEXT, FOLLOWING, DAYS = 96, 24, 10


def servers_of(column: np.ndarray) -> ServersOfProfile:
    """A fleet with its own statistics."""
    deviations = [part.std() for server in column for part in np.array_split(server[~np.isnan(server)], DAYS)]
    return ServersOfProfile(column, float(np.nanstd(column)), float(np.median(deviations)))


def prior_of(column: np.ndarray) -> ColdStartPrior:
    """The prior of a fleet, with its own statistics."""
    return fit_cold_start_prior(servers_of(column), CONTEXT)


def swinging_fleet(servers: int = 8, seed: int = 0) -> np.ndarray:
    """Servers of different levels under a slow random walk and noise: float64 [server, step]."""
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.normal(0, 0.15, (servers, CONTEXT * DAYS)), axis=1)
    return random.normal(50, 3, (servers, 1)) + walk + random.normal(0, 2, walk.shape)


def test_history_lengths_range_from_one_step_to_the_context() -> None:
    assert history_lengths(288).tolist() == [0, 1, 4, 16, 64, 288]
    assert history_lengths(24).tolist() == [0, 1, 4, 24]
    assert history_lengths(1).tolist() == [0, 1]


def test_no_other_weight_of_a_short_mean_has_a_smaller_absolute_error() -> None:
    """Leave one server out: plain loops over a grid of weights."""
    column = swinging_fleet()
    level = prior_of(column).loc_weight
    for length, weight in zip(history_lengths(CONTEXT)[1:-1], level[1:-1], strict=True):
        misses = []
        for server in range(len(column)):
            others = np.mean([column[other].mean() for other in range(len(column)) if other != server])
            for origin in range(max(history_lengths(CONTEXT)[:-1]), column.shape[1] - FOLLOWING + 1, CONTEXT // 8):
                mean = column[server, origin - length : origin].mean()
                follows = column[server, origin : origin + FOLLOWING].mean()
                misses.append([abs(follows - others - w * (mean - others)) for w in (weight, *np.linspace(0, 1, 51))])
        ours, *others_ = np.mean(misses, axis=0)
        assert ours <= min(others_) + 1e-12
        assert 0.1 < weight < 0.99


def test_the_loc_weight_is_high_for_steady_servers_far_apart_and_low_for_similar_ones() -> None:
    hours = 10 * np.sin(2 * np.pi * np.arange(CONTEXT * DAYS) / CONTEXT)
    noise = np.random.default_rng(0).normal(0, 1, (6, CONTEXT * DAYS))
    apart = prior_of(np.linspace(20, 80, 6)[:, None] + noise).loc_weight
    alike = prior_of(50 + hours + noise).loc_weight
    assert apart[1] > 0.95
    assert alike[1] < 0.75


def test_one_strongly_varying_server_does_not_dominate_the_loc_weight() -> None:
    column = np.linspace(20, 80, 6)[:, None] + np.random.default_rng(0).normal(0, 1, (6, CONTEXT * DAYS))
    column[3] = 100.0 * (np.arange(CONTEXT * DAYS) // 33 % 2)
    level = prior_of(column).loc_weight
    assert (level[1:] > 0.9).all()


def test_the_scale_weight_is_high_only_where_servers_differ_in_deviation() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (12, CONTEXT * DAYS))
    differing = prior_of(50 + np.geomspace(0.05, 20, 12)[:, None] * noise).scale_weight
    alike = prior_of(50 + noise).scale_weight
    assert differing[2] > 0.8
    assert alike[2] < 0.4


def test_gaps_hardly_change_the_weights() -> None:
    column = swinging_fleet()
    whole = prior_of(column).loc_weight
    column[np.random.default_rng(0).random(column.shape) < 0.2] = np.nan
    gaps = prior_of(column).loc_weight
    assert gaps == pytest.approx(whole, abs=0.1)


def test_servers_processed_in_blocks_have_the_same_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prior_of(swinging_fleet())
    monkeypatch.setattr(
        "fleet_forecast.features.cold_start.SERVER_STEPS_AT_ONCE", 3 * CONTEXT * DAYS
    )  # three, three, two
    for part, expected in zip(prior_of(swinging_fleet()), whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-9)


def test_the_quantiles_have_nominal_coverage_on_unseen_servers() -> None:
    """Another fleet, forecast by a plain loop at each length of history: coverage of the outermost quantiles."""
    prior, unseen = prior_of(column := swinging_fleet(200)), swinging_fleet(200, seed=1)
    scale, loc = column.std(), column.mean()
    within = float(np.median([part.std() for server in column for part in np.array_split(server, DAYS)])) / scale
    for index, n in enumerate(history_lengths(CONTEXT)[:-1]):
        covered = []
        for server in (unseen - loc) / scale:
            for origin in range(CONTEXT, len(server) - FOLLOWING, 53):
                seen = server[origin - n : origin]
                expected = prior.loc_weight[index] * (seen.mean() if n else 0.0)
                own = (((seen - seen.mean()) ** 2).sum() if n else 0.0) + 2 * within**2
                width = expected_scale(
                    prior.loc_weight[index], prior.scale_weight[index], within, np.sqrt(own / (n + 2))
                )
                low, high = expected + width * prior.quantiles[index, [0, -1]]
                following = server[origin : origin + FOLLOWING]
                covered.append((following >= low) & (following <= high))
        assert np.mean(covered) == pytest.approx(0.96, abs=0.02)


@pytest.mark.parametrize("column", [np.full((1, 960), 5.0), np.full((3, 30), 5.0)])
def test_servers_that_cannot_be_compared_have_the_default_prior_of_a_whole_context_only(column: np.ndarray) -> None:
    """A single server, and too few steps."""
    prior, whole = fit_cold_start_prior(ServersOfProfile(column, 1.0, 1.0), CONTEXT), default_prior(CONTEXT)
    for found, expected in zip(prior, whole, strict=True):
        assert np.isnan(found[1:-1]).all()
        np.testing.assert_array_equal(found[-1], expected[-1])


def test_between_the_lengths_the_interpolation_is_linear_in_log_steps() -> None:
    table = length_interpolation(CONTEXT) @ np.array([0.0, 0.2, 0.6, 0.5, 0.9])
    assert table.shape == (CONTEXT + 1,)
    assert table[[0, 1, 4, 16, CONTEXT]] == pytest.approx([0.0, 0.2, 0.6, 0.5, 0.9])
    assert table[2] == pytest.approx(0.4)  # halfway from 1 to 4 on a log scale
    assert (np.diff(table[16:]) > 0).all()
    assert length_interpolation(1) @ np.array([0.0, 0.3]) == pytest.approx([0.0, 0.3])


def test_profiles_that_are_samples_of_one_population_are_drawn_to_the_fleet() -> None:
    """Small profiles of one population: drawn estimates are nearer to the weights of 400 more servers of it."""
    profiles = [swinging_fleet(5, seed) for seed in range(12)]
    truth = prior_of(swinging_fleet(400, seed=99)).loc_weight[1:-1]
    drawn = fit_cold_start_priors(servers_of(np.concatenate(profiles)), [servers_of(p) for p in profiles], CONTEXT)
    error_drawn, error_alone = (
        np.mean([np.abs(prior.loc_weight[1:-1] - truth) for prior in priors])
        for priors in (drawn[1:], [prior_of(profile) for profile in profiles])
    )
    assert error_drawn < 0.5 * error_alone


def test_profiles_of_different_nature_keep_their_own_estimates() -> None:
    """Half of the profiles have steady servers far apart, half have equal servers under noise."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 1, (8, 6, CONTEXT * DAYS))
    apart = [np.linspace(20, 80, 6)[:, None] + of_profile for of_profile in noise[:4]]
    alike = [50 + 10 * of_profile for of_profile in noise[4:]]
    profiles = [servers_of(profile) for profile in (*apart, *alike)]
    drawn = fit_cold_start_priors(servers_of(np.concatenate([*apart, *alike])), profiles, CONTEXT)[1:]
    for prior, profile in zip(drawn, profiles, strict=True):
        own = fit_cold_start_prior(profile, CONTEXT)
        np.testing.assert_allclose(prior.loc_weight, own.loc_weight, atol=0.02)


def test_a_single_profile_or_profiles_of_few_servers_are_not_drawn() -> None:
    """There is nothing to compare."""
    for sizes in ((12,), (3, 3, 3)):
        profiles = [servers_of(swinging_fleet(size, seed)) for seed, size in enumerate(sizes)]
        fleet = servers_of(np.concatenate([profile.values for profile in profiles]))
        for prior, profile in zip(fit_cold_start_priors(fleet, profiles, CONTEXT)[1:], profiles, strict=True):
            for drawn, own in zip(prior, fit_cold_start_prior(profile, CONTEXT), strict=True):
                np.testing.assert_array_equal(drawn, own)
