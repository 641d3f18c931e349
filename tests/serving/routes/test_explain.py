"""GET /api/v1/servers/{name}/explain: the explanation of the served forecast, or the reason why there is none."""

import threading
import time

import numpy as np
import pytest

from fleet_forecast.features.peers import Peers, PeerTable, ProfileMembers
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.routes.explain import MAX_WAITING_EXPLANATIONS
from tests.serving.daemon_client import TOKEN, complete_start, daemon, forecast_of, post, record, wait_for
from tests.serving.fake_engine import FakeEngine

STEP = 300


def explain(client, name="ppml0001", **query):
    return client.get(f"/api/v1/servers/{name}/explain", params=query)


def test_it_explains_the_forecast_of_the_last_cycle(tmp_path):
    with daemon(tmp_path) as client:
        post(client, record(cpu_pct=64.0))
        forecast = forecast_of(client)
        got = explain(client).json()
    for key in (
        "server_name",
        "profile",
        "profile_rule",
        "model",
        "origin",
        "history_steps",
        "steps",
        "warnings",
        "provisional",
    ):
        assert got[key] == forecast[key], key
    assert got["peers"] == forecast["peers"] | {"weights": {"cpu_pct": 0.0}}
    assert got["variables"]["static"] == [
        {"variable": "cpu_pct_loc", "label": "cpu_pct, level in the context", "weight": 0.75},
        {"variable": "profile", "label": "profile", "weight": 0.25},
    ]
    attention = got["attention"]
    assert attention["bin_hours"] == 1.0
    assert attention["lag_hours"] == list(range(24))
    assert attention["weights"][0] == pytest.approx(0.9 * (1 - 0.5**12), abs=1e-4)
    assert sum(attention["weights"]) + attention["horizon_weight"] == pytest.approx(1, abs=1e-3)


def test_the_weights_are_those_of_the_network_for_the_history_and_origin_of_the_forecast(tiny_model_dir, tmp_path):
    """Oracle: the engine, called directly with the samples that were sent."""
    start = complete_start()
    cpu = np.random.default_rng(0).uniform(20, 40, 30).round(2)
    sent = [record("ppdb001", start - n * STEP, cpu_pct=float(cpu[-1 - n]), mem_pct=70.0) for n in range(30)]
    engine = Engine.load(tiny_model_dir, device="cpu")
    with daemon(tmp_path, engine) as client:
        post(client, *sent)
        forecast_of(client, "ppdb001")
        got = explain(client, "ppdb001", horizon=["5m", "1h"]).json()
    history = np.full((1, 30, 3), np.nan, dtype=np.float32)
    history[0, :, 0], history[0, :, 1] = cpu, 70.0
    expected = engine.explain(history, ["database"], np.datetime64(start, "s"), [1, 12])
    assert got["steps"] == [1, 12]
    for group, names in engine.variables._asdict().items():
        weights = {entry["variable"]: entry["weight"] for entry in got["variables"][group]}
        assert list(weights.values()) == sorted(weights.values(), reverse=True)
        np.testing.assert_allclose([weights[n] for n in names], getattr(expected, group)[0], atol=2e-5)
    weights = got["attention"]["weights"]
    assert len(weights) == 24  # 48 steps were read, for 30 do not fit into 24
    np.testing.assert_allclose(weights, expected.attention[0].reshape(24, 2).sum(axis=1), atol=2e-5)
    assert got["attention"]["horizon_weight"] == pytest.approx(expected.attention_ahead[0], abs=2e-5)


def test_peers_count_in_forecasts_explanations_and_posted_histories_alike(tiny_model_dir, tmp_path):
    """Oracle: the engine with the other servers of the profile. A stored server that is posted is not its own peer."""
    start, random = complete_start(), np.random.default_rng(0)
    values = random.uniform(20, 40, (3, 30)).round(2)
    names = ["ppdb001", "ppdb002", "ppdb003"]
    sent = {
        name: [record(name, start - n * STEP, cpu_pct=float(row[-1 - n]), mem_pct=70.0) for n in range(30)]
        for name, row in zip(names, values, strict=True)
    }
    engine = Engine.load(tiny_model_dir, device="cpu")
    with daemon(tmp_path, engine) as client:
        post(client, *(record for records in sent.values() for record in records))
        stored = wait_for(lambda: [f for f in [forecast_of(client, "ppdb001")] if f["peers"]["count"] == 2])[0]
        explained = explain(client, "ppdb001").json()
        body = {"records": sent["ppdb001"]}
        (posted,) = client.post("/api/v1/forecast", json=body).json()["forecasts"]
        body = {"records": [each | {"server_name": "ppdb999"} for each in sent["ppdb001"]]}
        (stranger,) = client.post("/api/v1/forecast", json=body).json()["forecasts"]
        short = {"records": sent["ppdb001"][:3]}
        (recent,) = client.post("/api/v1/forecast", json=short).json()["forecasts"]
    history = np.full((3, 30, 3), np.nan, dtype=np.float32)
    history[:, :, 0], history[:, :, 1] = values, 70.0
    table = PeerTable.build(history[1:], ProfileMembers.of(names[1:], ["database"] * 2), start // STEP - 29)
    for length, found in ((30, stored), (30, posted), (3, recent)):
        peers = Peers(table, np.array([False]))
        quantiles = engine.forecast(history[:1, -length:], ["database"], np.datetime64(start, "s"), peers)
        expected = quantiles[0, :, 0, engine.config.quantiles.index(0.5)]
        np.testing.assert_allclose(found["metrics"]["cpu_pct"]["q0.5"], expected, rtol=1e-5)
        assert found["peers"]["count"] == 2
    assert stranger["peers"]["count"] == 3
    assert explained["peers"] == stored["peers"] | {"weights": explained["peers"]["weights"]}
    assert list(explained["peers"]["weights"]) == list(engine.config.targets)


def test_attention_of_a_new_server_covers_only_the_steps_that_were_read(tiny_model_dir, tmp_path):
    with daemon(tmp_path, Engine.load(tiny_model_dir, device="cpu")) as client:
        post(client, record("ppdb001", int(time.time()), cpu_pct=None))
        assert forecast_of(client, "ppdb001")["cold_start"]
        attention = explain(client, "ppdb001").json()["attention"]
    assert attention["lag_hours"] == [0.0]
    assert attention["weights"][0] + attention["horizon_weight"] == pytest.approx(1, abs=1e-4)


def test_unknown_servers_and_horizons_are_named(tmp_path):
    with daemon(tmp_path) as client:
        post(client, record())
        forecast_of(client)
        assert explain(client, "nobody").status_code == 404
        assert "9h" in explain(client, horizon="9hh").json()["detail"]
        beyond = explain(client, horizon="9h")
        assert beyond.status_code == 422
        assert beyond.json()["detail"] == "horizon: 540m is asked for; the forecast reaches from its first step to 480m"


def test_without_a_model_the_response_is_503_with_retry_after(tmp_path):
    def load(_path):
        raise OSError("no model")

    with daemon(tmp_path, load=load) as client:
        post(client, record())
        answer = explain(client)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_a_model_without_explanations_forecasts_and_explain_is_409(tmp_path):
    with daemon(tmp_path, FakeEngine(explains=False)) as client:
        post(client, record())
        forecast_of(client)
        answer = explain(client)
    assert answer.status_code == 409
    assert answer.json()["detail"] == "tft_model_fake: this model has no explanations; train again"


def test_an_explanation_requires_the_token(tmp_path):
    with daemon(tmp_path, token=TOKEN) as client:
        assert explain(client).status_code == 401


def test_a_forecast_from_an_older_history_is_not_explained(tmp_path):
    """Late samples changed the history and the earlier forecast is still served."""
    with daemon(tmp_path) as client:
        post(client, record(cpu_pct=10.0))
        forecast_of(client)
        forecasts = client.app.state.daemon.forecasts
        forecasts.window.buffer._blocks[1:] += 1
        answer = explain(client)
    assert answer.status_code == 503
    assert answer.json()["detail"] == "a new forecast of this server is being made"


def test_a_forecast_of_another_model_is_not_explained_by_this_one(tmp_path):
    first, second = FakeEngine(model_id="first"), FakeEngine(model_id="second", bad_output=True)
    engines = iter([first, second])
    with daemon(tmp_path, load=lambda _path: next(engines), admin_token=b"0123456789abcdef") as client:
        post(client, record())
        assert forecast_of(client)["model"] == "first"
        headers = {"Authorization": "Bearer 0123456789abcdef", "Content-Type": "application/json"}
        assert client.post("/api/v1/reload", headers=headers, content="{}").json()["model"] == "second"
        wait_for(lambda: explain(client).status_code == 503)
        assert forecast_of(client)["model"] == "first"  # the second gives no finite forecast


def test_more_than_a_few_waiting_explanations_are_refused_with_503_and_the_others_are_served(tmp_path):
    engine = FakeEngine()
    with daemon(tmp_path, engine) as client:
        post(client, record())
        forecast_of(client)
        engine.seconds_per_call = 0.3
        answers = []
        asked = MAX_WAITING_EXPLANATIONS + 3
        threads = [threading.Thread(target=lambda: answers.append(explain(client))) for _ in range(asked)]
        for thread in threads:
            thread.start()
        started = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - started < 0.3  # the event loop is free
        for thread in threads:
            thread.join()
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [200] * MAX_WAITING_EXPLANATIONS + [503] * 3
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}
