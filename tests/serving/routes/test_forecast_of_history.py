"""POST /api/v1/forecast: the history in the request is forecast and not stored."""

import asyncio

from data_contract import METRICS
from fleet_forecast.iso_time import iso
from tests.serving.daemon_client import STEP, complete_start, daemon, post, record, wait_for
from tests.serving.fake_engine import FakeEngine


def test_one_record_in_the_request_is_forecast_and_nothing_is_stored(client):
    answer = client.post("/api/v1/forecast", json={"records": [record("newone", seconds=1_700_000_000)]}).json()
    (forecast,) = answer["forecasts"]
    assert forecast["origin"] == iso(1_700_000_000 // STEP * STEP)
    assert forecast["history_steps"] == 1
    assert client.get("/status").json()["servers"]["known"] == 0


def test_a_history_in_the_request_is_averaged_and_gaps_stay_gaps(tmp_path):
    engine = FakeEngine()
    with daemon(tmp_path, engine) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        start = 1_700_000_100 // STEP * STEP
        records = [
            record(seconds=start, cpu_pct=10.0),
            record(seconds=start + 10, cpu_pct=20.0),
            record(seconds=start + 3 * STEP, cpu_pct=40.0),
        ]
        client.post("/api/v1/forecast", json={"records": records})
    column = engine.calls[-1]["history"][0, :, METRICS.index("cpu_pct")].tolist()
    assert column[0] == 15.0
    assert str(column[1:3]) == "[nan, nan]"
    assert column[3] == 40.0


def test_the_last_value_sent_for_a_time_counts_in_a_forecast_and_in_the_history(tmp_path):
    engine = FakeEngine()
    start = complete_start()
    twice = [
        record(seconds=start, cpu_pct=10.0, mem_pct=40.0),
        record(seconds=start, cpu_pct=90.0, mem_pct=None),
    ]
    with daemon(tmp_path, engine) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        client.post("/api/v1/forecast", json={"records": twice})
        of_request = engine.calls[-1]["history"][0, -1]
        post(client, *twice)
        stored = client.get("/api/v1/servers/ppml0001/history").json()["metrics"]
    for metric, value in (("cpu_pct", 90.0), ("mem_pct", 40.0)):
        assert of_request[METRICS.index(metric)] == value
        assert stored[metric] == [value]


def test_a_request_without_a_good_record_is_refused_with_the_reasons(client):
    answer = client.post("/api/v1/forecast", json={"records": [{}]})
    assert answer.status_code == 422
    assert answer.json()["rejected"][0]["field"] == "server_name"


def test_servers_of_times_too_far_apart_are_refused_by_name(client):
    wait_for(lambda: client.get("/readyz").status_code == 200)
    records = [record("old", seconds=86_400), record("new", seconds=4_000_000_000)]
    answer = client.post("/api/v1/forecast", json={"records": records})
    assert answer.status_code == 422
    assert "'old' ends at 1970-01-02T00:00:00Z" in answer.json()["detail"]
    assert "send servers of different times in separate requests" in answer.json()["detail"]
    long_history = [record("one", seconds=86_400), record("one", seconds=4_000_000_000)]  # cut to what the model reads
    assert client.post("/api/v1/forecast", json={"records": long_history}).status_code == 200


def test_a_forecast_waits_for_the_cycle_and_is_refused_after_a_time(client, monkeypatch):
    wait_for(lambda: client.get("/readyz").status_code == 200)
    turns = client.app.state.daemon.forecasts.turns
    monkeypatch.setattr(turns, "_wait_seconds", 0.05)
    monkeypatch.setattr(turns, "_no_cycle", asyncio.Event())  # a cycle that does not end
    answer = client.post("/api/v1/forecast", json={"records": [record()]})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert client.app.state.daemon.waiting_forecasts == 0
