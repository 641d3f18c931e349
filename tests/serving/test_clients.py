"""Tokens with rights: what each client may do."""

import hashlib

import pytest

from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.serving.clients import load_clients
from tests.serving.daemon_client import ADMIN, TOKEN, complete_start, daemon, forecast_of, post, record

AGENT, READER, OPERATOR = "0123456789abcdef-agent", "0123456789abcdef-reader", "0123456789abcdef-operator"
FILE = f"""
[clients.agents-berlin]
token = "{AGENT}"
servers = ['ber-.*']
rights = ["write"]

[clients.reader]
sha256 = "{hashlib.sha256(READER.encode()).hexdigest()}"
rights = ["read"]

[clients.operator]
token = "{OPERATOR}"
rights = ["read", "write", "correct", "profile", "admin"]
"""


@pytest.fixture
def clients(tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text(FILE)
    return load_clients(path)


@pytest.fixture
def restricted(tmp_path, clients):
    with daemon(tmp_path, clients=clients) as client:
        yield client


def as_client(client, token):
    client.headers["authorization"] = f"Bearer {token}"
    return client


def test_a_token_is_limited_to_its_rights(restricted):
    assert restricted.get("/status").status_code == 401
    assert as_client(restricted, READER).get("/status").status_code == 200
    refused = post(as_client(restricted, READER), record("ber-1"))
    assert refused.status_code == 403
    assert refused.json()["detail"] == "the token of reader has no right write; add it in the tokens file"
    assert as_client(restricted, AGENT).get("/status").status_code == 403
    assert as_client(restricted, AGENT).delete("/api/v1/servers/ber-1").status_code == 403


def test_an_agent_writes_the_servers_of_its_patterns_alone(restricted):
    answer = post(as_client(restricted, AGENT), record("ber-1"), record("ham-1"), record("xber-1")).json()
    assert answer["accepted"] == 1
    assert [(each["index"], each["field"]) for each in answer["rejected"]] == [(1, "server_name"), (2, "server_name")]
    assert "agents-berlin may not write this server" in answer["rejected"][0]["reason"]


def test_a_profile_changes_only_with_the_right_and_the_rest_of_the_record_is_accepted(restricted):
    post(as_client(restricted, OPERATOR), record("ber-1") | {"profile": "database"})
    later = record("ber-1", complete_start() + 1, cpu_pct=5.0)
    answer = post(as_client(restricted, AGENT), later | {"profile": "web_api"}).json()
    assert answer["accepted"] == 1
    (notice,) = answer["notices"]
    right = "the token of agents-berlin has no right profile; give one with it in the tokens file (tokens)"
    assert notice == f"profile of ber-1: stays database, not web_api; {right}"
    as_client(restricted, OPERATOR)
    assert forecast_of(restricted, "ber-1")["profile"] == "database"
    post(restricted, record("ber-1") | {"profile": "web_api"})
    (server,) = restricted.get("/api/v1/servers").json()["servers"]
    assert server["profile"] == "web_api"
    assert server["sources"] == ["operator", "agents-berlin"]
    page = restricted.get("/metrics").text
    assert 'fleet_profile_changes_total{result="accepted"} 1' in page
    assert 'fleet_profile_changes_total{result="refused"} 1' in page
    assert "fleet_servers_with_two_sources 1" in page


def test_stored_samples_are_replaced_only_with_the_right(restricted, caplog):
    """One that repeats or completes a stored one is accepted; of a refused one nothing is stored."""
    post(as_client(restricted, OPERATOR), record("ber-1", cpu_pct=50.0), record("ber-2", cpu_pct=50.0))
    sent = [record("ham-1"), record("ber-1", cpu_pct=5.0, mem_pct=6.0), record("ber-2", cpu_pct=50.0, mem_pct=7.0)]
    answer = post(as_client(restricted, AGENT), *sent).json()
    reason = "50.0 is stored for this server and time; the token of agents-berlin has no right correct; give one with"
    assert answer["accepted"] == 1
    assert [(each["index"], each["field"], each["value"]) for each in answer["rejected"][1:]] == [(1, "cpu_pct", 5.0)]
    assert answer["rejected"][1]["reason"].startswith(reason)
    assert "stored samples not corrected" in caplog.text
    as_client(restricted, OPERATOR)
    assert raw(restricted, "ber-1") == (50.0, None)
    assert raw(restricted, "ber-2") == (50.0, 7.0)
    assert post(restricted, record("ber-1", cpu_pct=5.0)).json() == {"accepted": 1, "rejected": []}
    assert raw(restricted, "ber-1") == (5.0, None)
    assert "stored samples corrected" in caplog.text
    page = restricted.get("/metrics").text
    for result in ("accepted", "refused"):
        assert f'fleet_corrections_total{{result="{result}"}} 1' in page
    assert 'fleet_rejected_records_total{field="cpu_pct"} 1' in page


def raw(client, name):
    (cpu,), (mem,) = (
        client.get(f"/api/v1/servers/{name}/history?raw=true&hours=1").json()["metrics"][metric]
        for metric in ("cpu_pct", "mem_pct")
    )
    return cpu, mem


def test_the_token_of_all_clients_adds_samples_and_changes_none(tmp_path):
    with daemon(tmp_path, token=TOKEN) as client:
        as_client(client, TOKEN.decode())
        assert post(client, record("a", cpu_pct=50.0) | {"profile": "database"}).json()["accepted"] == 1
        forged = [record("a", cpu_pct=5.0), record("a", complete_start() + 1, cpu_pct=50.0)]
        answer = post(client, *(each | {"profile": "web_api"} for each in forged)).json()
        assert [each["index"] for each in answer["rejected"]] == [0]
        (notice,) = answer["notices"]
        assert notice.startswith("profile of a: stays database, not web_api; the token of all clients has no right")
        assert forecast_of(client, "a")["profile"] == "database"


def test_an_administrator_deletes_a_server(restricted):
    post(as_client(restricted, OPERATOR), record("ber-1"))
    deleted = restricted.request("DELETE", "/api/v1/servers/ber-1", headers={"content-type": "application/json"})
    assert deleted.json() == {"deleted": "ber-1"}
    again = restricted.request("DELETE", "/api/v1/servers/ber-1", headers={"content-type": "application/json"})
    assert again.status_code == 404
    assert restricted.get("/api/v1/servers").json()["servers"] == []


def test_requests_of_an_administrator_need_no_content_type_without_a_body(restricted):
    post(as_client(restricted, OPERATOR), record("ber-1"))
    assert restricted.delete("/api/v1/servers/ber-1").json() == {"deleted": "ber-1"}
    assert restricted.post("/api/v1/reload").status_code == 200
    for body in ({"content": b"{}"}, {"content": iter([b"{}"])}, {"headers": {"content-type": "text/plain"}}):
        assert restricted.post("/api/v1/reload", **body).status_code == 415
    assert restricted.post("/api/v1/metrics").status_code == 415


def test_without_an_admin_token_the_remedy_fits_the_request(client):
    assert client.delete("/api/v1/servers/ber-1").json()["detail"].endswith("start with --admin-token-file")
    assert client.post("/api/v1/reload").json()["detail"].endswith("start with --admin-token-file, or send SIGHUP")


def test_the_single_tokens_continue_to_work_with_a_tokens_file(tmp_path, clients):
    with daemon(tmp_path, token=TOKEN, admin_token=ADMIN, clients=clients) as client:
        assert post(as_client(client, TOKEN.decode()), record("any")).json()["accepted"] == 1
        assert client.post("/api/v1/reload", json={}).status_code == 401
        assert as_client(client, ADMIN.decode()).post("/api/v1/reload", json={}).status_code == 200
        assert as_client(client, OPERATOR).post("/api/v1/reload", json={}).status_code == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[clients.a]\ntoken = "short"\nrights = []\n', "line 2: token: use text of at least 16 random bytes"),
        ('[clients.a]\nrights = ["read"]\n', "give token or sha256, one of the two"),
        (f'[clients.a]\ntoken = "{AGENT}"\nrights = ["own"]\n', "line 3: clients.a.rights.0 is 'own'"),
        (f'[clients.a]\ntoken = "{AGENT}"\nrights = []\nservers = ["("]\n', "line 4: pattern .* is not a regular"),
        (
            f'[clients.a]\ntoken = "{AGENT}"\nrights = []\n[clients.b]\ntoken = "{AGENT}"\nrights = []\n',
            "two clients have the same token",
        ),
    ],
)
def test_a_bad_tokens_file_is_refused_with_the_reason_and_without_the_token(tmp_path, text, message):
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(TomlFileError, match=message) as refused:
        load_clients(path)
    assert AGENT not in str(refused.value)
    assert "short" not in str(refused.value)
