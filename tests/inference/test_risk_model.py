"""The risk model of a model directory: it is loaded as it was trained, explained, and refused by name if damaged."""

import json
import shutil

import numpy as np
import pytest

from fleet_forecast.contract.calendar import DEFAULT_CALENDAR
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.risk_model import RISK_FILE, RISK_HORIZONS, TREES_FILE, RiskModel
from fleet_forecast.training.risk.fit import train_on_simulator
from tests.conftest import TINY_METRICS
from tests.risk_models import SMALL, reseal


@pytest.fixture(scope="module")
def model(risk_model_dir):
    return RiskModel.load(risk_model_dir, TINY_METRICS)


@pytest.fixture(scope="module")
def trained():
    """The same training again, and its held-out fleets."""
    return train_on_simulator(TINY_METRICS, 300, DEFAULT_CALENDAR, SMALL)


def features_of(model, fleets, step=300):
    return model.features(fleets[0].risk_input(model.description.spec, step))


def test_a_loaded_model_gives_the_probabilities_of_the_trained_one(model, trained):
    again, fleets = trained
    features = features_of(again, fleets)
    np.testing.assert_allclose(model.probabilities(features), again.probabilities(features), rtol=1e-5, atol=1e-7)
    assert model.description.spec.metrics == TINY_METRICS
    assert model.curve == again.curve
    assert model.trained_on == "simulator"


def test_probabilities_do_not_fall_with_the_horizon(model, trained):
    found = model.probabilities(features_of(model, trained[1]))
    assert found.shape == (len(trained[1][0].grid.servers), len(RISK_HORIZONS))
    assert ((found > 0) & (found < 1)).all()
    assert (np.diff(found, axis=1) >= 0).all()
    assert model.probabilities(np.empty((0, 5))).shape == (0, len(RISK_HORIZONS))


def test_contributions_add_up_to_the_differences_of_scores(model, trained):
    features = features_of(model, trained[1])
    total = model.contributions(features).sum(axis=1)
    scores = model.scores(features)
    np.testing.assert_allclose(total - total[0], scores - scores[0], atol=1e-4)
    assert len(set(model.drivers)) == len(model.drivers) == model.contributions(features).shape[1]


def test_a_model_of_more_metrics_uses_its_own_columns(model, trained):
    again, fleets = trained
    wide = ("latency_ms", *reversed(TINY_METRICS))
    columns = [TINY_METRICS.index(metric) if metric in TINY_METRICS else 0 for metric in wide]
    inputs = fleets[0].risk_input(again.description.spec, 300)
    table = inputs.peers.table
    statistics = table.statistics._make(field[..., columns] for field in table.statistics)
    peers = inputs.peers._replace(table=type(table)(table.profiles, table.first_step, statistics))
    wider = inputs._replace(history=inputs.history[..., columns], peers=peers)
    of_wider = RiskModel(model._booster, model.description, wide)
    np.testing.assert_array_equal(of_wider.features(wider), model.features(inputs))


def test_a_directory_without_a_risk_model_has_none(tiny_model_dir, risk_model_dir):
    assert RiskModel.load(tiny_model_dir, TINY_METRICS) is None
    assert Engine.load(tiny_model_dir).risk_model is None
    assert Engine.load(risk_model_dir).risk_model is not None


def changed_fields(**fields):
    def change(path):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | fields))

    return RISK_FILE, change


def replaced_text(name, text):
    return name, lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replaced_text(TREES_FILE, ""), f"{TREES_FILE}: not trees of LightGBM"),
        (replaced_text(TREES_FILE, "tree\nversion=v4\n"), f"{TREES_FILE}: not trees of LightGBM"),
        (replaced_text(RISK_FILE, "{"), f"{RISK_FILE}: not a risk model"),
        (replaced_text(RISK_FILE, "[]"), f"{RISK_FILE}: not a risk model"),
        (replaced_text(RISK_FILE, "{}"), f"{RISK_FILE}: not a risk model"),
        (changed_fields(features_version=99), f"{RISK_FILE}: features_version is 99, this software reads 1"),
        (changed_fields(trained_on="both"), f"{RISK_FILE}: not a risk model .trained_on"),
        (changed_fields(features=["level"]), f"{RISK_FILE}: not a risk model .features"),
        (changed_fields(canary=[[0.1, 0.2, 0.9]] * 3), f"{RISK_FILE}: the risk model does not reproduce its canary"),
    ],
)
def test_a_damaged_risk_model_is_refused_by_name(risk_model_dir, tmp_path, damage, message):
    (name, change), copy = damage, tmp_path / "model"
    shutil.copytree(risk_model_dir, copy)
    change(copy / name)
    with pytest.raises(ModelError, match=rf"{name}: is damaged"):
        Engine.load(copy)
    reseal(copy)
    with pytest.raises(ModelError, match=message):
        Engine.load(copy)


@pytest.mark.parametrize("name", [TREES_FILE, RISK_FILE])
def test_half_a_risk_model_is_refused(risk_model_dir, tmp_path, name):
    copy = tmp_path / "model"
    shutil.copytree(risk_model_dir, copy)
    (copy / name).unlink()
    with pytest.raises(ModelError, match=rf"{name}: is missing"):
        Engine.load(copy)
    reseal(copy)
    with pytest.raises(ModelError, match=rf"{name}: not"):
        Engine.load(copy)


def test_a_risk_model_of_other_metrics_is_refused(risk_model_dir):
    with pytest.raises(ModelError, match="it uses net_in_mb_s, which the model does not have"):
        RiskModel.load(risk_model_dir, ("cpu_pct", "mem_pct"))
