"""The evidence of a rise: against integrals over mean, variance and size, its mean without a rise, its invariances."""

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.linalg import null_space
from scipy.stats import norm

from fleet_forecast.drift import shift
from fleet_forecast.drift.shift import DEVIATION, LARGEST_OF_A_DAY, rise

DAYS, KNOWN = 14, 9
LEVEL = np.ones((DAYS, 1))


def series(random, correlation=0.0, days=DAYS):
    noise = random.normal(0, 1, days)
    values = noise.copy()
    for day in range(1, days):
        values[day] = correlation * values[day - 1] + noise[day] * np.sqrt(1 - correlation**2)
    return values


def marginal(values, regressors, correlation, beginning=None):
    """Density of the contrasts of one series, integrated over the standard deviation and the size of a rise, if any."""
    days = np.arange(len(values))
    # A stationary series of unit innovations, and its inverse square root.
    covariance = correlation ** np.abs(days[:, None] - days) / (1 - correlation**2)
    white = np.linalg.inv(np.linalg.cholesky(covariance))
    contrasts = null_space((white @ regressors).T)
    rest = contrasts.T @ white @ values
    log_deviation = np.linspace(-4, 4, 301)[:, None]
    sizes = np.linspace(-40, 40, 801) if beginning is not None else np.zeros(1)
    step = contrasts.T @ white @ (days >= beginning).astype(float) if beginning is not None else np.zeros(len(rest))
    deviation = np.exp(log_deviation)
    squares = (
        rest @ rest / deviation**2 - 2 * sizes * (rest @ step) / deviation + sizes**2 * (step @ step)
    )  # [deviation, size]
    density = np.exp(-len(rest) * log_deviation - squares / 2)
    over_sizes = trapezoid(density * norm.pdf(sizes, 0, DEVIATION), sizes, axis=1) if beginning else density[:, 0]
    return trapezoid(over_sizes, log_deviation[:, 0])


@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_the_evidence_is_the_ratio_of_the_integrated_likelihoods(correlation, monkeypatch):
    monkeypatch.setattr(shift, "CORRELATIONS", (correlation,))
    random = np.random.default_rng(0)
    regressors = np.stack([np.ones(DAYS), np.arange(DAYS) % 7 >= 5], axis=1).astype(float)
    values = series(random) + 4.0 * (np.arange(DAYS) >= 11)
    found = rise(values[:, None], regressors, np.array([11, 12]))[:, 0]
    for beginning, evidence in zip((11, 12), found, strict=True):
        expected = marginal(values, regressors, correlation, beginning) / marginal(values, regressors, correlation)
        assert evidence == pytest.approx(expected, rel=1e-3)


def test_correlations_are_weighed_by_how_well_they_fit():
    random = np.random.default_rng(1)
    values = np.stack([series(random, 0.6, 200), series(random, 0.0, 200)], axis=1)
    values[-3:] += 2
    mixed = rise(values, np.ones((200, 1)), np.array([197]))[0]
    for column, correlation in enumerate((0.6, 0.0)):
        alone = [marginal_ratio(values[:, column], each) for each in (correlation, 0.6 - correlation)]
        assert abs(np.log(mixed[column] / alone[0])) < abs(np.log(mixed[column] / alone[1]))


def marginal_ratio(values, correlation):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift, "CORRELATIONS", (correlation,))
        return float(rise(values[:, None], np.ones((len(values), 1)), np.array([len(values) - 3]))[0, 0])


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6])
def test_the_evidence_without_a_rise_has_mean_one_at_most(correlation):
    random = np.random.default_rng(2)
    values = np.stack([series(random, correlation) for _ in range(4000)], axis=1)
    found = rise(values, LEVEL, np.arange(KNOWN, DAYS))
    assert (found.mean(axis=1) < 1).all()


def test_level_scale_and_the_days_off_do_not_matter():
    random = np.random.default_rng(3)
    values = series(random)[:, None] + 3.0 * (np.arange(DAYS) >= 12)[:, None]
    off = (np.arange(DAYS) % 7 >= 5)[:, None].astype(float)
    regressors = np.concatenate([LEVEL, off, LEVEL - off], axis=1)  # one of them is superfluous
    beginnings = np.arange(KNOWN, DAYS)
    np.testing.assert_allclose(
        rise(7 * values - 30 + 5 * off, regressors, beginnings), rise(values, regressors[:, :2], beginnings), rtol=1e-6
    )


def test_a_fall_gives_no_evidence_and_one_day_a_bounded_one():
    values = np.random.default_rng(4).normal(0, 1, (DAYS, 2))
    values[-1] += [50, -50]
    up, down = rise(values, LEVEL, np.array([DAYS - 1]))[0]
    assert (up, down) == (LARGEST_OF_A_DAY, 0.0)
    values[-2:, 0] = 50
    assert rise(values, LEVEL, np.array([DAYS - 2]))[0, 0] > 10 * LARGEST_OF_A_DAY


def test_equal_days_give_no_evidence():
    assert (rise(np.full((DAYS, 1), 0.3), LEVEL, np.arange(KNOWN, DAYS)) <= 1).all()
