"""The routes of the dashboard's views, against what the forecasts and samples give by hand."""

import json

import numpy as np
import pytest

from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.exceedance import exceedance_probability
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.monitoring.scores import Tally
from tests.serving.daemon_client import STEP, complete_start, daemon, forecast_of, post, record, wait_for
from tests.serving.fake_engine import FakeConfig, FakeEngine

LEVELS = FakeConfig().quantiles
QUERIES = {"/api/v1/servers/{name}/series": {"metric": "cpu_pct"}}  # parameters that a path needs


@pytest.fixture
def client(tmp_path):
    with daemon(tmp_path) as opened:
        yield opened


def test_the_heat_map_is_the_highest_probability_or_value_of_each_half_hour(client):
    post(client, record("ppdb001", cpu_pct=94.0, mem_pct=20.0), record("ppweb001", cpu_pct=10.0))
    for name in ("ppdb001", "ppweb001"):
        forecast_of(client, name)
    page = client.get("/api/v1/heat-map", params={"limit": 1}).json()
    (row,) = page["servers"]
    assert (row["server_name"], row["metric"], row["profile"], page["next"]) == (
        "ppdb001",
        "cpu_pct",
        "database",
        "ppdb001",
    )
    threshold = AlertRules().thresholds_of("ppdb001", "database")["cpu_pct"].above
    quantiles = 94.0 + (np.array(LEVELS) - 0.5)[:, None] * 10  # of the fake engine, the same at each step
    expected = exceedance_probability(quantiles, LEVELS, np.array(threshold))[0]
    assert row["values"] == [pytest.approx(expected, abs=0.00006)] * 16
    (row,) = client.get("/api/v1/heat-map", params={"after": page["next"]}).json()["servers"]
    assert row["server_name"] == "ppweb001"
    query = {"value": "quantile", "metric": "mem_pct", "level": 0.5, "profile": "database"}
    page = client.get("/api/v1/heat-map", params=query).json()
    assert [(row["server_name"], row["values"]) for row in page["servers"]] == [("ppdb001", [20.0] * 16)]
    assert page["unit"] == "%"
    assert client.get("/api/v1/heat-map", params={"metric": "unknown"}).status_code == 422
    post(client, record("ppetl01", cpu_pct=None))
    forecast_of(client, "ppetl01")
    (row,) = client.get("/api/v1/heat-map", params={"after": "ppdb999", "limit": 1}).json()["servers"]
    assert (row["cold_start"], row["values"]) == (True, [None] * 16), "no breach is known before a measurement"


def test_risks_of_a_server_have_thresholds_probabilities_and_times_of_crossing(client):
    post(client, record("ppdb001", cpu_pct=98.0))
    forecast_of(client, "ppdb001")
    wait_for(lambda: client.get("/api/v1/servers/ppdb001/risks").json()["metrics"]["cpu_pct"]["by_horizon"])
    document = client.get("/api/v1/servers/ppdb001/risks").json()
    cpu, disk = document["metrics"]["cpu_pct"], document["metrics"]["disk_io_mb_s"]
    assert cpu["threshold"] == AlertRules().thresholds_of("ppdb001", "database")["cpu_pct"].above
    assert cpu["expected_at"] == cpu["earliest_at"] == iso(complete_start() + STEP)
    assert list(cpu["by_horizon"]) == ["15m", "1h", "4h", "8h"]
    assert cpu["by_horizon"]["1h"] > 0.7
    assert (disk["expected_at"], disk["by_horizon"]["8h"]) == (None, 0.0)
    assert client.get("/api/v1/servers/nobody/risks").status_code == 404


def test_a_server_whose_name_has_a_slash_has_every_answer_of_a_server(client):
    name = "rack 3/ünï"
    post(client, record(name, cpu_pct=50.0))
    forecast_of(client, name)
    paths = [path for path, methods in client.get("/openapi.json").json()["paths"].items() if "get" in methods]
    answers = {
        path: client.get(path.replace("{name}", "rack%203%2F%C3%BCn%C3%AF"), params=QUERIES.get(path)).status_code
        for path in paths
        if path.startswith("/api/v1/servers/{name}/")
    }
    assert len(answers) == 7
    assert set(answers.values()) - {503} == {200}, "the fake engine explains nothing"


def test_peers_are_the_quartiles_of_the_other_servers_of_the_profile(client):
    start = complete_start()
    values = {"ppdb001": 90.0, "ppdb002": 10.0, "ppdb003": 20.0, "ppdb004": 30.0, "ppml0001": 99.0}
    post(client, *(record(name, start, cpu_pct=value) for name, value in values.items()))
    for name in values:
        forecast_of(client, name)
    document = wait_for(
        lambda: (band := client.get("/api/v1/servers/ppdb001/peers?hours=0.05").json())["servers"] == 3 and band
    )
    assert document["metrics"]["cpu_pct"] == {"low": [15.0], "high": [25.0]}
    assert document["metrics"]["mem_pct"] == {"low": [None], "high": [None]}
    assert document["timestamps"] == [iso(start)]


def test_the_evaluation_has_live_scores_and_no_scores_of_training_without_a_model_directory(client):
    client.app.state.daemon.scores.tallies["cpu_pct", "1h"] = Tally(10, 8, 12.5, 250.0)
    wait_for(lambda: client.get("/api/v1/model").json()["model"])
    document = client.get("/api/v1/model/evaluation").json()
    assert document["live"] == [{"metric": "cpu_pct", "horizon": "1h", "scored": 10, "coverage_80": 80.0, "wql": 0.05}]
    assert document["training"] is document["evaluation"] is None


def test_the_evaluation_has_the_files_of_the_model_directory_without_the_paths_of_the_trainer(tmp_path):
    info = {"servers": 3, "minutes": 2.5, "data": "/home/someone/data", "settings": {"training_dir": "/home/someone"}}
    (tmp_path / "training_info.json").write_text(json.dumps(info))
    (tmp_path / "evaluation.json").write_text('{"groups": {}, "cold_start": []}')
    with daemon(tmp_path, FakeEngine(model_dir=tmp_path)) as client:
        wait_for(lambda: client.get("/api/v1/model").json()["model"])
        document = client.get("/api/v1/model/evaluation").json()
        assert document["training"] == {"servers": 3, "minutes": 2.5}
        assert document["evaluation"] == {"groups": {}, "cold_start": []}
        (tmp_path / "evaluation.json").write_text("[" * 100_000)
        assert client.get("/api/v1/model/evaluation").json()["evaluation"] is None


def test_past_forecasts_are_those_of_earlier_cycles(tmp_path):
    now = [complete_start(24) + STEP + 1.0]
    with daemon(tmp_path, clock=lambda: now[0]) as client:
        for steps_back, cpu in ((24, 30.0), (12, 40.0)):
            start = complete_start(steps_back)
            now[0] = start + 1.0
            post(client, record("ppdb001", start, cpu_pct=cpu))
            now[0] = start + STEP + 1.0
            wait_for(lambda: forecast_of(client, "ppdb001")["origin"] == iso(start))  # noqa: B023
        path = "/api/v1/servers/ppdb001/past-forecasts"
        found = wait_for(lambda: len(past := client.get(path).json()["forecasts"]) == 2 and past)
    assert [one["origin"] for one in found] == [iso(complete_start(24)), iso(complete_start(12))]
    assert [one["metrics"]["cpu_pct"]["q0.5"][0] for one in found] == [30.0, 40.0]


def test_a_series_has_rows_of_what_was_measured_is_forecast_and_was_forecast(tmp_path):
    now = [complete_start(24) + STEP + 1.0]
    with daemon(tmp_path, clock=lambda: now[0]) as client:
        for steps_back, cpu in ((24, 30.0), (12, 40.0), (0, 60.0)):
            start = complete_start(steps_back)
            now[0] = start + 1.0
            post(client, record("ppdb001", start, cpu_pct=cpu))
            now[0] = start + STEP + 1.0
            wait_for(lambda: forecast_of(client, "ppdb001")["origin"] == iso(start))  # noqa: B023
        path, origin = "/api/v1/servers/ppdb001/series", complete_start()
        query = {"metric": "cpu_pct", "past_hours": 2, "since": iso(complete_start(13))}
        wait_for(lambda: client.get(path, params=query).json()["past_origin"])
        document = client.get(path, params=query).json()
        assert client.get(path, params={"metric": "unknown"}).status_code == 422
        assert client.get("/api/v1/servers/nobody/series?metric=cpu_pct").status_code == 404
    assert (document["origin"], document["past_origin"]) == (iso(origin), iso(complete_start(24)))
    rows = {row["time"]: row for row in document["rows"]}
    assert list(rows) == sorted(rows)
    measured = {time: row["measured"] for time, row in rows.items() if row["measured"] is not None}
    assert measured == {iso(complete_start(12)): 40.0, iso(origin): 60.0}
    assert rows[iso(origin)]["median"] is None
    last = rows[iso(origin + 96 * STEP)]  # of the fake engine: 60 + 10 (q - 0.5)
    bands = [last[name] for name in ("low_96", "low_80", "median", "high_80", "high_96")]
    assert bands == pytest.approx([55.2, 56.0, 60.0, 64.0, 64.8])
    then = rows[iso(origin + 15 * 60)]  # the past forecast is kept every quarter of an hour: 30 + 10 (q - 0.5)
    assert [then[f"past_{name}"] for name in ("low_80", "median", "high_80")] == pytest.approx([26.0, 30.0, 34.0])
