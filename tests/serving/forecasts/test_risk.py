"""The daemon's risks are those of the risk model on the features that its training computes."""

import numpy as np
import pytest

from data_contract import METRICS
from fleet_forecast.contract.calendar import DEFAULT_CALENDAR
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference.risk_model import RiskModel
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.training.risk.fleets import labelled_fleet
from tests.conftest import TINY_METRICS
from tests.serving.fake_engine import FakeConfig, FakeEngine
from tests.serving.forecasts.scene import NOON, STEP, Scene

NAMES = (*(f"ppweb{number:03d}" for number in range(1, 6)), "ppdb001", "ppdb002")
PROFILES = ("web_api",) * 5 + ("database",) * 2
STEPS = 40


@pytest.fixture
def scene(tmp_path, risk_model_dir):
    engine = FakeEngine(FakeConfig(targets=TINY_METRICS, profiles=("web_api", "database")))
    engine.risk_model = RiskModel.load(risk_model_dir, TINY_METRICS)
    scene = Scene(tmp_path, engine)
    yield scene
    scene.close()


def measured(random):
    values = random.uniform(5, 90, size=(len(NAMES), STEPS, len(TINY_METRICS))).astype(np.float32)
    values[random.random(values.shape) < 0.1] = np.nan
    values[:, -1] = 50.0
    values[1, :-4] = np.nan  # a new server
    return values


def send(scene, values):
    first = NOON - STEPS * STEP
    for row, name in enumerate(NAMES):
        for step, cells in enumerate(values[row]):
            if not np.isnan(cells).all():
                by_metric = dict(zip(TINY_METRICS, cells.tolist(), strict=True))
                sent = tuple(None if np.isnan(v := by_metric.get(m, np.nan)) else v for m in METRICS)
                scene.store.append([Sample(name, (first + step * STEP) * 1000, None, None, sent)]).result(5)


def test_they_are_those_of_the_features_of_the_training(scene):
    values = measured(np.random.default_rng(0))
    send(scene, values)
    forecasts = scene.cycle()
    start = np.datetime64(NOON - STEPS * STEP, "s")
    grid = FleetGrid(NAMES, PROFILES, TINY_METRICS, start, STEP, values)
    fleet = labelled_fleet(grid, grid.peers(), [IncidentRecord(NAMES[0], 0.0, 1.0, "any")], DEFAULT_CALENDAR)
    model = scene.engine.risk_model
    features = model.features(fleet.risk_input(model.description.spec, STEPS - 1))
    for row, name in enumerate(NAMES):
        risk = forecasts[name].risk
        np.testing.assert_allclose(risk.features, features[row], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(risk.probabilities, model.probabilities(features[[row]])[0], rtol=1e-4)


def test_a_server_without_a_complete_step_has_none(scene):
    scene.measure("ppweb001", 0, seconds_in=10)
    assert scene.cycle()["ppweb001"].risk is None


def test_a_model_without_a_risk_model_gives_none(tmp_path):
    scene = Scene(tmp_path)
    scene.measure("ppweb001", 1)
    assert scene.cycle()["ppweb001"].risk is None
    scene.close()
