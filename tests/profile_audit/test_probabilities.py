"""Profile probabilities against a slow reference, server by server."""

import numpy as np
import pytest
from scipy.stats import multivariate_t

from fleet_forecast.profile_audit.probabilities import (
    DEGREES_OF_FREEDOM,
    MEDIAN_VARIANCE,
    NO_PROFILE,
    compare,
    profile_probabilities,
)

SIZES = (6, 4, 5)
FEATURES = 3


@pytest.fixture
def servers():
    random = np.random.default_rng(3)
    profiles = np.repeat(np.arange(len(SIZES)), SIZES)
    centres = random.normal(0, 3, (len(SIZES), FEATURES))
    return (centres[profiles] + random.normal(0, 1, (len(profiles), FEATURES))).astype(np.float32), profiles


def without(behaviours, profiles, profile, row):
    return behaviours[(profiles == profile) & (np.arange(len(profiles)) != row)]


def test_differences_are_to_the_median_of_the_other_servers_of_the_profile(servers):
    behaviours, profiles = servers
    _, own = compare(behaviours, profiles, len(SIZES))
    for row, profile in enumerate(profiles):
        expected = behaviours[row] - np.median(without(behaviours, profiles, profile, row), axis=0)
        np.testing.assert_allclose(own[row], expected, rtol=1e-5)


def test_the_order_of_the_probabilities_is_that_of_student_t_densities(servers):
    """The reference has one scatter for all profiles, so profiles of the same number of servers are compared."""
    behaviours, profiles = servers
    space, _own = compare(behaviours, profiles, len(SIZES))
    shape = np.linalg.inv(space.precision / np.outer(space.deviations, space.deviations))
    found = profile_probabilities(behaviours, profiles, np.ones(len(profiles), dtype=bool), len(SIZES)).probabilities
    for row in range(len(profiles)):
        logs = []
        for profile, _size in enumerate(SIZES):
            others = without(behaviours, profiles, profile, row)
            spread = shape * (1 + MEDIAN_VARIANCE / len(others))
            density = multivariate_t(np.median(others, axis=0), spread, DEGREES_OF_FREEDOM)
            logs.append(density.logpdf(behaviours[row]))
        if np.ptp(logs) > 3:  # the scatter of a profile may decide a close case
            assert np.argmax(found[row]) == np.argmax(logs)


def test_probabilities_sum_to_one_and_are_missing_without_a_behaviour(servers):
    behaviours, profiles = servers
    behaviours[2] = np.nan
    found = profile_probabilities(behaviours, profiles, np.ones(len(profiles), dtype=bool), len(SIZES)).probabilities
    assert np.isnan(found[2]).all()
    np.testing.assert_allclose(np.delete(found, 2, axis=0).sum(axis=1), 1)


def test_a_profile_without_another_server_has_probability_zero(servers):
    behaviours, profiles = servers
    profiles = np.append(profiles, len(SIZES))
    behaviours = np.vstack([behaviours, behaviours[:1]])
    matched = np.ones(len(profiles), dtype=bool)
    found = profile_probabilities(behaviours, profiles, matched, len(SIZES) + 1).probabilities
    assert found[-1, -1] == 0
    assert found[-1, 0] > 0.5  # it behaves like the first server


def test_a_server_without_a_profile_is_nobodys_peer(servers):
    behaviours, profiles = servers
    far_away = np.vstack([behaviours, np.full((1, FEATURES), 50, dtype=np.float32)])
    space, own = compare(far_away, np.append(profiles, NO_PROFILE), len(SIZES))
    expected, expected_own = compare(behaviours, profiles, len(SIZES))
    np.testing.assert_array_equal(space.medians, expected.medians)
    np.testing.assert_array_equal(own[:-1], expected_own)
    assert np.isnan(own[-1]).all()
