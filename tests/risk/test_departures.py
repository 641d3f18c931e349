"""Scores among forecast quantiles, T², and the statistics in a model directory."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from fleet_forecast.risk.departures import (
    SIMULATED,
    DepartureStatistics,
    average_scores,
    normal_scores,
    shared_score,
    t2_contributions,
    t_statistic,
)

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
NORMAL = stats.norm.ppf(LEVELS)


def test_a_score_within_the_quantiles_is_the_standard_normal_one():
    values = np.array([80.0, 93.3, 100.0, 110.0, 120.5])
    quantiles = np.broadcast_to(100 + 10 * NORMAL, (5, 7))
    np.testing.assert_allclose(normal_scores(values, quantiles, LEVELS), (values - 100) / 10, atol=1e-6)


def test_scores_rise_with_the_value_without_jumps_and_stay_small_in_long_tails():
    values = np.linspace(-300, 1000, 20_001)
    quantiles = np.broadcast_to(np.array([10, 20, 40, 50, 55, 90, 100.0]), (len(values), 7))
    found = normal_scores(values, quantiles, LEVELS)
    assert np.diff(found).min() >= 0
    assert np.diff(found).max() < 0.02
    assert NORMAL[-1] < found[-1] < 6
    assert np.isnan(normal_scores(np.array([np.nan]), quantiles[:1], LEVELS)).all()


def test_a_rounding_error_of_a_constant_metric_has_a_small_score():
    assert abs(normal_scores(np.array([50.01]), np.full((1, 7), 50.0), LEVELS)[0]) < NORMAL[-1] + 0.1


def test_t_is_the_mahalanobis_distance_over_the_known_metrics():
    random = np.random.default_rng(0)
    root = random.normal(size=(6, 6))
    covariance, averages = root @ root.T + np.eye(6), random.normal(size=(40, 6))
    averages[random.random(averages.shape) < 0.3] = np.nan
    contributions = t2_contributions(averages, covariance)
    for row, parts in zip(averages, contributions, strict=True):
        known = ~np.isnan(row)
        slow = row[known] @ np.linalg.inv(covariance[np.ix_(known, known)]) @ row[known]
        assert np.nansum(parts) == pytest.approx(slow)
        assert (np.isnan(parts) == ~known).all()
        assert t_statistic(parts[None])[0] == pytest.approx(np.sqrt(slow + (~known).sum()))


def test_an_average_needs_half_of_its_window():
    scores = np.array([[[1.0], [2.0], [np.nan]], [[3.0], [np.nan], [np.nan]]])
    np.testing.assert_array_equal(average_scores(scores), [[1.5], [np.nan]])


def test_a_profile_shares_its_median_if_it_is_large_and_of_five_servers():
    assert shared_score(np.full((5, 1), 1.5)).tolist() == [1.5]
    assert shared_score(np.full((5, 1), 0.9)).tolist() == [0.0]
    assert shared_score(np.full((4, 1), 1.5)).tolist() == [0.0]
    assert shared_score(np.full((5, 1), np.nan)).tolist() == [0.0]


def test_a_t_that_healthy_servers_exceed_as_rarely_has_the_same_probability():
    other = replace(SIMULATED, high_t=5.0, tail=1.2)
    rarity = np.geomspace(1e-6, 0.01, 50)  # shares of healthy servers in an exponential tail
    in_tail = -np.log(rarity / 0.02)
    mine, simulated = 5.0 + 1.2 * in_tail, SIMULATED.high_t + SIMULATED.tail * in_tail
    np.testing.assert_allclose(other.probability(mine), SIMULATED.probability(simulated))
    assert (np.diff(other.probability(mine)) < 0).all()
    assert SIMULATED.probability(np.array([SIMULATED.high_t]))[0] < 0.2


def test_the_simulators_statistics_are_usable_and_are_read_as_written():
    assert DepartureStatistics.from_json(SIMULATED.to_json()) == SIMULATED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"high_t": 0}, "high_t is 0, .* must be positive"),
        ({"tail": float("inf")}, "must be positive"),
        ({"tail": None}, "not statistics"),
        ({"metrics": ["cpu_pct"]}, "not one of 1 metrics"),
        ({"covariance": [[1, 2], [2, 1]], "metrics": ["a", "b"]}, "not positive definite"),
        ({"covariance": [[float("nan")]], "metrics": ["a"]}, "not one of 1 metrics"),
    ],
)
def test_unusable_statistics_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DepartureStatistics.from_json(json.dumps(json.loads(SIMULATED.to_json()) | change))


def test_metrics_without_a_covariance_are_left_out():
    known, covariance = SIMULATED.of_metrics(("gpu_load", "latency_ms", "cpu_pct"))
    assert known == [1, 2]
    assert covariance.tolist() == [[0.896, 0.276], [0.276, 1.025]]
