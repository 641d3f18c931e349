"""The statistics of departures: beside slow sums, with labelled incidents and metrics of one profile left out."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.risk.departures import HIGH_LEVEL
from fleet_forecast.training.risk.departures import TestPeriod as Period
from fleet_forecast.training.risk.departures import fit_departures, statistics_of

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
METRICS = ("cpu_pct", "mem_pct")
START = np.datetime64("2026-09-14T00:00:00", "s")
STEP, LEAD, WINDOW, WIDTH = 300, 12, 3, 10.0


class LastValueEngine:
    """Forecasts a normal distribution around the last value."""

    def __init__(self, horizon_steps=96):
        self.config = SimpleNamespace(
            step_seconds=STEP, horizon_steps=horizon_steps, history_steps=288, quantiles=LEVELS, targets=METRICS
        )

    def forecast(self, history, _profiles, _origins, _peers):
        quantiles = history[:, -1][:, None, :, None] + WIDTH * stats.norm.ppf(LEVELS)
        return np.repeat(quantiles, self.config.horizon_steps, axis=1).astype(np.float32)


def fleet(servers=20, steps=600, seed=0):
    random = np.random.default_rng(seed)
    values = 50 + np.cumsum(random.normal(size=(servers, steps, 2)), axis=1)
    values[..., 1] += 0.5 * values[..., 0]
    profiles = ["database"] * (servers // 2) + ["web_api"] * (servers - servers // 2)
    names = tuple(f"s{row:02d}" for row in range(servers))
    return FleetGrid(names, tuple(profiles), METRICS, START, STEP, values.astype(np.float32))


def slow_averages(grid, step, ill=()):
    """Average scores of all servers at a step, one by one."""
    values, found = grid.values.astype(np.float64), {}
    for row in range(len(grid.servers)):
        scores = [(values[row, s] - values[row, s - LEAD]) / WIDTH for s in range(step - WINDOW + 1, step + 1)]
        found[row] = np.mean(scores, axis=0)
    for row, own in found.items():
        mates = [found[other] for other in found if grid.profiles[other] == grid.profiles[row]]
        shared = np.median(mates, axis=0)
        yield row, (own - np.where(abs(shared) > 1, shared, 0)), grid.servers[row] not in ill


def period(grid, incidents=(), first=300):
    return Period(grid, grid.peers(), range(first, grid.steps), list(incidents))


def test_the_statistics_are_those_of_slow_sums_over_sampled_steps():
    grid = fleet()
    found = fit_departures(LastValueEngine(), period(grid))
    steps = np.unique(np.linspace(300 + LEAD + WINDOW - 1, 599, 24).astype(int))
    averages = np.array([average for step in steps for _, average, _ in slow_averages(grid, step)])
    covariance = averages.T @ averages / len(averages) * np.where(np.eye(2), 1.4, 1)
    np.testing.assert_allclose(found.covariance, covariance, atol=2e-3)
    t = np.array([np.sqrt(average @ np.linalg.inv(covariance) @ average) for average in averages])
    assert found.high_t == pytest.approx(np.quantile(t, HIGH_LEVEL), abs=0.01)
    assert found.tail == pytest.approx(np.mean(t[t > np.quantile(t, HIGH_LEVEL)] - found.high_t), abs=0.02)
    assert found.metrics == METRICS


def test_a_labelled_incident_does_not_count_as_healthy():
    grid = fleet()
    grid.values[3, 300:, 0] += np.where(np.arange(300) // 5 % 2, 40, -40)  # one server's hours of trouble
    begin = float(START.astype(np.int64)) + 300 * STEP
    label = IncidentRecord("s03", begin, begin + 300 * STEP, "oom")
    with_label, without = (fit_departures(LastValueEngine(), period(grid, labels)) for labels in ([label], []))
    clean = fit_departures(LastValueEngine(), period(fleet()))
    assert with_label.covariance[0][0] == pytest.approx(clean.covariance[0][0], rel=0.15)
    assert without.covariance[0][0] > 1.2 * clean.covariance[0][0]


def test_a_metric_of_one_profile_has_a_covariance_with_those_it_is_measured_with():
    averages = np.random.default_rng(0).normal(size=(900, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.5], [0, 0, 1]])
    averages[:450, 0] = averages[450:, 2] = np.nan
    found = statistics_of(("a", "b", "c"), averages)
    known = averages[450:, :2]
    assert found.covariance[0][1] == pytest.approx((known.T @ known / 450)[0, 1], abs=0.01)
    assert found.covariance[0][2] == pytest.approx(0, abs=0.01)  # never measured together
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_too_few_samples_give_no_statistics():
    assert fit_departures(LastValueEngine(), period(fleet(servers=2, steps=340))) is None
    assert fit_departures(LastValueEngine(horizon_steps=6), period(fleet())) is None
    rare = np.random.default_rng(0).normal(size=(300, 2))
    rare[100:, 1] = np.nan
    assert statistics_of(("a", "b"), rare).metrics == ("a",)
