"""A longer horizon is a flag; other quantile levels, a baseline and an alert detector are one entry each."""

import json
import re
import time

import numpy as np
import pytest

import tft_trainer
from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS, check_levels
from fleet_forecast.evaluation.baselines import BASELINES
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.alerting import book
from fleet_forecast.serving.alerting.detection import Detection
from fleet_forecast.serving.alerting.rules import AlertRules
from tests.conftest import tiny_flags, tiny_fleet
from tests.extension.checkout import copy_of_checkout, replace, run, train
from tests.serving.daemon_client import daemon, forecast_of, post, record, wait_for
from tests.serving.fake_engine import FakeConfig, FakeEngine

HALF_HOUR = 1_800
DAY_STEPS = 48
SPEC_FILE = "fleet_forecast/contract/forecast_spec.py"


def assert_served_exposed_and_alerted_24_hours_ahead(client):
    now = int(time.time()) // HALF_HOUR * HALF_HOUR
    values = {"cpu_pct": 60.0, "mem_pct": 60.0}
    post(client, *(record("ppdb001", now - step * HALF_HOUR, **values) for step in range(1, 49)))
    forecast = forecast_of(client, "ppdb001")
    assert len(forecast_of(client, "ppdb001", horizon="24h")["timestamps"]) == 1
    assert len(forecast["timestamps"]) == len(forecast["metrics"]["cpu_pct"]["q0.5"]) == DAY_STEPS
    exposed = wait_for(lambda: 'horizon="24h"' in (text := client.get("/metrics").text) and text)
    assert re.search(r'fleet_forecast_cpu_ratio\{server="ppdb001".*horizon="24h",quantile="0.9"\} 0\.', exposed)
    assert re.search(r'fleet_breach_probability\{server="ppdb001".*metric="cpu_pct",horizon="24h"\} ', exposed)
    (alert,) = wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"])
    assert (alert["server_name"], alert["metric"]) == ("ppdb001", "cpu_pct")


def rules_of_a_day():
    return AlertRules(lookahead_seconds=86_400, fire_forecasts=1, servers={"ppdb001": {"cpu_pct": 2.0}})


def test_a_horizon_of_24_hours_is_served_exposed_and_alerted(tmp_path):
    engine = FakeEngine(FakeConfig(horizon_steps=DAY_STEPS, step_seconds=HALF_HOUR))
    with daemon(tmp_path, engine, rules=rules_of_a_day()) as client:
        assert_served_exposed_and_alerted_24_hours_ahead(client)


def always_zero(observed):
    """A new baseline: zero at every quantile."""
    return np.zeros((1, 1, 1, 1), dtype=np.float32)


@pytest.mark.slow
def test_a_horizon_of_24_hours_is_trained_with_a_new_baseline_in_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(BASELINES, "always_zero", always_zero)
    (tmp_path / "training").mkdir()
    rows = tiny_fleet(hours=124, step_seconds=HALF_HOUR)
    rows.to_parquet(tmp_path / "training" / "server_metrics.parquet", index=False)
    flags = tiny_flags(tmp_path / "training", tmp_path / "models")
    assert tft_trainer.main([*flags, "--horizon-hours", "24", "--step-seconds", str(HALF_HOUR)]) == 0
    # One row in each of the three tables: training servers, unseen servers, each length of history of new servers.
    assert capsys.readouterr().out.count("always_zero") >= 3
    model = (tmp_path / "models" / "current").resolve()
    info = json.loads((model / "training_info.json").read_text())
    assert info["scores"]["unseen"]["always_zero"]["cpu_pct"]["wape"] == 1.0
    assert "always_zero" in (model / "report.html").read_text()
    with daemon(tmp_path, Engine.load(model), rules=rules_of_a_day()) as client:
        assert_served_exposed_and_alerted_24_hours_ahead(client)


def test_quantile_levels_that_cannot_be_scored_fail_at_import_with_the_place(tmp_path):
    checkout = copy_of_checkout(tmp_path)
    replace(checkout, SPEC_FILE, f"QUANTILE_LEVELS = {QUANTILE_LEVELS}", "QUANTILE_LEVELS = (0.05, 0.5, 0.95)")
    result = run(checkout, "tft_trainer.py", "--help")
    assert result.returncode == 1
    assert "QUANTILE_LEVELS in fleet_forecast.contract.forecast_spec are 0.05, 0.5, 0.95: add 0.1" in result.stderr
    assert "or change SCORED_LEVELS there" in result.stderr


@pytest.mark.parametrize("levels", [(0.1, 0.9, 0.5), (0.1, 0.5, 0.5, 0.9), (0.0, 0.1, 0.5, 0.9), (0.1, 0.5, 0.9, 1.0)])
def test_quantile_levels_increase_between_0_and_1(levels):
    with pytest.raises(ValueError, match="give increasing levels between 0 and 1"):
        check_levels(levels)


@pytest.mark.slow
def test_other_quantile_levels_are_trained_and_forecast(tmp_path, tiny_training_dir):
    checkout, levels = copy_of_checkout(tmp_path), (0.05, 0.1, 0.5, 0.9, 0.95)
    replace(checkout, SPEC_FILE, f"QUANTILE_LEVELS = {QUANTILE_LEVELS}", f"QUANTILE_LEVELS = {levels}")
    model = train(checkout, *tiny_flags(tiny_training_dir, checkout / "models"))
    assert json.loads((model / "config.json").read_text())["quantiles"] == list(levels)
    with daemon(tmp_path, Engine.load(model), rules=AlertRules(fire_forecasts=1)) as client:
        post(client, *(record("ppdb001", cpu_pct=100.0, mem_pct=60.0) for _ in range(1)))
        forecast = forecast_of(client, "ppdb001")["metrics"]["cpu_pct"]
        names = [name for name in forecast if name.startswith("q")]
        assert names == ["q0.05", "q0.1", "q0.5", "q0.9", "q0.95"]
        assert all(low <= high for low, high in zip(forecast["q0.05"], forecast["q0.95"], strict=True))
        assert 'quantile="0.9"' in wait_for(lambda: 'horizon="1h"' in (text := client.get("/metrics").text) and text)


class IdleDetector:
    """A new detector: a server whose CPU is idle."""

    reason = "idle"
    resolved_text = "is in use again"
    curve = ()

    def __init__(self, _rules):
        pass

    def detect(self, forecasts, _firing, /):
        for each in forecasts:
            idle = (each.current[each.model.metrics.index("cpu_pct")] or 100.0) < 1.0
            yield Detection(each.server_name, "cpu_pct", 0.9 if idle else 0.0, lambda *_: ": the server is idle.")

    def keep_only(self, server_names):
        pass


def test_the_alerts_of_a_new_detector_are_served_and_published(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "DETECTORS", [*book.DETECTORS, IdleDetector])
    with daemon(tmp_path, rules=AlertRules(fire_forecasts=1)) as client:
        now = int(time.time()) // 300 * 300
        post(client, *(record("ppdb001", now - step * 300, cpu_pct=0.5, mem_pct=60.0) for step in range(1, 4)))
        (alert,) = wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"])
        assert (alert["reason"], alert["metric"]) == ("idle", "cpu_pct")
        assert alert["sentence"].startswith("ppdb001 (database): CPU is at 0.5 %: the server is idle.")
        assert 'fleet_alerts_firing{metric="cpu_pct"} 1' in client.get("/metrics").text
