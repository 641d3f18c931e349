"""A daemon with the profiles and metrics of a fleet file: received, forecast, scored, alerted on and exposed."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fleet_forecast.contract.definitions import BUILT_IN_FLEET, BUILT_IN_METRICS, METRIC_SPECS, METRICS, use_fleet
from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.inference.batch import forecast_tables, grid_for, input_notes, last_origins
from fleet_forecast.inference.fleet_match import contradictions
from fleet_forecast.serving.alerting.rules import alert_rules_of
from tests.serving.daemon_client import complete_start, daemon, forecast_of, post, record, wait_for
from tests.serving.fake_engine import FakeConfig, FakeEngine
from tests.sources.protocols.otlp_bodies import metric, request
from tests.sources.protocols.write_bodies import write_body

FLEET = """
timezone = "Europe/Berlin"
[profiles.cache]
patterns = ['redis']
[metrics.fs_used_pct]
unit = "%"
kind = "percent"
threshold = 90
otlp = "app.disk"
[metrics.queue_depth]
unit = "jobs"
kind = "rate"
label = "jobs that wait"
threshold = {above = 1000, below = 1}
otlp = "app.queue"
[metrics.celsius]
unit = "°C"
kind = "value"
otlp = "app.temperature"
[alerts]
fire_forecasts = 1
"""
OWN = {"fs_used_pct": 95.5, "queue_depth": 0.25, "celsius": -3.5}
OTLP = {"fs_used_pct": "app.disk", "queue_depth": "app.queue", "celsius": "app.temperature"}


@pytest.fixture
def fleet(tmp_path):
    (tmp_path / "fleet.toml").write_text(FLEET)
    with use_fleet(read_fleet(tmp_path / "fleet.toml")) as fleet:
        yield fleet


@contextmanager
def served(fleet, folder, config=None):
    engine = FakeEngine(
        config or FakeConfig(targets=tuple(METRICS), profiles=("cache", "database"), calendar=fleet.calendar)
    )
    with daemon(folder, engine, rules=alert_rules_of(fleet), profile_rules=fleet.rules) as client:
        yield client


def test_own_metrics_are_stored_alike_by_each_protocol(fleet, tmp_path):
    seconds, protobuf = complete_start(), {"content-type": "application/x-protobuf"}
    with served(fleet, tmp_path) as client:
        assert post(client, record("redis1", seconds, **OWN)).json() == {"accepted": 1, "rejected": []}
        labels = {name: {"__name__": f"fleet:{name}", "instance": "redis2:9100"} for name in OWN}
        body = write_body([(labels[name], [(seconds * 1000, value)]) for name, value in OWN.items()])
        written = client.post("/api/v1/write", content=body, headers={"content-encoding": "snappy", **protobuf})
        assert written.status_code == 204
        made = request("redis3", *(metric(OTLP[name], [({}, seconds, value)]) for name, value in OWN.items()))
        answer = client.post("/v1/metrics", content=made.SerializeToString(), headers=protobuf)
        assert answer.status_code == 200
        found = []
        for server in ("redis1", "redis2", "redis3"):
            assert forecast_of(client, server)["profile"] == "cache"
            history = client.get(f"/api/v1/servers/{server}/history", params={"hours": 1}).json()["metrics"]
            found.append({name: values[-1] for name, values in history.items() if name in OWN})
        assert found == [OWN] * 3


def test_own_metrics_are_forecast_alerted_on_and_exposed(fleet, tmp_path):
    with served(fleet, tmp_path) as client:
        post(client, *(record("redis1", complete_start(back), **OWN) for back in range(3)))
        metrics = forecast_of(client, "redis1")["metrics"]
        assert (metrics["celsius"]["unit"], metrics["celsius"]["current"]) == ("°C", -3.5)
        alerts = wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"])
        assert {(alert["metric"], alert["threshold"]) for alert in alerts} == {("fs_used_pct", 90), ("queue_depth", 1)}
        page = client.get("/metrics").text
        place = 'server="redis1",profile="cache",horizon="1h",quantile="0.5"'
        exposed = {"fs_used_ratio": 0.955, "queue_depth": 0.25, "celsius": -3.5}
        for name, value in exposed.items():
            assert f"fleet_forecast_{name}{{{place}}} {value:g}" in page
        profiles = {each["profile"]: each for each in client.get("/api/v1/profiles").json()["profiles"]}
        assert (profiles["cache"]["servers"], profiles["cache"]["trained"]) == (1, True)
        assert profiles["cache"]["name_patterns"] == ["redis"]
        labels = client.get("/status").json()["metric_labels"]
        assert (labels["cpu_pct"], labels["queue_depth"], "celsius" in labels) == ("CPU", "jobs that wait", False)
        heat = client.get("/api/v1/heat-map", params={"value": "quantile", "metric": "celsius"}).json()
        assert heat["unit"] == "°C"
        document = client.get("/openapi.json").json()["components"]["schemas"]["Records"]
        assert "celsius" in str(document)


def test_values_of_own_metrics_keep_their_range(fleet, tmp_path):
    with served(fleet, tmp_path) as client:
        sent = post(client, record("redis1", complete_start(), fs_used_pct=120, queue_depth=-2, celsius=-300)).json()
    assert [(cell["field"], cell["value"]) for cell in sent["left_out"]] == [("fs_used_pct", 120), ("queue_depth", -2)]


def test_a_server_gets_only_the_metrics_that_it_or_its_profile_measures(fleet, tmp_path):
    """In each answer, on each page: a metric of other servers is left out, and named in the forecast."""
    trained = {"cache": ("cpu_pct", "queue_depth"), "database": ("cpu_pct", "fs_used_pct")}
    config = FakeConfig(
        targets=("cpu_pct", "fs_used_pct", "queue_depth"), profiles=tuple(trained), measured_by_profile=trained
    )
    with served(fleet, tmp_path, config) as client:
        for back in range(3):
            cache = record("redis1", complete_start(back), cpu_pct=40.0, queue_depth=2000.0)
            post(client, cache, record("ppdb001", complete_start(back), cpu_pct=30.0, fs_used_pct=95.0))
        forecast, other = forecast_of(client, "redis1"), forecast_of(client, "ppdb001")
        assert (list(forecast["metrics"]), forecast["not_measured"]) == (["cpu_pct", "queue_depth"], ["fs_used_pct"])
        assert (list(other["metrics"]), other["not_measured"]) == (["cpu_pct", "fs_used_pct"], ["queue_depth"])
        alerts = wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"])
        assert {(alert["server_name"], alert["metric"]) for alert in alerts} == {
            ("redis1", "queue_depth"),
            ("ppdb001", "fs_used_pct"),
        }
        lines = [line for line in client.get("/metrics").text.splitlines() if 'server="redis1"' in line]
        assert not [line for line in lines if "fs_used" in line]
        assert [line for line in lines if line.startswith("fleet_breach_probability") and "queue_depth" in line]

        def get(path, **query):
            return client.get(path, params=query)

        assert set(get("/api/v1/servers/redis1/risks").json()["metrics"]) == {"cpu_pct", "queue_depth"}
        assert set(get("/api/v1/servers/redis1/peers").json()["metrics"]) == {"cpu_pct", "queue_depth"}
        refused = get("/api/v1/servers/redis1/series", metric="fs_used_pct")
        assert (refused.status_code, "is not forecast for 'redis1'" in refused.text) == (422, True)
        asked = get("/api/v1/servers/redis1/forecast", metric="fs_used_pct").json()
        assert (asked["metrics"], asked["not_measured"]) == ({}, ["fs_used_pct"])
        stream = pa.ipc.open_stream(
            client.get("/api/v1/forecasts", headers={"accept": "application/vnd.apache.arrow.stream"}).content
        ).read_all()
        rows = set(zip(stream["server_name"].to_pylist(), stream["metric"].to_pylist(), strict=True))
        assert rows == {(n, m) for n, of in (("redis1", forecast), ("ppdb001", other)) for m in of["metrics"]}
        heat = get("/api/v1/heat-map", value="quantile", metric="fs_used_pct").json()["servers"]
        assert [set(row["values"]) == {None} for row in heat] == [False, True]
        heat = get("/api/v1/heat-map").json()["servers"]
        assert [row["metric"] for row in heat] == ["fs_used_pct", "queue_depth"]


def test_a_file_is_forecast_in_the_metrics_that_make_sense_for_each_server(fleet):
    config = FakeConfig(
        targets=("cpu_pct", "queue_depth"), profiles=("cache", "database"), measured_by_profile={"cache": ("cpu_pct",)}
    )
    rows = pd.DataFrame({"server_name": ["redis1", "ppdb001"], "cpu_pct": np.float32(40), "profile": None})
    rows["queue_depth"] = np.float32([np.nan, 5])
    rows.insert(0, "timestamp", pd.Timestamp("2026-11-23", tz="UTC"))
    engine = FakeEngine(config)
    grid = grid_for(rows, config, fleet.rules)
    (table,) = forecast_tables(engine, grid, grid.peers(), last_origins(grid))
    found = set(zip(table["server_name"].to_pylist(), table["metric"].to_pylist(), strict=True))
    assert found == {("redis1", "cpu_pct"), ("ppdb001", "cpu_pct"), ("ppdb001", "queue_depth")}
    (text,) = [text for text in input_notes(engine, rows, grid) if "queue_depth" in text]
    assert text.startswith("queue_depth of profile 'cache' is not forecast")
    with use_fleet(BUILT_IN_FLEET):  # queue_depth is not served, which another note says
        grid = grid_for(rows.drop(columns="queue_depth"), config, fleet.rules)
        assert not [text for text in input_notes(engine, rows.drop(columns="queue_depth"), grid) if "queue" in text]


@dataclass(frozen=True)
class OtherConfig(FakeConfig):
    """A model that was trained with queue_depth in another unit, and with a metric that the fleet lacks."""

    def definition_of(self, metric):
        return replace(METRIC_SPECS["queue_depth"], unit="kilojobs") if metric == "queue_depth" else BUILT_IN_METRICS[0]


def test_a_model_that_contradicts_the_fleet_file_serves_what_both_know(fleet, tmp_path):
    config = OtherConfig(targets=("queue_depth", "gpu_pct", "cpu_pct"), profiles=("cache",))
    with served(fleet, tmp_path, config) as client:
        post(client, *(record("redis1", complete_start(back), cpu_pct=40.0, queue_depth=5.0) for back in range(3)))
        forecast = forecast_of(client, "redis1")
        assert list(forecast["metrics"]) == ["cpu_pct"]
        assert forecast["metrics"]["cpu_pct"]["current"] == 40.0
        model = client.get("/api/v1/model").json()
        assert model["metrics"] == ["cpu_pct"]
        texts = [
            "metric queue_depth of the model is not served: it is a rate in kilojobs, in the fleet file a rate in jobs",
            "metric gpu_pct of the model is not served: it is not in the fleet file; add [metrics.gpu_pct] there",
            "metric fs_used_pct of the fleet file is not forecast: the model was not trained on it; train on data with",
            "metric celsius of the fleet file is not forecast: the model was not trained on it; train on data with",
            f"the calendar of {fleet.source} is not that of the model, which is used",
        ]
        for text, told in zip(texts, model["contradictions"], strict=True):
            assert told.startswith(text)
        assert "fleet_forecast_queue_depth{" not in client.get("/metrics").text
        records = [record("new1", complete_start(back), cpu_pct=40.0, queue_depth=5.0) for back in range(3)]
        answer = client.post("/api/v1/forecast", json={"records": records}).json()
        assert list(answer["forecasts"][0]["metrics"]) == ["cpu_pct"]


def test_a_file_is_forecast_in_the_metrics_that_both_know(fleet):
    engine = FakeEngine(OtherConfig(targets=("queue_depth", "gpu_pct", "cpu_pct"), profiles=("cache",)))
    rows = pd.DataFrame({"server_name": "redis1", "cpu_pct": np.float32(40), "queue_depth": np.float32(5)}, range(3))
    rows.insert(0, "timestamp", pd.date_range("2026-11-23", periods=3, freq="5min", tz="UTC"))
    grid = grid_for(rows.assign(profile=None), engine.config, fleet.rules)
    (table,) = forecast_tables(engine, grid, grid.peers(), last_origins(grid))
    assert set(table["metric"].to_pylist()) == {"cpu_pct"}
    assert table.num_rows == engine.config.horizon_steps
    assert np.isnan(engine.calls[0]["history"][..., 0]).all()


def test_the_built_in_fleet_contradicts_no_model_of_an_earlier_version():
    assert contradictions(FakeConfig()) == []
