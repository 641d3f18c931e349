"""Losses by profile, metric and horizon, against the functions of scores.py."""

import json

import numpy as np
import pytest

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.forecast_spec import SCORED_LEVELS
from fleet_forecast.drift.detector import Stream
from fleet_forecast.evaluation.backtest import MODEL, Backtest
from fleet_forecast.evaluation.loss_sums import BASELINE, Compared, LossKey, LossSums, losses_by_day
from fleet_forecast.evaluation.scores import coverage, weighted_quantile_loss
from fleet_forecast.features.grid import FleetGrid

METRICS = ("cpu_pct", "mem_pct")


def compared(random, windows=40):
    actual = random.uniform(10, 60, (windows, 2))
    actual[random.random(actual.shape) < 0.2] = np.nan
    model, baseline = (np.sort(random.uniform(0, 70, (windows, 2, 3)), axis=2) for _ in range(2))
    baseline[3] = np.nan
    return Compared(actual, model, baseline)


def test_figures_are_wql_and_coverage_over_the_points_of_both_methods():
    random = np.random.default_rng(0)
    parts, sums, profiles = [compared(random), compared(random)], LossSums(), ["a", "b"] * 20
    for part in parts:
        sums.add(profiles, METRICS, "1h", part)
    whole = Compared(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    for profile in "ab":
        chosen = (
            (np.array(profiles * 2) == profile) & ~np.isnan(whole.actual[:, 1]) & ~np.isnan(whole.baseline[:, 1, 0])
        )
        actual = whole.actual[chosen, 1]
        figures = sums.figures()[LossKey(profile, "mem_pct", "1h")]
        assert figures["scored"] == chosen.sum()
        for name, forecast in (("wql", whole.model), ("baseline_wql", whole.baseline)):
            expected = weighted_quantile_loss(actual, forecast[chosen, 1], SCORED_LEVELS)
            assert figures[name] == pytest.approx(expected, abs=1e-5)
        low, high = whole.model[chosen, 1, 0], whole.model[chosen, 1, 2]
        assert figures["coverage_80"] == pytest.approx(coverage(actual, low, high), abs=0.01)
        ratio = sums.log_ratios()[Stream(profile, "mem_pct")]
        assert ratio == pytest.approx(np.log(figures["wql"] / figures["baseline_wql"]), abs=1e-4)


def test_sums_survive_json_and_add_up():
    random = np.random.default_rng(1)
    first, second, both = LossSums(), LossSums(), LossSums()
    for sums in (first, second):
        part = compared(random)
        sums.add(["a"] * 40, METRICS, "4h", part)
        both.add(["a"] * 40, METRICS, "4h", part)
    first.merge(LossSums.restore(json.loads(json.dumps(second.as_fields()))))
    assert first.figures() == both.figures()


def test_a_backtest_is_divided_into_the_days_of_its_origins():
    steps, step_seconds = 96, 3_600
    random = np.random.default_rng(2)
    values = random.uniform(10, 60, (2, steps, 2)).astype(np.float32)
    start = np.datetime64("2026-03-02T00:00:00", "s")
    grid = FleetGrid(("x", "y"), ("database", None), METRICS, start, step_seconds, values)
    rows, origins = np.array([0, 0, 1]), np.array([30, 60, 60])
    actual = np.stack([values[row, origin + 1 : origin + 9] for row, origin in zip(rows, origins, strict=True)])
    forecasts = {
        name: np.sort(random.uniform(0, 70, (3, 8, 2, 3)), axis=3).astype(np.float32) for name in (MODEL, BASELINE)
    }
    backtest = Backtest(METRICS, SCORED_LEVELS, rows, origins, actual, np.ones((2, 2)), forecasts)
    found = losses_by_day(backtest, grid)
    first_day = start.astype("datetime64[D]").astype(int)
    assert set(found) == {first_day + 1, first_day + 2}
    assert {key.profile for key in found[first_day + 1].sums} == {"database"}
    assert {key.profile for key in found[first_day + 2].sums} == {"database", "unknown"}
    expected = weighted_quantile_loss(actual[0, [3], 0], forecasts[MODEL][0, [3], 0], SCORED_LEVELS)
    assert found[first_day + 1].figures()[LossKey("database", "cpu_pct", "4h")]["wql"] == pytest.approx(
        expected, abs=1e-5
    )
    assert losses_by_day(Backtest(METRICS, SCORED_LEVELS, rows, origins, actual, np.ones((2, 2)), {}), grid) == {}


def test_a_day_is_off_by_the_calendar_of_the_fleet():
    calendar = BusinessCalendar("America/New_York")
    first = int(np.datetime64("2026-04-02", "D").astype(int))  # Thursday; Good Friday is a market holiday
    days = [LossSums().as_day(first + number, calendar) for number in range(5)]
    assert [day.off for day in days] == [False, True, True, True, False]
    assert days[0].number == first
