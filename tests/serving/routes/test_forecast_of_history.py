"""POST /api/v1/forecast: the history in the request is forecast and not stored."""

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
