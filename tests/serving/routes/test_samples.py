"""Storing samples: what is accepted, rejected and refused."""

import json
import time

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data_contract import METRICS
from tests.serving.daemon_client import daemon, forecast_of, post, record, wait_for


def test_a_bad_record_is_rejected_by_field_and_the_good_ones_are_stored(client):
    answer = post(client, record(cpu_pct=180.0), record("ppml0002"), {"server_name": "x\ny"}, 7).json()
    assert answer["accepted"] == 1
    assert [(r["index"], r["field"], r["value"]) for r in answer["rejected"]] == [
        (0, "cpu_pct", 180.0),
        (2, "server_name", "x\ny"),
        (3, "record", 7),
    ]


@pytest.mark.parametrize("value", [1e300, 4e38, -1.0, True, "5", [5], {}])
def test_a_value_that_cannot_be_a_measurement_is_rejected(client, value):
    answer = post(client, record(disk_io_mb_s=value)).json()
    assert [rejection["field"] for rejection in answer["rejected"]] == ["disk_io_mb_s"]


def test_fields_outside_the_contract_are_listed(client):
    assert post(client, record() | {"cpu": 5}).json()["ignored_fields"] == ["cpu"]


def test_fields_beside_the_records_are_listed(client):
    answer = client.post("/api/v1/metrics", json={"records": [record()], "profile": "database"}).json()
    assert (answer["accepted"], answer["ignored_fields"]) == (1, ["profile"])


def test_the_aliases_respond_as_the_versioned_paths(client):
    assert client.post("/feed/data", json={"records": [record()]}).json()["accepted"] == 1
    forecast_of(client)
    assert client.get("/predictions/current").json()["forecasts"][0]["server_name"] == "ppml0001"


HOSTILE = [
    b"",
    b"null",
    b"1",
    b"{}",
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
def test_a_body_without_a_list_of_records_is_400(client, path, body):
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


def test_too_many_records_are_refused(tmp_path):
    with daemon(tmp_path, max_records=2) as client:
        assert post(client, record(), record(), record()).status_code == 400


@pytest.mark.parametrize("path", ["/api/v1/metrics", "/feed/data", "/api/v1/forecast"])
@pytest.mark.parametrize("filler", [b"{},", b"[],", b'{"a":[[]]},'])
def test_a_body_of_far_too_many_objects_or_lists_is_refused_before_it_is_parsed(tmp_path, monkeypatch, path, filler):
    def parse(_body):
        raise AssertionError("parsed")

    monkeypatch.setattr("fleet_forecast.serving.ingest.bodies.parse_json", parse)
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


def test_more_servers_than_allowed_are_rejected_by_name(tmp_path):
    with daemon(tmp_path, max_servers=2) as client:
        answer = post(client, *(record(f"ppml{n:04d}") for n in range(3))).json()
        assert answer["accepted"] == 2
        assert answer["rejected"][0]["field"] == "server_name"
        assert post(client, record("ppml0001")).json()["accepted"] == 1


def test_timestamps_outside_the_bounds_are_rejected(client):
    answers = post(client, record(seconds=time.time() + 700), record(seconds=time.time() - 193 * 3600), record()).json()
    assert answers["accepted"] == 1
    assert [r["reason"].split(";")[0] for r in answers["rejected"]] == ["too far ahead", "too old"]
