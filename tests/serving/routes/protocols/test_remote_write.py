"""Remote write over HTTP: statuses, headers, rights, counts, hostile bodies."""

import math
import time

import cramjam
import pytest

from fleet_forecast.serving.clients import Client, Right, digest_of
from fleet_forecast.serving.storage.errors import HistoryBusyError
from fleet_forecast.sources.protocols.messages import V1, V2
from tests.reliability.mutations import mutations
from tests.serving.daemon_client import TOKEN, daemon, wait_for
from tests.sources.protocols.write_bodies import fleet_series, write_body

HEADERS = {"content-type": "application/x-protobuf", "content-encoding": "snappy"}
WRITTEN = "x-prometheus-remote-write-{}-written"
MUTATIONS = 2_000


def now_ms():
    return int(time.time() * 1000)


def send(client, *series, message=V1, **headers):
    kind = HEADERS | ({"content-type": f"application/x-protobuf;proto={message}"} if message == V2 else {})
    return client.post("/api/v1/write", content=write_body(series, message), headers=kind | headers)


def raw_samples(client, name="ppdb001"):
    metrics = client.get(f"/api/v1/servers/{name}/history", params={"raw": "true", "hours": 1}).json()["metrics"]
    return list(zip(metrics["cpu_pct"], metrics["mem_pct"], strict=True))


def counts(client, family):
    lines = client.get("/metrics").text.splitlines()
    return {line.split()[0].removeprefix(family): float(line.split()[1]) for line in lines if line.startswith(family)}


@pytest.mark.parametrize("message", [V1, V2])
def test_what_is_answered_with_204_is_stored(client, message):
    instant = now_ms()
    series = [fleet_series("cpu_pct", samples=[(instant, 31.5)]), fleet_series("mem_pct", samples=[(instant, 62.0)])]
    answer = send(client, *series, message=message)
    assert (answer.status_code, answer.content) == (204, b"")
    written = {kind: answer.headers.get(WRITTEN.format(kind)) for kind in ("samples", "histograms", "exemplars")}
    expected = ("2", "0", "0") if message == V2 else (None, None, None)
    assert tuple(written.values()) == expected
    assert raw_samples(client) == [(31.5, 62.0)]


def test_a_sample_that_cannot_be_accepted_is_400_and_the_others_are_stored(client):
    instant = now_ms()
    series = [
        fleet_series("cpu_pct", samples=[(instant, 180.0), (instant - 200 * 3_600_000, 5.0)]),
        fleet_series("mem_pct", samples=[(instant, 62.0)]),
        fleet_series("mem_pct", "no\nname", samples=[(instant, 62.0)]),
    ]
    answer = send(client, *series, message=V2)
    assert answer.status_code == 400
    assert answer.headers[WRITTEN.format("samples")] == "1"
    detail = answer.json()["detail"]
    assert detail.startswith("3 samples rejected, the others are stored: cpu_pct 180.0: cpu_pct of ppdb001 is a number")
    assert "timestamp" in detail
    assert "server_name no\nname" in detail
    assert raw_samples(client) == [(None, 62.0)]


def test_other_series_and_stale_markers_are_counted_and_no_error(client):
    instant = now_ms()
    other = ({"__name__": "node_load1", "instance": "a"}, [(instant, 1.0)])
    answer = send(client, other, fleet_series(samples=[(instant, math.nan), (instant - 1, 2.0)]), message=V2)
    assert (answer.status_code, answer.headers[WRITTEN.format("samples")]) == (204, "2")
    assert counts(client, "fleet_stored_samples_total")['{protocol="remote_write"}'] == 1
    assert counts(client, "fleet_samples_not_stored_total") == {
        '{protocol="remote_write",reason="not_measured"}': 1,
        '{protocol="remote_write",reason="other_name"}': 1,
    }
    assert client.get("/status").json()["left_out"] == [
        {"protocol": "remote_write", "name": "node_load1", "reason": "not a metric of the data contract"}
    ]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-type": "application/x-protobuf;proto=io.prometheus.write.v3.Request"}, 415),
        ({"content-type": f"application/x-protobuf;proto={V1}"}, 204),
        ({"content-type": "application/x-protobuf; proto="}, 415),
        ({"content-type": "application/x-protobuf;proto*0=a;proto*1=b;proto*=utf-8''%ff"}, 204),
        ({"content-type": f'application/x-protobuf; Proto="{V1}"; a'}, 204),
    ],
)
def test_the_content_type_chooses_the_message(client, headers, status):
    body = write_body([fleet_series(samples=[(now_ms(), 1.0)])])
    assert client.post("/api/v1/write", content=body, headers=HEADERS | headers).status_code == status


def test_a_busy_store_is_503_with_retry_after_and_counts_nothing(client, monkeypatch):
    def full(*_arguments):
        raise HistoryBusyError("5 records wait for the disk")

    monkeypatch.setattr(client.app.state.daemon.store, "append", full)
    answer = send(client, fleet_series(samples=[(now_ms(), 1.0)]), message=V2)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers[WRITTEN.format("samples")] == "0"
    assert counts(client, "fleet_stored_samples_total")['{protocol="remote_write"}'] == 0


def test_a_token_may_write_the_servers_of_its_patterns_only(tmp_path):
    from fleet_forecast.name_patterns import compile_pattern

    writer = Client("agents", frozenset({Right.WRITE}), (compile_pattern("(?:ber-.*)$"),))
    reader = Client("reader", frozenset({Right.READ}))
    clients = {digest_of(b"w" * 20): writer, digest_of(b"r" * 20): reader}
    with daemon(tmp_path, token=TOKEN, clients=clients) as client:
        series = [fleet_series(instance=name, samples=[(now_ms(), 1.0)]) for name in ("ber-1:9100", "par-1:9100")]
        assert send(client, *series).status_code == 401
        assert send(client, *series, authorization="Bearer " + "r" * 20).status_code == 403
        answer = send(client, *series, authorization="Bearer " + "w" * 20)
        assert answer.status_code == 400
        assert "the token of agents may not write this server" in answer.json()["detail"]
        assert list(client.app.state.daemon.store.servers) == ["ber-1"]


def test_the_server_label_is_a_setting(tmp_path):
    with daemon(tmp_path, server_label="host") as client:
        assert send(client, fleet_series(samples=[(now_ms(), 1.0)], host="h1")).status_code == 204
        assert list(client.app.state.daemon.store.servers) == ["h1"]


def test_mutated_requests_are_never_a_server_error(client):
    instant = now_ms()
    series = [
        fleet_series("cpu_pct", f"ppdb{n:03d}:9100", [(instant + n, 50.0 + n), (instant, math.nan)]) for n in range(3)
    ]
    seen = set()
    for message in (V1, V2):
        content = bytes(cramjam.snappy.decompress_raw(write_body(series, message)))
        headers = HEADERS | {"content-type": f"application/x-protobuf;proto={message}"}
        for number, mutated in enumerate(mutations([content], MUTATIONS // 2)):
            body = bytes(cramjam.snappy.compress_raw(mutated)) if number % 4 else write_body(series, message)[:-number]
            seen.add(client.post("/api/v1/write", content=body, headers=headers).status_code)
    assert seen == {204, 400}


def test_compressed_mutations_are_never_a_server_error(client):
    body = write_body([fleet_series(samples=[(now_ms(), 50.0)])] * 5)
    answers = {
        client.post("/api/v1/write", content=each, headers=HEADERS).status_code for each in mutations([body], 500)
    }
    assert answers <= {204, 400, 413}  # 413: the length in the header


def test_a_first_sample_is_enough_for_a_forecast(client):
    assert send(client, fleet_series(samples=[(now_ms(), 50.0)])).status_code == 204
    wait_for(lambda: client.get("/api/v1/servers/ppdb001/forecast").status_code == 200)
