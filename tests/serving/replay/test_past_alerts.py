"""The replay is the daemon's: the same forecasts and alerts as step by step, whatever is forecast at once."""

from dataclasses import replace

import numpy as np
import pytest

from fleet_forecast.contract.silences import Silence
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.alerting.severity import PAGE, WATCH
from fleet_forecast.serving.forecasts.server_forecasts import ServersToForecast, forecast_servers
from fleet_forecast.serving.replay import cycles
from fleet_forecast.serving.replay.curve import SHARED, measured_curves
from fleet_forecast.serving.replay.cycles import replay_cycles
from fleet_forecast.serving.replay.past_alerts import DROP_STEPS, past_alerts
from tests.conftest import TINY_METRICS, tiny_fleet
from tests.serving.fake_engine import FakeConfig, FakeEngine

STEPS = range(320, 380)
# Low bounds, so that the tiny model's forecasts cross them back and forth.
RULES = AlertRules.model_validate(
    {"profiles": {"web_api": {"cpu_pct": 33.0}, "database": {"mem_pct": {"above": 70.0, "below": 60.0}}}}
)


@pytest.fixture(scope="module")
def grid():
    """The tiny fleet with gaps: single steps, and one server that is silent for long."""
    made = FleetGrid.from_frame(tiny_fleet(), TINY_METRICS, 300)
    values = made.values.copy()
    values[np.random.default_rng(0).random(values.shape[:2]) < 0.05] = np.nan
    values[3, 340 : 340 + DROP_STEPS + 8] = np.nan
    return replace(made, values=values)


@pytest.fixture(scope="module")
def engine(tiny_model_dir):
    return Engine.load(tiny_model_dir, threads=1)


def step_by_step(engine, grid, rules):
    """(step, key, severity) of the alerts that fire after each step, by one call of the engine for each step."""
    book, peers, last_seen, found = AlertBook(rules), grid.peers(), {}, []
    for step in STEPS:
        rows = np.flatnonzero(~np.isnan(grid.values[:, step]).all(axis=1))
        servers = ServersToForecast(
            [grid.servers[row] for row in rows],
            [(grid.profiles[row], "rule") for row in rows],
            grid.values[rows, max(0, step + 1 - engine.config.history_steps) : step + 1],
            np.full(len(rows), int(grid.timestamps()[step].astype(np.int64))),
            peers._replace(members=peers.members[rows]),
        )
        now = float(grid.timestamps()[step].astype(np.int64)) + 300
        book.update(forecast_servers(engine, servers), now)
        last_seen |= {grid.servers[row]: step for row in rows}
        book.keep_only([name for name, seen in last_seen.items() if step - seen < DROP_STEPS], now)
        found += [(step, key, alert.severity) for key, alert in sorted(book.firing.items())]
    return found


@pytest.fixture(scope="module")
def expected(engine, grid):
    return step_by_step(engine, grid, RULES)


@pytest.mark.parametrize("at_once", [7, 1_000])
def test_alerts_equal_those_of_the_daemons_book_step_by_step(engine, grid, expected, monkeypatch, at_once):
    monkeypatch.setattr(cycles, "FORECASTS_AT_ONCE", at_once)
    past = past_alerts(engine, grid, STEPS, RULES)
    firing = {severity: np.zeros((len(grid.servers), len(STEPS)), dtype=bool) for severity in (PAGE, WATCH)}
    for step, (name, _), severity in expected:
        for each in (PAGE, WATCH) if severity == PAGE else (WATCH,):
            firing[each][grid.servers.index(name), step - STEPS.start] = True
    assert 0 < firing[PAGE].sum() < firing[WATCH].sum() < firing[WATCH].size
    for severity, on in firing.items():
        np.testing.assert_array_equal(past.firing[severity], on)
    assert {alert.key for alert in past.alerts} == {key for _, key, _ in expected}
    silent = [alert for alert in past.alerts if alert.server_name == grid.servers[3] and alert.ended_seconds]
    assert any(alert.ended_seconds == past.seconds[340 - STEPS.start + DROP_STEPS - 1] for alert in silent)


def test_every_step_has_the_servers_that_were_measured_at_it(grid, monkeypatch):
    monkeypatch.setattr(cycles, "FORECASTS_AT_ONCE", 5)
    engine = FakeEngine(FakeConfig(targets=TINY_METRICS, history_steps=4))
    found = dict(replay_cycles(engine, grid, range(330, 345)))
    assert list(found) == list(range(330, 345))
    for step, forecasts in found.items():
        measured = ~np.isnan(grid.values[:, step]).all(axis=1)
        assert [forecast.server_name for forecast in forecasts] == list(np.array(grid.servers)[measured])
        assert {forecast.origin_seconds for forecast in forecasts} == {int(grid.timestamps()[step].astype(np.int64))}


def test_the_curve_at_the_level_of_the_rules_is_that_of_the_book(engine, grid):
    rules = RULES.model_copy(update={"departures": False})
    steady = replace(grid, values=np.where(np.isnan(grid.values), 50.0, grid.values))
    past = past_alerts(engine, steady, STEPS, rules)  # without gaps, in which the book keeps its alerts
    (point,) = [point for point in measured_curves(past, None, rules)[SHARED] if point.level == 0.5]
    on = past.firing[PAGE]
    begins = on & ~np.concatenate([np.zeros((len(on), 1), dtype=bool), on[:, :-1]], axis=1)
    months = on.size * 300 / (30 * 86_400)
    assert begins.any()
    assert point.false_alarms_per_server_month == pytest.approx(begins.sum() / months, abs=1e-3)


def test_silenced_servers_fire_no_alarm_and_their_alerts_are_listed(grid):
    engine = FakeEngine(FakeConfig(targets=TINY_METRICS, history_steps=4))
    always = Silence.model_validate({"pattern": ".*", "from": "2020-01-01T00:00:00Z", "until": "2030-01-01T00:00:00Z"})
    past = past_alerts(engine, grid, range(300, 330), RULES.model_copy(update={"silences": (always,)}))
    assert past.alerts
    assert not any(on.any() for on in past.firing.values())
