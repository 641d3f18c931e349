"""The known servers, their profiles and their received samples."""

from fleet_forecast.iso_time import iso
from tests.serving.daemon_client import STEP, complete_start, forecast_of, post, record


def test_servers_and_profiles_list_the_known_servers(client):
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


def test_history_has_means_by_step_or_samples_as_received(client):
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


def test_a_history_is_read_for_one_server_and_in_parts(client, monkeypatch):
    monkeypatch.setattr("fleet_forecast.serving.routes.history.STEPS_PER_READ", 2)
    start = complete_start()
    post(client, *(record(seconds=start - ago * STEP, cpu_pct=float(ago)) for ago in range(7)))
    post(client, record("other", seconds=start))
    forecast_of(client, "other")
    store, pieces = client.app.state.daemon.store, []
    read = store.server_step_means
    monkeypatch.setattr(store, "server_step_means", lambda *asked: pieces.append(read(*asked)) or pieces[-1])
    monkeypatch.setattr(store, "server_sample_means", lambda *_: store._ask(dict))  # the means stored have to answer
    monkeypatch.setattr(store, "stored_step_means", None)  # the whole fleet's
    found = client.get("/api/v1/servers/ppml0001/history", params={"hours": 1}).json()
    assert found["timestamps"] == [iso(start - ago * STEP) for ago in range(6, -1, -1)]
    assert found["metrics"]["cpu_pct"] == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    assert max(len(piece.result()) for piece in pieces) == 2


def test_means_have_no_more_digits_than_they_are_stored_with(client):
    post(client, record(seconds=complete_start(), cpu_pct=41.3))
    answer = client.get("/api/v1/servers/ppml0001/history")
    assert answer.json()["metrics"]["cpu_pct"] == [41.3]  # not 41.29999923706055


def test_samples_as_received_come_in_pages(client):
    start = complete_start()
    post(client, *(record(seconds=start + ago, cpu_pct=float(ago)) for ago in range(5)))
    path, found, after = "/api/v1/servers/ppml0001/history", [], {}
    for size in (2, 2, 1):
        page = client.get(path, params={"raw": True, "limit": 2, **after}).json()
        assert len(page["timestamps"]) == size
        found += page["metrics"]["cpu_pct"]
        after = {"after": page["next"]}
    assert page["next"] is None
    assert found == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert client.get(path, params={"raw": True, "limit": 10_001}).status_code == 422
    assert client.get(path, params={"raw": True, "after": "yesterday"}).json()["detail"][0]["field"] == "after"
