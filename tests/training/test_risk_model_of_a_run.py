"""The trainer publishes a risk model beside the network, and says what it was trained on."""

import json
from dataclasses import replace

import pytest

import tft_trainer
from fleet_forecast.commands import training_run
from fleet_forecast.inference.engine import Engine
from tests.conftest import TINY_METRICS, tiny_flags
from tests.risk_models import SMALL


@pytest.fixture
def flags(tiny_training_dir, tmp_path):
    given = tiny_flags(tiny_training_dir, tmp_path / "models")
    return [*(flag for flag in given if flag != "--no-risk-model"), "--no-comparison", "--no-final-fit"]


def test_it_is_published_checked_and_named_for_what_it_was_trained_on(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training_run, "RiskSettings", lambda threads, seed: replace(SMALL, threads=threads, seed=seed))
    assert tft_trainer.main(flags) == 0
    printed = capsys.readouterr()
    assert "note: the risk model is trained on simulated fleets: the data label 0 incidents" in printed.err
    model_dir = tmp_path / "models" / "current"
    expected = {"trained_on": "simulator", "source": "simulated fleets: the data label 0 incidents, fewer than 200"}
    assert json.loads(printed.out.splitlines()[-1])["risk_model"] == expected
    stored = json.loads((model_dir / "training_info.json").read_text())["risk_model"]
    assert {key: stored[key] for key in expected} == expected
    model = Engine.load(model_dir).risk_model
    assert len(stored["curve"]) == len(model.curve)
    assert "Risk of incidents" in (model_dir / "report.html").read_text()
    assert model.description.spec.metrics == TINY_METRICS
    assert model.curve


def test_its_failure_does_not_affect_the_model(flags, tmp_path, monkeypatch, capsys):
    def fail(*_arguments):
        raise MemoryError("no memory left")

    monkeypatch.setattr(training_run, "risk_model_of", fail)
    assert tft_trainer.main(flags) == 0
    printed = capsys.readouterr()
    assert "note: the risk model failed (no memory left); the model is published without it" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["risk_model"]["trained_on"] is None
    assert Engine.load(tmp_path / "models" / "current").risk_model is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("server_name,start\nppdb001,2026-03-02T00:00:00Z\n", "column end is missing among server_name, start"),
        ("server_name,start,end\nppdb001,yesterday,2026-03-02T00:00:00Z\n", "row 1: start 'yesterday'"),
        ("server_name,start,end\nnone,2026-03-02T00:00:00Z,2026-03-02T01:00:00Z\n", "match no server of the data"),
    ],
)
def test_an_incidents_file_that_cannot_be_used_ends_the_run_before_the_training(flags, tmp_path, capsys, rows, message):
    path = tmp_path / "incidents.csv"
    path.write_text(rows)
    assert tft_trainer.main([*flags, "--incidents", str(path)]) == 1
    assert message in capsys.readouterr().err
    assert list((tmp_path / "models").glob("tft_model_*")) == []
