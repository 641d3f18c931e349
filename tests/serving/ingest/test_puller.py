"""The Prometheus puller."""

import math
import threading
import time
from urllib.parse import parse_qs

import httpx
import pytest
from starlette.testclient import TestClient

from data_contract import METRICS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.app import create_app
from fleet_forecast.serving.forecasts.model_manager import ModelLoading
from fleet_forecast.serving.ingest import puller as pull
from fleet_forecast.serving.ingest.puller import newest_stored_step
from fleet_forecast.serving.settings import Settings
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.sources.prometheus import PrometheusClient, QuerySet
from tests.serving.daemon_client import STEP, complete_start, forecast_of, post, record, wait_for
from tests.serving.fake_engine import FakeEngine


class ScriptedPrometheus:
    """Returns cpu = 40 for one valid and one invalid server name; 400 while `down` is set."""

    def __init__(self):
        self.down, self.measured_until, self.asked = False, math.inf, []

    def __call__(self, request):
        form = {key: values[0] for key, values in parse_qs(request.content.decode()).items()}
        if self.down:
            return httpx.Response(400, json={"error": "down"})
        self.asked.append((int(form["start"]), int(form["end"])))
        moments = range(int(form["start"]), int(form["end"]) + 1, STEP)
        points = [[t, "40"] for t in moments if t <= self.measured_until]
        names = ("ppml0001:9100", "bad\nname")
        return httpx.Response(
            200, json={"data": {"result": [{"metric": {"instance": n}, "values": points} for n in names]}}
        )


@pytest.fixture
def scripted():
    return ScriptedPrometheus()


def running(folder, scripted, retention_hours=2.0, clock=time.time):
    settings = Settings(
        model=folder,
        history=folder / "h.sqlite",
        grace_seconds=0.0,
        recheck_seconds=0.05,
        retention_hours=retention_hours,
        allowed_hosts=("testserver",),
    )
    client = PrometheusClient("http://p:9090", transport=httpx.MockTransport(scripted), pause_seconds=0.0)
    return TestClient(
        create_app(
            settings,
            loading=ModelLoading(settings.model, lambda _path: FakeEngine()),
            prometheus=(client, QuerySet(queries={"cpu_pct": "cpu"})),
            clock=clock,
        )
    )


def test_the_fleet_is_pulled_back_to_the_retention_and_forecast(tmp_path, scripted):
    with running(tmp_path, scripted) as client:
        got = wait_for(lambda: (found := forecast_of(client))["history_steps"] > 20 and found)
        assert got["origin"] == iso(complete_start())
        assert got["metrics"]["cpu_pct"]["current"] == 40.0
        status = client.get("/status").json()
    assert scripted.asked[0][0] >= time.time() - 2 * 3600 - STEP
    assert status["records"]["accepted"] > 20
    assert [(each["protocol"], each["name"]) for each in status["left_out"]] == [("prometheus", "bad\nname")]


def test_a_long_history_is_pulled_in_pieces_without_gap_or_overlap(tmp_path, scripted, monkeypatch):
    monkeypatch.setattr(pull, "SECONDS_PER_PULL", 3600)
    with running(tmp_path, scripted, retention_hours=3.0) as client:
        wait_for(lambda: len(scripted.asked) >= 3)
        forecast_of(client)
    spans = scripted.asked[:3]
    assert all(end - start < 3600 for start, end in spans)
    assert [start for start, _ in spans[1:]] == [end + STEP for _, end in spans[:-1]]


def test_a_restart_pulls_only_missing_steps(tmp_path, scripted):
    with running(tmp_path, scripted) as client:
        forecast_of(client)
    first = len(scripted.asked)
    with running(tmp_path, scripted) as client:
        forecast_of(client)
        time.sleep(0.3)
    assert all(end - start <= 2 * STEP for start, end in scripted.asked[first:])


def test_a_pushed_sample_does_not_hide_a_gap_in_what_was_pulled(tmp_path, scripted):
    now = time.time()
    with running(tmp_path, scripted, 24.0, clock=lambda: now - 6 * 3600) as client:
        wait_for(lambda: "ppml0001" in client.get("/metrics").text)
    scripted.down, first = True, len(scripted.asked)
    with running(tmp_path, scripted, 24.0) as client:
        assert post(client, record("pushed1")).json()["accepted"] == 1
    scripted.down = False
    with running(tmp_path, scripted, 24.0):
        wait_for(lambda: len(scripted.asked) > first)
    start, end = scripted.asked[first]
    assert end - start > 5.5 * 3600


def test_samples_pushed_before_the_first_pull_do_not_shorten_it(tmp_path, scripted):
    scripted.down = True
    with running(tmp_path, scripted) as client:
        post(client, record("pushed1"))
        scripted.down = False
        wait_for(lambda: scripted.asked)
    start, end = scripted.asked[0]
    assert end - start > 1.5 * 3600


def test_pulling_continues_after_the_clock_was_ahead(tmp_path, scripted):
    clock = [time.time()]
    with running(tmp_path, scripted, clock=lambda: clock[0]) as client:
        forecast_of(client)
        scripted.measured_until = clock[0]
        clock[0] += 2 * 86_400
        wait_for(lambda: scripted.asked[-1][1] > clock[0] - 2 * STEP)
        clock[0] -= 2 * 86_400 - STEP
        first = len(scripted.asked)
        wait_for(lambda: len(scripted.asked) > first)
    assert scripted.asked[first][1] == clock[0] // STEP * STEP
    assert scripted.asked[first][0] >= clock[0] - 3 * STEP


def test_shutdown_does_not_wait_for_a_prometheus_that_does_not_answer(tmp_path):
    asked, let_go = threading.Event(), threading.Event()

    def hangs(_request):
        asked.set()
        let_go.wait(6.0)
        return httpx.Response(200, json={"data": {"result": []}})

    with running(tmp_path, hangs):
        assert asked.wait(5.0)
        began = time.monotonic()
    took = time.monotonic() - began
    let_go.set()
    assert took < 3.0


def test_a_failed_pull_is_counted_and_tried_again(tmp_path, scripted):
    scripted.down = True
    with running(tmp_path, scripted) as client:
        wait_for(lambda: 'fleet_prometheus_pulls_total{result="failure"} 1' in client.get("/metrics").text)
        scripted.down = False
        forecast_of(client)


def test_a_server_added_while_the_last_pull_is_looked_up_fails_no_pull(tmp_path):
    store = HistoryStore(tmp_path / "h.sqlite", STEP)
    store.append([Sample("a", 20 * STEP * 1000, None, None, (1.0,) * len(METRICS))]).result(5)
    last_step = store.last_step

    def appearing(server_id):
        store.append([Sample("b", 0, None, None, (1.0,) * len(METRICS))]).result(5)
        return last_step(server_id)

    store.last_step = appearing
    assert newest_stored_step(store, oldest=3) == 20
    store.close()
