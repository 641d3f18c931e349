"""Online scores of the forecasts, against a plain loop."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.monitoring.scores import ForecastScores
from tests.serving.alerting.examples import LEVELS, STEP, VIEW, forecast


def snapshot(origin, cpu_by_server, width=5.0):
    made = {name: forecast(cpu, origin, name, width) for name, cpu in cpu_by_server.items()}
    return FleetSnapshot(MappingProxyType(made), origin * STEP, 0.0, VIEW)


def test_scores_are_those_of_a_plain_loop():
    dice = np.random.default_rng(0)
    scores = ForecastScores()
    past, loss, covered, absolute, count = {}, 0.0, 0, 0.0, 0
    for origin in range(1, 30):
        values = {name: float(dice.uniform(30, 60)) for name in ("a", "b", "c") if dice.random() < 0.8}
        scores.update(snapshot(origin, values))
        for name, value in values.items():
            if (name, origin - 3) in past:
                quantiles = [past[name, origin - 3] + (level - 0.5) * 10 for level in LEVELS]
                losses = [max(q * (value - f), (q - 1) * (value - f)) for q, f in zip(LEVELS, quantiles, strict=True)]
                loss += 2 * sum(losses) / len(losses)
                covered += quantiles[1] <= value <= quantiles[5]
                absolute, count = absolute + value, count + 1
            past[name, origin] = value
    tally = scores.tallies["cpu_pct", "15m"]
    assert count > 20
    assert (tally.scored, tally.covered_80) == (count, covered)
    assert tally.pinball == pytest.approx(loss, rel=1e-5)
    assert tally.absolute == pytest.approx(absolute, rel=1e-5)
    assert scores.tallies["cpu_pct", "1h"].scored > 0


def test_an_origin_counts_once_and_memory_is_bounded():
    scores = ForecastScores()
    for origin in range(1, 100):
        for _ in range(3):
            scores.update(snapshot(origin, {"a": 50.0}))
    assert scores.tallies["cpu_pct", "15m"].scored == 96
    assert len(scores._past) == 3 + 12


def test_scores_go_on_after_the_clock_was_ahead_for_a_while():
    def take(origin):
        scores.update(replace(snapshot(origin, {"a": 50.0}), made_at_seconds=(origin + 1) * STEP))

    scores = ForecastScores()
    for origin in (*range(1, 10), 600, *range(11, 20)):  # one cycle with a clock two days ahead
        take(origin)
    assert scores.tallies["cpu_pct", "15m"].scored == 6 + 6
    assert max(target for _, target in scores._past) == (19 + 12) * STEP
    scored = scores.tallies["cpu_pct", "15m"].scored
    take(18)  # an earlier origin is ignored again
    assert scores.tallies["cpu_pct", "15m"].scored == scored
    assert len(scores._past) == 3 + 9


def test_what_is_not_measured_is_not_scored():
    scores = ForecastScores()
    for origin in range(1, 10):
        taken = snapshot(origin, {"a": 50.0})
        unmeasured = replace(taken.forecasts["a"], current=(None, *(1.0,) * 5))
        scores.update(replace(taken, forecasts=MappingProxyType({"a": unmeasured})))
    assert scores.tallies["cpu_pct", "15m"].scored == 0
    assert scores.tallies["mem_pct", "15m"].scored == 6
