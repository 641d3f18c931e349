"""The risk of incidents in the API and on /metrics, with what it was trained on and what drives it."""

import json
import re

import numpy as np
import pytest

from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.risk_model import RISK_FILE, RISK_HORIZONS
from tests.serving.daemon_client import complete_start, daemon, forecast_of, post, record, wait_for

STEP = 300


@pytest.fixture
def client(risk_model_dir, tmp_path):
    random = np.random.default_rng(0)
    with daemon(tmp_path, Engine.load(risk_model_dir, device="cpu")) as client:
        start = complete_start()
        for name in ("ppweb001", "ppweb002"):
            cells = random.uniform(20, 40, size=(30, 2)).round(2).tolist()
            post(client, *(record(name, start - n * STEP, cpu_pct=a, mem_pct=b) for n, (a, b) in enumerate(cells)))
        yield client


def test_forecasts_metrics_and_explanations_have_it(client):
    risk = forecast_of(client, "ppweb001")["incident_risk"]
    assert risk["trained_on"] == "simulator"
    assert list(risk["within"]) == list(RISK_HORIZONS)
    values = list(risk["within"].values())
    assert values == sorted(values)
    exposed = dict(
        re.findall(r'fleet_incident_risk{server="ppweb001",profile="web_api",within="(.+)"} (.+)', page(client))
    )
    assert {label: float(value) for label, value in exposed.items()} == pytest.approx(risk["within"], abs=1e-4)
    explained = client.get("/api/v1/servers/ppweb001/explain").json()["incident_risk"]
    assert {key: explained[key] for key in risk} == risk
    sizes = [abs(driver["log_odds"]) for driver in explained["drivers"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {"metric": "cpu_pct", "scale_seconds": 3_600} in [
        {key: driver[key] for key in ("metric", "scale_seconds")} for driver in explained["drivers"]
    ]


def page(client):
    def answer():
        text = client.get("/metrics").text
        return text if 'fleet_incident_risk{server="ppweb001"' in text else None

    return wait_for(answer)


def test_the_heat_map_has_the_risk_of_the_first_horizon_that_has_the_half_hour(client):
    forecast = forecast_of(client, "ppweb001")
    within = forecast["incident_risk"]["within"]
    rows = client.get("/api/v1/heat-map?value=risk").json()["servers"]
    row = next(row for row in rows if row["server_name"] == "ppweb001")
    half_hours = -(-max(forecast["steps"]) * STEP // 1800)
    by_hand = [within["1h"]] * 2 + [within["4h"]] * 6 + [within["8h"]] * 8
    assert row["values"] == by_hand[:half_hours]
    assert row["metric"] is None
    refused = client.get("/api/v1/heat-map?value=risk&metric=cpu_pct")
    assert (refused.status_code, refused.json()["detail"][0]["field"]) == (422, "metric")


def test_the_model_shows_what_it_was_trained_on_and_its_curve(client, risk_model_dir):
    shown = client.get("/api/v1/model").json()["risk_model"]
    stored = json.loads((risk_model_dir / RISK_FILE).read_text())
    assert shown["trained_on"] == stored["trained_on"]
    assert shown["curve"] == stored["curve"]
    assert shown["horizons"] == list(RISK_HORIZONS)


def test_without_a_risk_model_it_is_null(tiny_model_dir, tmp_path):
    with daemon(tmp_path, Engine.load(tiny_model_dir, device="cpu")) as client:
        post(client, record("ppweb001", cpu_pct=30.0))
        assert forecast_of(client, "ppweb001")["incident_risk"] is None
        assert client.get("/api/v1/model").json()["risk_model"] is None
        assert client.get("/api/v1/servers/ppweb001/explain").json()["incident_risk"] is None
        page = client.get("/api/v1/heat-map?value=risk").json()
        (row,) = page["servers"]
        assert set(row["values"]) == {None}
        assert "has no risk model; train one without --no-risk-model" in page["note"]
        assert "fleet_incident_risk" not in client.get("/metrics").text
