"""Each record and each server is of exactly one shard: others' are refused by name, in every protocol."""

import pandas as pd
import pytest

from fleet_forecast.serving.access_tokens import AccessTokens
from fleet_forecast.serving.clients import Right
from fleet_forecast.serving.ingest.puller import of_shard
from fleet_forecast.serving.json_bytes import to_json
from fleet_forecast.shard import Shard
from fleet_forecast.sources.protocols.messages import V2
from tests.serving.daemon_client import daemon, post, record, wait_for
from tests.serving.routes.protocols import test_otlp, test_remote_write
from tests.serving.shards.scene import names_of
from tests.sources.protocols.otlp_bodies import add_host, request
from tests.sources.protocols.write_bodies import fleet_series

OWN, OTHER = names_of(1, 2, 2), names_of(2, 2, 2)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with daemon(tmp_path_factory.mktemp("shard"), shard="1/2") as running:
        wait_for(lambda: running.get("/readyz").status_code == 200)
        yield running


def test_a_mixed_batch_keeps_its_own_records_and_names_the_owner_of_the_others(client):
    answer = post(client, record(OWN[0]), record(OTHER[0]), record(OWN[1]))
    assert answer.status_code == 200
    assert answer.json()["accepted"] == 2
    (rejected,) = answer.json()["rejected"]
    assert (rejected["index"], rejected["field"], rejected["value"]) == (1, "wrong_shard", OTHER[0])
    assert "a server of shard 2/2, this is shard 1/2" in rejected["reason"]
    assert OTHER[0] not in client.app.state.daemon.store.servers


def test_lines_of_json_are_checked_alike(client):
    lines = "\n".join(to_json(record(name)).decode() for name in (OTHER[0], OWN[0]))
    answer = client.post("/api/v1/metrics", content=lines, headers={"content-type": "application/x-ndjson"}).json()
    assert (answer["accepted"], [each["index"] for each in answer["rejected"]]) == (1, [0])


def test_remote_write_stores_its_own_series_and_refuses_the_others(client):
    instant = test_remote_write.now_ms()
    series = [fleet_series("cpu_pct", f"{name}:9100", [(instant, 31.5)]) for name in (OWN[0], OTHER[0])]
    answer = test_remote_write.send(client, *series, message=V2)
    assert answer.status_code == 400
    assert "1 samples rejected, the others are stored: wrong_shard" in answer.json()["detail"]
    assert answer.headers[test_remote_write.WRITTEN.format("samples")] == "1"


def test_otlp_stores_its_own_hosts_and_refuses_the_others(client):
    made = request(OWN[0], test_otlp.memory())
    add_host(made, OTHER[0], test_otlp.memory())
    partial = test_otlp.partial_success(test_otlp.send(client, made))
    assert partial.rejected_data_points == 1
    assert "shard 2/2" in partial.error_message


def test_a_pull_keeps_its_own_servers_and_rejects_nothing():
    frame = pd.DataFrame({"server_name": [OWN[0], OTHER[0], OWN[1]], "cpu_pct": [1.0, 2.0, 3.0]})
    assert of_shard(frame, Shard(1, 2))["server_name"].tolist() == OWN
    assert of_shard(frame, None) is frame


def test_it_is_counted_as_such(client):
    post(client, record(OTHER[0]))
    page = client.get("/metrics").text
    assert 'fleet_rejected_records_total{field="wrong_shard"}' in page
    assert 'fleet_samples_not_stored_total{protocol="json",reason="wrong_shard"}' in page


def test_a_response_names_the_shard_that_made_it(client):
    assert client.get("/status").headers["x-fleet-shard"] == "1/2"


@pytest.mark.parametrize("path", ["forecast", "history", "peers"])
def test_a_request_for_another_shards_server_is_misdirected(client, path):
    url = f"/api/v1/servers/{OTHER[0]}/{path}"
    answer = client.get(url)
    assert answer.status_code == 421
    assert "shard 2/2" in answer.json()["detail"]
    assert "x-accel-redirect" not in answer.headers
    routed = client.get(url, headers={"X-Fleet-Route": "nginx"})
    assert (routed.status_code, routed.headers["x-accel-redirect"]) == (421, "@shard2")


def test_a_daemon_with_the_whole_fleet_takes_nothing_from_shards(client, tmp_path):
    body = {"records": [record(OWN[0])]}
    assert client.post("/api/v1/shard/samples", json=body, headers={"X-Fleet-Shard": "2/2"}).status_code == 409
    assert client.post("/api/v1/shard/samples", json=body, headers={"X-Fleet-Shard": "1/3"}).status_code == 409
    assert client.post("/api/v1/shard/samples", json=body, headers={"X-Fleet-Shard": "1/2"}).json()["accepted"] == 1
    with daemon(tmp_path) as whole:
        answer = whole.post("/api/v1/shard/samples", json=body, headers={"X-Fleet-Shard": "1/2"})
        assert answer.status_code == 409


def test_the_token_of_shards_opens_what_shards_ask_and_nothing_else(tmp_path):
    token = b"0123456789abcdef-shards"
    tokens = AccessTokens(b"0123456789abcdef-client", shard=token)
    assert tokens.owner(token, Right.SHARD) is not None
    assert tokens.owner(token, Right.READ) is None
    assert tokens.owner(b"0123456789abcdef-client", Right.SHARD) is None
    with daemon(tmp_path, shard="1/2", token=b"0123456789abcdef-client") as closed:
        headers = {"authorization": "Bearer 0123456789abcdef-client", "X-Fleet-Shard": "1/2"}
        answer = closed.post("/api/v1/shard/samples", json={"records": [record(OWN[0])]}, headers=headers)
        assert answer.status_code == 403
        assert "--shard-token-file" in answer.json()["detail"]
