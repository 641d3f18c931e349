"""departures.json of a model directory: read with the model, refused if it is damaged, the simulator's without it."""

import json
import shutil
from dataclasses import replace

import pytest

from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import ModelError
from fleet_forecast.inference.model_directory import DEPARTURES_FILE
from fleet_forecast.risk.departures import SIMULATED
from fleet_forecast.serving.forecasts.snapshot import ModelView
from tests.risk_models import reseal


def model_with(text, model_dir, folder):
    copy = shutil.copytree(model_dir, folder / "model")
    (copy / DEPARTURES_FILE).write_text(text)
    reseal(copy)
    return copy


def test_the_statistics_of_a_directory_are_those_of_its_forecasts(tiny_model_dir, tmp_path):
    own = replace(SIMULATED, high_t=4.5, tail=1.25)
    engine = Engine.load(model_with(own.to_json(), tiny_model_dir, tmp_path))
    assert engine.departures == own
    assert ModelView.of(engine).departures == own


def test_a_directory_without_them_has_the_simulators(tiny_model_dir):
    assert not (tiny_model_dir / DEPARTURES_FILE).exists()  # too few servers to estimate them
    assert Engine.load(tiny_model_dir).departures == SIMULATED


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps({"metrics": [], "covariance": [], "high_t": 1, "tail": 1})]
)
def test_a_damaged_file_is_refused_by_name(text, tiny_model_dir, tmp_path):
    with pytest.raises(ModelError, match=rf"{DEPARTURES_FILE}: .*; train again"):
        Engine.load(model_with(text, tiny_model_dir, tmp_path))
