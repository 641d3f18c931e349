"""The limit: forks of one undisturbed simulation of servers that no model was trained on."""

import numpy as np
import pytest

from benchmarks import limit
from fleet_forecast.inference.engine import Engine
from fleet_forecast.simulation.metric_model import simulated
from fleet_forecast.simulation.scenario import Scenario
from fleet_forecast.simulation.simulator import simulate

HOUR = 12


@pytest.fixture(scope="module")
def engine(tiny_model_dir):
    return Engine.load(tiny_model_dir, device="cpu")


def test_past_and_future_of_an_origin_are_one_undisturbed_simulation(engine):
    fleet = limit.unseen_fleet(7)
    origins = list(limit.origins_of(fleet, engine, 2))
    steps = (limit.PEER_HOURS + limit.ORIGIN_EVERY_HOURS) * HOUR + engine.config.horizon_steps
    scenario = Scenario(fleet, limit.START, steps, 300, engine.config.calendar, incident_rate=0.0, outage_rate=0.0)
    metrics = [simulated().positions[name] for name in engine.config.targets]
    whole = simulate(scenario).metrics[:, :, metrics]
    for number, origin in enumerate(origins):
        last = limit.PEER_HOURS * HOUR - 1 + number * limit.ORIGIN_EVERY_HOURS * HOUR
        assert origin.time == scenario.timestamps(last, 1)[0]
        np.testing.assert_array_equal(origin.history, whole[:, last - 24 * HOUR + 1 : last + 1])
        np.testing.assert_array_equal(origin.past, whole[:, last - limit.PEER_HOURS * HOUR + 1 : last + 1])
        np.testing.assert_array_equal(origin.future, whole[:, last + 1 : last + 1 + engine.config.horizon_steps])


def test_forks_and_future_are_draws_of_one_distribution(engine):
    """Its rank among them is uniform, and no fork repeats it or another."""
    origins = list(limit.origins_of(limit.unseen_fleet(28), engine, 3))
    below = np.concatenate([(origin.forks < origin.future).mean(axis=0).ravel() for origin in origins])
    assert below.mean() == pytest.approx(0.5, abs=0.06)
    assert np.mean((below > 0.1) & (below < 0.9)) == pytest.approx(0.8, abs=0.08)
    for origin in origins:
        assert not np.isclose(origin.forks[:, :, 0], origin.future[:, 0]).all(axis=(1, 2)).any()
        assert len(np.unique(origin.forks[:, 0, 0, 0])) > limit.FORKS / 4


def test_the_servers_of_the_limit_are_in_no_other_fleet():
    names = set(limit.unseen_fleet(21).names)
    assert len(names) == 21
    assert all(int("".join(filter(str.isdigit, name))) >= limit.FIRST_NUMBER for name in names)
