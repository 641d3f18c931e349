"""A model directory that an earlier release published still serves, and can be compared with and trained further.

golden/model_2_0_0.tar.xz was made by version 2.0.0: the tiny fleet's model with a hidden size of 4, without the files
that serving does not need.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from fleet_forecast.evaluation.against_champion.champion import Champion
from fleet_forecast.inference.canary import read_canary
from fleet_forecast.inference.engine import Engine
from fleet_forecast.iso_time import iso
from fleet_forecast.network.build import build_network
from fleet_forecast.training.warm_start import earlier_config, load_earlier_weights

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def model_2_0_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(GOLDEN / "model_2_0_0.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # not in Python 3.11.2
        archive.extractall(folder)
    return folder / "model_2_0_0"


def test_a_model_of_2_0_0_serves_the_forecast_that_it_gave_then(model_2_0_0: Path) -> None:
    engine = Engine.load(model_2_0_0, device="cpu")
    canary = read_canary(model_2_0_0 / "canary.json")
    made = engine.forecast(canary.history, canary.profiles, canary.origins, canary.peers(300))
    np.testing.assert_allclose(made, canary.quantiles, rtol=1e-3, atol=1e-3)


def test_a_model_of_2_0_0_is_a_champion_by_its_published_weights_and_warm_starts(model_2_0_0: Path) -> None:
    champion = Champion.load(model_2_0_0)
    assert champion.final_fit
    assert iso(champion.seen_until_seconds) == "2026-03-03T23:55:00Z"
    spec, profiles = champion.config.spec, champion.config.profiles
    earlier = earlier_config(model_2_0_0, spec, profiles, champion.config.hidden_size)
    load_earlier_weights(build_network(spec, profiles, 4), spec.metrics, profiles, model_2_0_0, earlier)
