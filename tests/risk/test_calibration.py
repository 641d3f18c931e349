"""Calibration: probabilities are the frequencies that were observed, in the order of the scores."""

import numpy as np
import pytest

from fleet_forecast.risk.calibration import Outcomes, fit_calibration, reliability


def outcomes(count, seed, rate_factor=1.0):
    """Scores whose true log odds are known; eventful ones are oversampled by 1 / rate_factor and weigh as much less."""
    random = np.random.default_rng(seed)
    scores = random.normal(-3, 2, count)
    soon = random.random(count) < 1 / (1 + np.exp(-(scores - 1)))
    later = soon | (random.random(count) < 0.02)
    happened = np.stack([soon, later, later], axis=1)
    weight = np.where(later, rate_factor, 1.0)
    return Outcomes(scores, happened, weight)


@pytest.mark.parametrize("rate_factor", [1.0, 0.25])
def test_probabilities_of_new_scores_are_the_frequencies(rate_factor):
    calibration = fit_calibration(outcomes(200_000, 0, rate_factor))
    new = outcomes(200_000, 1, rate_factor)
    probabilities = calibration.probabilities(new.scores)
    for horizon in range(3):
        for row in reliability(probabilities, new, horizon):
            doubt = 4 * np.sqrt(row["probability"] * (1 - row["probability"]) / row["weight"])
            assert row["frequency"] == pytest.approx(row["probability"], abs=doubt + 0.03 * row["probability"])


def test_probabilities_rise_with_the_score_and_with_the_horizon():
    calibration = fit_calibration(outcomes(20_000, 2))
    probabilities = calibration.probabilities(np.linspace(-20, 20, 2_001)).astype(np.float64)
    assert (np.diff(probabilities, axis=0) >= 0).all()
    assert (np.diff(probabilities, axis=1) >= 0).all()
    inside = calibration.probabilities(np.linspace(-5, 2, 50))
    assert (np.diff(inside, axis=0) > 0).all()
    assert probabilities.min() > 0
    assert probabilities.max() <= 1


def test_outcomes_without_an_event_give_small_probabilities():
    quiet = outcomes(5_000, 3)
    quiet = quiet._replace(happened=np.zeros_like(quiet.happened))
    assert fit_calibration(quiet).probabilities(quiet.scores).max() < 1e-3
