"""The daemon's HTTP interface, on a fake engine."""

import asyncio
import contextlib
import gzip
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient

from data_contract import METRICS
from fleet_forecast.serving.app import create_app
from fleet_forecast.serving.http.middleware import RequestGuard, _Body, _Waiting
from fleet_forecast.serving.settings import Settings
from tests.serving.fake_engine import FakeConfig, FakeEngine

STEP = 300
TOKEN, ADMIN = b"0123456789abcdef-client", b"0123456789abcdef-admin"


def iso(seconds):
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def complete_start(steps_back=0):
    """Start of the last complete step, or of one before it."""
    return (int(time.time()) // STEP - 1 - steps_back) * STEP


def record(name="ppml0001", seconds=None, **values):
    return {
        "timestamp": iso(complete_start() if seconds is None else seconds),
        "server_name": name,
        **(values or {"cpu_pct": 70.0, "mem_pct": 80.0}),
    }


@contextlib.contextmanager
def daemon(folder, engine=None, token=None, admin_token=None, load=None, raise_errors=True, clock=time.time, **changes):
    chosen = Settings(
        model=Path(folder),
        history=Path(folder) / "history.sqlite",
        grace_seconds=0.0,
        recheck_seconds=0.05,
        allowed_hosts=("testserver",),
        **changes,
    )

    def load_fake(_path) -> Any:
        return engine or FakeEngine()

    app = create_app(chosen, load or load_fake, token=token, admin_token=admin_token, clock=clock)
    with TestClient(app, raise_server_exceptions=raise_errors) as client:
        yield client


@pytest.fixture
def client(tmp_path):
    with daemon(tmp_path) as running:
        wait_for(lambda: running.get("/readyz").status_code == 200)
        yield running


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)
    return found


def post(client, *records):
    return client.post("/api/v1/metrics", json={"records": list(records)})


def forecast_of(client, name="ppml0001", **query):
    def answer():
        got = client.get(f"/api/v1/servers/{name}/forecast", params=query)
        return got if got.status_code == 200 else None

    return wait_for(answer).json()


def test_a_posted_server_is_forecast_from_the_step_it_was_measured_in(client):
    assert post(client, record(cpu_pct=64.0)).json() == {"accepted": 1, "rejected": []}
    got = forecast_of(client)
    assert got["origin"] == iso(complete_start())
    assert got["profile"] == "ml_compute"
    assert "ppml" in got["profile_rule"]
    assert got["model"] == "tft_model_fake"
    assert got["history_steps"] == 1
    assert got["cold_start"] is False
    assert got["steps"] == list(range(1, 97))
    assert got["timestamps"][0] == iso(complete_start() + STEP)
    assert got["metrics"]["cpu_pct"]["q0.5"] == [64.0] * 96
    assert got["metrics"]["cpu_pct"]["current"] == 64.0
    assert got["metrics"]["latency_ms"]["current"] is None


def test_samples_of_a_step_are_averaged(client):
    start = complete_start()
    post(client, record(seconds=start, cpu_pct=10.0), record(seconds=start + 60, cpu_pct=20.0))
    assert forecast_of(client)["metrics"]["cpu_pct"]["current"] == 15.0


def test_late_samples_change_the_forecast_without_waiting_for_the_next_step(client):
    post(client, record(cpu_pct=10.0))
    assert forecast_of(client)["metrics"]["cpu_pct"]["current"] == 10.0
    post(client, record(seconds=complete_start() + 30, cpu_pct=30.0))
    wait_for(lambda: forecast_of(client)["metrics"]["cpu_pct"]["current"] == 20.0)


def test_a_server_first_seen_in_the_running_step_is_forecast_cold_and_says_so(client):
    post(client, record("ppdb007", seconds=int(time.time())))
    got = forecast_of(client, "ppdb007")
    assert got["cold_start"] is True
    assert got["history_steps"] == 0
    assert "from the profile alone" in got["warnings"][0]


def test_a_name_no_rule_matches_is_generic_with_a_warning(client):
    post(client, record("frontdoor"))
    got = forecast_of(client, "frontdoor")
    assert (got["profile"], got["profile_rule"]) == ("generic", None)
    assert "no rule matches" in got["warnings"][0]


def test_the_profile_sent_with_the_samples_beats_the_patterns(client):
    post(client, record("ppml0001") | {"profile": "database"})
    got = forecast_of(client)
    assert (got["profile"], got["profile_rule"]) == ("database", "sent with the samples")


def test_another_profile_than_the_seven_is_kept_and_forecast_as_unknown(client):
    post(client, record("mf1") | {"profile": "mainframe"})
    got = forecast_of(client, "mf1")
    assert (got["profile"], got["profile_rule"]) == ("mainframe", "sent with the samples")
    assert "the model was not trained on profile 'mainframe'" in got["warnings"][0]
    (listed,) = [each for each in client.get("/api/v1/profiles").json()["profiles"] if each["profile"] == "mainframe"]
    assert (listed["servers"], listed["trained"]) == (1, False)
    assert 'fleet_servers{profile="mainframe"} 1' in client.get("/metrics").text
    refused = post(client, record("mf2") | {"profile": 'main"frame'}).json()["rejected"]
    assert (refused[0]["field"], refused[0]["value"]) == ("profile", 'main"frame')


def test_a_profile_the_model_never_saw_is_said(client):
    post(client, record("ppweb001"))
    assert any("not trained on profile 'web_api'" in warning for warning in forecast_of(client, "ppweb001")["warnings"])


def test_a_bad_record_is_rejected_by_name_and_the_good_ones_are_kept(client):
    answer = post(client, record(cpu_pct=180.0), record("ppml0002"), {"server_name": "x y"}, 7).json()
    assert answer["accepted"] == 1
    assert [(r["index"], r["field"], r["value"]) for r in answer["rejected"]] == [
        (0, "cpu_pct", 180.0),
        (2, "server_name", "x y"),
        (3, "record", 7),
    ]


@pytest.mark.parametrize("value", [1e300, 4e38, -1.0, True, "5", [5], {}])
def test_a_value_that_cannot_be_a_measurement_is_rejected(client, value):
    answer = post(client, record(disk_io_mb_s=value)).json()
    assert [rejection["field"] for rejection in answer["rejected"]] == ["disk_io_mb_s"]


def test_fields_the_contract_does_not_know_are_named(client):
    assert post(client, record() | {"cpu": 5}).json()["ignored_fields"] == ["cpu"]


def test_the_aliases_answer_as_the_versioned_paths(client):
    assert client.post("/feed/data", json={"records": [record()]}).json()["accepted"] == 1
    forecast_of(client)
    assert client.get("/predictions/current").json()["forecasts"][0]["server_name"] == "ppml0001"


def test_the_fleet_is_paged_in_the_order_of_names(client):
    names = [f"ppml{n:04d}" for n in range(5)]
    post(client, *(record(name) for name in reversed(names)))
    wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 5)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.get("/api/v1/forecasts", params={"limit": 2, "after": after}).json()
        seen += [forecast["server_name"] for forecast in page["forecasts"]]
        after = page["next"]
    assert seen == names


def test_filters_choose_servers_profiles_metrics_quantiles_and_horizons(client):
    post(client, record("ppml0001"), record("ppdb001"), record("ppdb002"))
    wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 3)
    query = {"profile": "database", "metric": "cpu_pct", "quantile": [0.5, 0.9], "horizon": ["15m", "8h"]}
    page = client.get("/api/v1/forecasts", params=query).json()["forecasts"]
    assert [forecast["server_name"] for forecast in page] == ["ppdb001", "ppdb002"]
    assert page[0]["steps"] == [3, 96]
    assert page[0]["metrics"] == {
        "cpu_pct": {
            "unit": page[0]["metrics"]["cpu_pct"]["unit"],
            "current": 70.0,
            "q0.5": [70.0, 70.0],
            "q0.9": [74.0, 74.0],
        }
    }
    for path in ("/api/v1/forecasts", "/api/v1/servers/ppdb001/forecast"):
        beyond = client.get(path, params={"horizon": ["1h", "9h"]})
        assert beyond.status_code == 422
        assert beyond.json()["detail"].startswith("horizon: 540m is asked for; the forecast reaches")
    only = client.get("/api/v1/forecasts", params={"server": "ppdb002"}).json()["forecasts"]
    assert [forecast["server_name"] for forecast in only] == ["ppdb002"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"metric": "cpu"}, "metric"),
        ({"horizon": "soon"}, "horizon"),
        ({"horizon": "99999999999999h"}, "horizon"),
        ({"horizon": "²h"}, "horizon"),
        ({"quantile": "0.55"}, "quantile"),
        ({"quantile": "nan"}, "quantile"),
        ({"limit": "0"}, "limit"),
    ],
)
def test_a_wrong_query_is_refused_by_name(client, query, named):
    post(client, record())
    forecast_of(client)
    answer = client.get("/api/v1/forecasts", params=query)
    assert answer.status_code == 422
    assert named in answer.text


def test_an_unknown_server_is_404(client):
    assert client.get("/api/v1/servers/nobody/forecast").status_code == 404


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


def test_of_values_sent_twice_for_a_time_the_last_counts_in_a_forecast_as_in_the_history(tmp_path):
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


def test_a_request_without_a_good_record_says_why(client):
    answer = client.post("/api/v1/forecast", json={"records": [{}]})
    assert answer.status_code == 422
    assert answer.json()["rejected"][0]["field"] == "server_name"


def test_a_forecast_that_is_not_finite_keeps_the_last_one(tmp_path):
    engine = FakeEngine()
    with daemon(tmp_path, engine) as client:
        post(client, record(cpu_pct=10.0))
        made_at = forecast_of(client)["made_at"]
        engine.bad_output = True
        post(client, record(cpu_pct=30.0))
        calls = len(engine.calls)
        wait_for(lambda: len(engine.calls) > calls)
        assert forecast_of(client)["made_at"] == made_at


def test_a_silent_server_is_stale_then_gone(tmp_path):
    with daemon(tmp_path, stale_steps=3, drop_steps=6) as client:
        post(client, record(seconds=complete_start(2)), record("ppml0002", seconds=complete_start(4)))
        assert forecast_of(client)["stale"] is False
        assert client.get("/api/v1/servers/ppml0002/forecast").status_code == 404


def test_a_model_without_some_metrics_forecasts_those_it_has(tmp_path):
    with daemon(tmp_path, FakeEngine(FakeConfig(targets=("mem_pct",)))) as client:
        post(client, record(cpu_pct=1.0, mem_pct=33.0))
        got = forecast_of(client)
        assert set(got["metrics"]) == {"mem_pct"}
        assert got["metrics"]["mem_pct"]["current"] == 33.0


def test_not_ready_without_a_good_model_yet_alive_and_receiving(tmp_path):
    def broken(_path):
        raise OSError("model.onnx: sha256 differs")

    with daemon(tmp_path, load=broken) as client:
        wait_for(lambda: "sha256 differs" in client.get("/readyz").text)
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert post(client, record()).json()["accepted"] == 1
        assert client.get("/api/v1/servers/ppml0001/forecast").status_code == 503
        refused = client.post("/api/v1/forecast", json={"records": [record()]})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_a_server_that_measured_nothing_is_forecast_before_and_after_a_restart(tmp_path):
    start = complete_start()
    for sent in (record("ppweb9", seconds=start, cpu_pct=None) | {"state": "offline"}, record("ppdb1", seconds=start)):
        with daemon(tmp_path) as client:
            post(client, sent)
            assert forecast_of(client, "ppweb9")["history_steps"] == 0


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path):
    with daemon(tmp_path) as client:
        post(client, record(cpu_pct=42.0))
    with daemon(tmp_path) as client:
        assert forecast_of(client)["metrics"]["cpu_pct"]["current"] == 42.0


# --- hostile input --------------------------------------------------------------------------------------------------

HOSTILE = [
    b"",
    b"null",
    b"[]",
    b'{"records": null}',
    b'{"records": {"a": 1}}',
    b'{"records": [NaN]}',
    b'{"records": [1e999]}',
    b'{"records": ["\\ud800"]}',
    b'{"records": [' + b"[" * 2000 + b"]" * 2000 + b"]}",
    b"\xff\xfe{}",
    b'{"records": [{}',
]


@pytest.mark.parametrize("body", HOSTILE)
@pytest.mark.parametrize("path", ["/api/v1/metrics", "/api/v1/forecast"])
def test_a_body_that_is_no_batch_is_400(client, path, body):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["detail"]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(
        ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-11-23T10:00:00", "1e999", "é" * 300]
    ),
)
FIELDS = st.sampled_from(["timestamp", "server_name", "profile", "state", "incident", "extra", *METRICS])


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.dictionaries(FIELDS, VALUES, max_size=6), max_size=4),
    path=st.sampled_from(["metrics", "forecast"]),
)
def test_mutated_records_never_cause_a_server_error(client, changes, path):
    body = json.dumps({"records": [record() | change for change in changes]}).encode()
    answer = client.post(f"/api/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 422)
    if path == "metrics" and answer.status_code == 200:
        assert answer.json()["accepted"] + len(answer.json()["rejected"]) == len(changes)


# --- guard ----------------------------------------------------------------------------------------------------------


def test_a_body_beyond_the_limit_is_413(tmp_path):
    with daemon(tmp_path, max_body_mib=0.01) as client:
        big = json.dumps({"records": [record() for _ in range(500)]}).encode()
        headers = {"content-type": "application/json"}
        assert client.post("/api/v1/metrics", content=big, headers=headers).status_code == 413
        chunks = (big[start : start + 1000] for start in range(0, len(big), 1000))
        assert client.post("/api/v1/metrics", content=chunks, headers=headers).status_code == 413


def test_bodies_that_wait_are_bounded_together_and_make_room_again(tmp_path):
    async def one_waits_while_another_comes():
        waiting, small = _Waiting(100), b"x" * 60
        parts = asyncio.Queue()

        async def slowly():
            return await parts.get()

        first = _Body(slowly, 5.0, 1000, waiting)
        parts.put_nowait({"type": "http.request", "body": small, "more_body": True})
        await first()

        async def at_once():
            return {"type": "http.request", "body": small, "more_body": False}

        second = _Body(at_once, 5.0, 1000, waiting)
        with pytest.raises(HTTPException) as refused:
            await second()
        first.release()
        third = _Body(at_once, 5.0, 1000, waiting)
        await third()
        held = waiting.held_bytes
        third.release()
        return refused.value.status_code, refused.value.headers, held, waiting.held_bytes

    assert asyncio.run(one_waits_while_another_comes()) == (503, {"Retry-After": "1"}, 60, 0)
    with daemon(tmp_path, max_waiting_mib=0.001) as client:  # one body alone always finds room
        assert post(client, *(record(f"ppml{n:04d}") for n in range(100))).json()["accepted"] == 100


def test_too_many_records_are_refused(tmp_path):
    with daemon(tmp_path, max_records=2) as client:
        assert post(client, record(), record(), record()).status_code == 400


@pytest.mark.parametrize("path", ["/api/v1/metrics", "/feed/data", "/api/v1/forecast"])
@pytest.mark.parametrize("filler", [b"{},", b"[],", b'{"a":[[]]},'])
def test_a_body_of_far_too_many_objects_or_lists_is_refused_before_it_is_parsed(tmp_path, monkeypatch, path, filler):
    def parse(_body):
        raise AssertionError("parsed")

    monkeypatch.setattr("fleet_forecast.serving.ingest.validation.parse_json", parse)
    with daemon(tmp_path, max_records=100) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        body = b'{"records": [' + filler * 500 + b"{}]}"
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "send at most 100 records" in answer.json()["detail"]


def test_as_many_records_as_allowed_may_hold_unknown_objects_and_lists(tmp_path):
    with daemon(tmp_path, max_records=3) as client:
        records = [record(f"ppml{n:04d}") | {"tags": ["a"], "labels": {"b": "c"}} for n in range(3)]
        assert post(client, *records).json()["accepted"] == 3


def test_an_upload_that_is_broken_off_ends_quietly():
    sent = []

    async def scene():
        parts = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(parts)

        async def send(message):
            sent.append(message)

        async def app(scope, receive, _send):
            await Request(scope, receive).body()

        guard = RequestGuard(app, Settings(), None, None)
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await guard({"type": "http", "method": "POST", "path": "/x", "headers": headers}, receive, send)

    asyncio.run(scene())
    assert sent == []


def test_another_content_type_or_an_encoding_is_415(client):
    assert client.post("/api/v1/metrics", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    packed = client.post(
        "/api/v1/metrics",
        content=gzip.compress(b'{"records": []}'),
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    )
    assert (packed.status_code, "Content-Encoding" in packed.json()["detail"]) == (415, True)


def test_an_unknown_host_header_is_refused(client):
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/healthz", headers={"host": "localhost:8000"}).status_code == 200
    assert client.get("/healthz", headers={"host": "[::1]:8000"}).status_code == 200


PATHS = ["/healthz", "/readyz", "/status", "/api/v1/forecasts", "/api/v1/servers/a/forecast", "/openapi.json"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "sent", [None, "Bearer wrong", "Bearer é", "Basic " + TOKEN.decode(), "Bearer " + TOKEN.decode()]
)
def test_with_a_token_everything_but_the_probes_needs_it(tmp_path, path, sent):
    with daemon(tmp_path, token=TOKEN) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        headers = {} if sent is None else {"authorization": sent.encode()}
        status = client.get(path, headers=headers).status_code
    right = sent == "Bearer " + TOKEN.decode()
    assert (status != 401) == (right or path in ("/healthz", "/readyz"))


def test_more_servers_than_allowed_are_rejected_by_name(tmp_path):
    with daemon(tmp_path, max_servers=2) as client:
        answer = post(client, *(record(f"ppml{n:04d}") for n in range(3))).json()
        assert answer["accepted"] == 2
        assert answer["rejected"][0]["field"] == "server_name"
        assert post(client, record("ppml0001")).json()["accepted"] == 1


def test_the_bounds_of_time_hold(client):
    answers = post(client, record(seconds=time.time() + 700), record(seconds=time.time() - 193 * 3600), record()).json()
    assert answers["accepted"] == 1
    assert [r["reason"].split(";")[0] for r in answers["rejected"]] == ["too far ahead", "too old"]


# --- fleet, history, model ------------------------------------------------------------------------------------------


def test_servers_and_profiles_say_what_is_known(client):
    post(client, record("ppdb001"), record("frontdoor"))
    forecast_of(client, "ppdb001")
    page = client.get("/api/v1/servers", params={"limit": 1}).json()
    assert [server["server_name"] for server in page["servers"]] == ["frontdoor"]
    page = client.get("/api/v1/servers", params={"after": page["next"]}).json()
    assert [(server["server_name"], server["profile"]) for server in page["servers"]] == [("ppdb001", "database")]
    assert page["next"] is None
    assert page["servers"][0]["last_measured_step"] == iso(complete_start())
    profiles = client.get("/api/v1/profiles").json()
    counts = {profile["profile"]: profile["servers"] for profile in profiles["profiles"]}
    assert counts["database"] == counts["generic"] == 1
    assert profiles["unmatched_names"] == 1


def test_history_on_the_step_and_as_received(client):
    start = complete_start()
    post(client, record(seconds=start - STEP, cpu_pct=5.0), record(seconds=start, cpu_pct=10.0))
    post(client, record(seconds=start + 60, cpu_pct=20.0) | {"state": "idle"})
    on_step = client.get("/api/v1/servers/ppml0001/history").json()
    assert on_step["timestamps"] == [iso(start - STEP), iso(start)]
    assert on_step["metrics"]["cpu_pct"] == [5.0, 15.0]
    assert on_step["metrics"]["mem_pct"] == [None, None]
    raw = client.get("/api/v1/servers/ppml0001/history", params={"raw": True, "hours": 1}).json()
    assert raw["timestamps"] == [iso(start - STEP), iso(start), iso(start + 60)]
    assert raw["states"] == [None, None, "idle"]
    assert raw["metrics"]["cpu_pct"] == [5.0, 10.0, 20.0]
    assert client.get("/api/v1/servers/nobody/history").status_code == 404


def test_a_history_is_read_of_its_server_alone_and_piece_by_piece(client, monkeypatch):
    monkeypatch.setattr("fleet_forecast.serving.routes.fleet.STEPS_PER_READ", 2)
    start = complete_start()
    post(client, *(record(seconds=start - ago * STEP, cpu_pct=float(ago)) for ago in range(7)))
    post(client, record("other", seconds=start))
    forecast_of(client, "other")
    store, pieces = client.app.state.daemon.store, []
    read = store.server_step_means
    monkeypatch.setattr(store, "server_step_means", lambda *asked: pieces.append(read(*asked)) or pieces[-1])
    monkeypatch.setattr(store, "raw_samples", lambda *_: store._ask(list))  # the means stored have to answer
    monkeypatch.setattr(store, "stored_step_means", None)  # the whole fleet's
    found = client.get("/api/v1/servers/ppml0001/history", params={"hours": 1}).json()
    assert found["timestamps"] == [iso(start - ago * STEP) for ago in range(6, -1, -1)]
    assert found["metrics"]["cpu_pct"] == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    assert max(len(piece.result()) for piece in pieces) == 2


def test_reload_needs_the_admin_token_and_a_bad_model_leaves_the_old_one(tmp_path):
    models = [FakeEngine(model_id="first"), FakeEngine(model_id="second"), OSError("bad manifest")]

    def load(_path):
        model = models.pop(0)
        if isinstance(model, OSError):
            raise model
        return model

    with daemon(tmp_path, load=load, token=TOKEN, admin_token=ADMIN) as client:
        as_admin = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
        as_client = {"authorization": "Bearer " + TOKEN.decode(), "content-type": "application/json"}
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/api/v1/reload", headers=as_client).status_code == 401
        assert client.post("/api/v1/reload", headers=as_admin).json()["model"] == "second"
        refused = client.post("/api/v1/reload", headers=as_admin)
        assert (refused.status_code, refused.json()["problem"]) == (409, "bad manifest")
        assert client.get("/api/v1/model", headers=as_client).json()["model"] == "second"
        assert client.get("/readyz").status_code == 200


def test_without_an_admin_token_reload_over_http_is_off(client):
    assert client.post("/api/v1/reload", headers={"content-type": "application/json"}).status_code == 403


def test_a_changed_link_is_loaded_and_the_fleet_forecast_anew(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    link = tmp_path / "current"
    link.symlink_to("one")
    chosen = Settings(
        model=link,
        history=tmp_path / "h.sqlite",
        grace_seconds=0.0,
        recheck_seconds=0.05,
        allowed_hosts=("testserver",),
    )

    def load(path) -> Any:
        return FakeEngine(model_id=path.resolve().name)

    with TestClient(create_app(chosen, load)) as client:
        post(client, record())
        assert forecast_of(client)["model"] == "one"
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(link)
        wait_for(lambda: forecast_of(client)["model"] == "two")


def test_a_link_that_leads_to_itself_is_a_refused_model_and_mended_it_is_loaded(tmp_path):
    (tmp_path / "one").mkdir()
    link = tmp_path / "current"
    link.symlink_to("current")
    chosen = Settings(model=link, history=tmp_path / "h.sqlite", allowed_hosts=("testserver",))

    def load(path) -> Any:
        return FakeEngine(model_id=path.resolve().name)

    with TestClient(create_app(chosen, load, admin_token=ADMIN)) as client:
        headers = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
        refused = client.post("/api/v1/reload", headers=headers)
        assert refused.status_code == 409
        assert "cannot be loaded" in refused.json()["problem"]
        (tmp_path / "next").symlink_to("one")
        (tmp_path / "next").rename(link)
        wait_for(lambda: client.get("/readyz").status_code == 200)


def test_a_model_of_another_step_lays_the_samples_on_it(tmp_path):
    engines = [FakeEngine(model_id="first"), FakeEngine(FakeConfig(step_seconds=60), model_id="second")]
    with daemon(tmp_path, load=lambda _path: engines.pop(0), admin_token=ADMIN) as client:
        start = complete_start()
        minutes = range(int((time.time() - start) // 60))
        post(client, *(record(seconds=start + 60 * n, cpu_pct=10.0 * n) for n in minutes))
        forecast_of(client)
        headers = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
        client.post("/api/v1/reload", headers=headers)
        got = wait_for(lambda: (found := forecast_of(client))["step_seconds"] == 60 and found)
        assert got["metrics"]["cpu_pct"]["current"] == 10.0 * minutes[-1]


def test_a_table_of_servers_only_an_earlier_model_forecast_is_empty(tmp_path):
    engines = [FakeEngine(model_id="first"), FakeEngine(model_id="second")]
    now = [time.time()]
    with daemon(tmp_path, load=lambda _path: engines.pop(0), admin_token=ADMIN, clock=lambda: now[0]) as client:
        post(client, record())
        assert forecast_of(client)["model"] == "first"
        now[0] += 4 * STEP  # the server fell silent: its forecast is stale, and the new model makes none
        headers = {"authorization": "Bearer " + ADMIN.decode(), "content-type": "application/json"}
        client.post("/api/v1/reload", headers=headers)
        wait_for(lambda: client.get("/api/v1/forecasts").json()["model"] == "second")
        assert forecast_of(client)["model"] == "first"
        answer = client.get("/api/v1/forecasts", headers={"accept": "application/vnd.apache.parquet"})
        assert (answer.status_code, answer.headers["x-next"]) == (204, "")


def test_the_status_shows_the_last_cycle_that_had_something_to_forecast(client):
    post(client, record(), record("ppdb001"))
    wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 2)
    time.sleep(0.2)  # a few re-checks with nothing to do
    assert client.get("/status").json()["cycle"]["servers"] == 2


@pytest.mark.parametrize("kind", ["application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"])
def test_tables_say_what_the_json_says(client, kind):
    assert client.get("/api/v1/forecasts", headers={"accept": kind}).status_code == 204
    post(client, record("ppml0001", cpu_pct=60.0), record("ppdb002", cpu_pct=30.0))
    wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 2)
    query = {"metric": ["cpu_pct", "mem_pct"], "quantile": [0.1, 0.9], "horizon": ["15m", "1h"]}
    answer = client.get("/api/v1/forecasts", params=query, headers={"accept": kind})
    assert answer.headers["content-type"] == kind
    read = pq.read_table if "parquet" in kind else lambda source: pa.ipc.open_stream(source).read_all()
    rows = read(pa.BufferReader(answer.content)).to_pylist()
    said = {f["server_name"]: f for f in client.get("/api/v1/forecasts", params=query).json()["forecasts"]}
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        forecast = said[row["server_name"]]
        place = forecast["steps"].index(row["step"])
        assert row["timestamp"].strftime("%Y-%m-%dT%H:%M:%SZ") == forecast["timestamps"][place]
        assert row["origin"].strftime("%Y-%m-%dT%H:%M:%SZ") == forecast["origin"]
        assert row["q0.9"] == forecast["metrics"][row["metric"]]["q0.9"][place]
        assert "q0.5" not in row
