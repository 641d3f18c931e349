"""Access to every route; names and values that are paths, SQL, labels or HTML."""

import itertools
import re
from urllib.parse import quote

import pytest
from starlette.websockets import WebSocketDisconnect

from fleet_forecast.contract.labels import is_server_name
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.app import TOPICS
from fleet_forecast.serving.dashboard import FILES
from fleet_forecast.serving.http.access import ADMIN_PATHS, ADMIN_POST_PATHS, SHARD_PATHS
from tests.serving.daemon_client import ADMIN, SHARD, TOKEN, complete_start, daemon, post, record, wait_for

PROBES = {"/healthz", "/readyz", "/-/healthy", "/-/ready"}
SENT = {
    "nothing": None,
    "a wrong token": b"Bearer 0123456789abcdef-clienT",
    "no ASCII": "Bearer é".encode(),
    "another scheme": b"Basic " + TOKEN,
    "the token": b"Bearer " + TOKEN,
    "the admin token": b"Bearer " + ADMIN,
    "the token of shards": b"Bearer " + SHARD,
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with daemon(tmp_path_factory.mktemp("guarded"), token=TOKEN, admin_token=ADMIN, shard_token=SHARD) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        yield client


def routes(client):
    """(method, path) of every route, also of those that are not in the OpenAPI document."""
    declared = [*client.app.routes, *(route for topic in TOPICS for route in topic.router.routes)]
    found = {(method, route.path) for route in declared for method in getattr(route, "methods", None) or ()}
    documented = client.get("/openapi.json", headers={"authorization": SENT["the token"]}).json()["paths"]
    found |= {(method.upper(), path) for path, operations in documented.items() for method in operations}
    concrete = {(method, re.sub(r"\{name(:path)?\}", "ppml0001", path)) for method, path in found}
    return sorted(concrete - {("GET", "/api/v1/events"), ("HEAD", "/api/v1/events")})  # a stream; tried separately


def required_token(method, path):
    if path in PROBES | set(FILES):
        return None
    if path.startswith(SHARD_PATHS):
        return "the token of shards"
    administers = path in ADMIN_PATHS or method == "DELETE" or (method == "POST" and path in ADMIN_POST_PATHS)
    return "the admin token" if administers else "the token"


def test_every_route_requires_its_token_and_no_other(guarded):
    tried = routes(guarded)
    expected = {"/api/v1/metrics", "/api/v1/reload", "/metrics", "/feed/data", "/predictions/current", "/openapi.json"}
    assert {path for _, path in tried} >= expected
    for (method, path), (sent, header) in itertools.product(tried, SENT.items()):
        headers = {"content-type": "application/json"} | ({} if header is None else {"authorization": header})
        status = guarded.request(method, path, headers=headers).status_code
        allowed = required_token(method, path) in (None, sent)
        assert (status == 401) != allowed, (method, path, sent, status)
        assert status < 500, (method, path, sent, status)


METHODS_WITHOUT_ROUTE = [("PUT", "/api/v1/metrics"), ("DELETE", "/api/v1/metrics"), ("PATCH", "/")]


@pytest.mark.parametrize(("method", "path"), METHODS_WITHOUT_ROUTE)
def test_a_method_that_a_path_does_not_have_is_named_as_such(guarded, method, path):
    answer = guarded.request(method, path, headers=TOKEN_HEADER)
    assert (answer.status_code, "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]) == (405, True)


def refused_socket(client, headers):
    """The close code of a refused WebSocket."""
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect("/ws/predictions", headers=headers):
        pass
    return refused.value.code


def test_the_event_stream_and_the_websocket_require_the_token(guarded):
    assert guarded.get("/api/v1/events").status_code == 401
    for header in (None, SENT["a wrong token"]):
        headers = {} if header is None else {"authorization": header.decode()}
        assert refused_socket(guarded, headers) == 1008
    client, admin = ({"authorization": "Bearer " + token.decode()} for token in (TOKEN, ADMIN))
    with guarded.websocket_connect("/ws/predictions", headers=client) as socket:
        guarded.post("/api/v1/reload", headers=admin | {"content-type": "application/json"})
        events = (socket.receive_text() for _ in range(10))  # a forecast of other tests' servers may end before
        assert any('"event":"model"' in event for event in events)


def test_no_response_contains_a_token(guarded):
    for method, path in routes(guarded):
        answer = guarded.request(method, path, headers={"authorization": SENT["the token"]})
        assert TOKEN not in answer.content
        assert ADMIN not in answer.content


TOKEN_HEADER = {"authorization": "Bearer " + TOKEN.decode()}


def test_a_page_of_another_origin_can_neither_write_nor_read_nor_receive_events(guarded):
    token = TOKEN_HEADER | {"origin": "https://evil.example"}
    forms = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")  # what a form may send unasked
    for kind in forms:
        assert guarded.post("/api/v1/metrics", headers=token | {"content-type": kind}).status_code == 403
        assert guarded.post("/api/v1/metrics", headers=TOKEN_HEADER | {"content-type": kind}).status_code == 415
    answer = guarded.get("/api/v1/forecasts", headers=token)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    preflight = guarded.options("/api/v1/metrics", headers=token | asked)
    assert preflight.status_code == 403
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    assert refused_socket(guarded, token) == 1008


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://testserver:3000", "null", "https://testserver.evil"]
)
def test_a_page_of_another_port_or_without_an_origin_is_another_origin(guarded, origin):
    headers = TOKEN_HEADER | {"host": "localhost:8000", "origin": origin}
    named = "testserver" in origin and "evil" not in origin  # --allowed-hosts names it: a proxy may use another port
    assert (guarded.get("/status", headers=headers).status_code == 403) != named
    if not named:
        assert refused_socket(guarded, headers) == 1008


def test_pages_of_the_daemon_itself_and_links_to_it_are_answered(guarded):
    own = TOKEN_HEADER | {"host": "localhost:8000", "origin": "http://localhost:8000", "sec-fetch-site": "same-origin"}
    assert guarded.get("/status", headers=own).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert guarded.get("/", headers=link).status_code == 200
    for changed in ({"sec-fetch-mode": "no-cors"}, {"sec-fetch-dest": "iframe"}, {"sec-fetch-site": "same-site"}):
        allowed = "sec-fetch-site" in changed
        assert (guarded.get("/", headers=link | changed).status_code == 200) == allowed


@pytest.mark.parametrize("name", ["host", "authorization"])
def test_a_repeated_header_that_a_check_reads_is_refused(guarded, name):
    value = {"host": "testserver", "authorization": "Bearer " + TOKEN.decode()}[name]
    answer = guarded.get(
        "/status", headers=[("authorization", "Bearer " + TOKEN.decode()), (name, value), (name, value)]
    )
    assert (answer.status_code, name in answer.json()["detail"]) == (400, True)


def test_wrong_tokens_are_counted_and_logged_with_the_address_and_without_the_token(tmp_path, caplog):
    with daemon(tmp_path, token=TOKEN) as client:
        assert client.get("/status").status_code == 401
        assert client.get("/status", headers={"authorization": "Bearer secret-of-someone"}).status_code == 401
        page = client.get("/metrics", headers=TOKEN_HEADER).text
    assert "fleet_wrong_tokens_total 1\n" in page
    assert 'fleet_requests_refused_total{status="401"} 2\n' in page
    logged = [record for record in caplog.records if record.getMessage() == "wrong token"]
    assert [(record.client, record.path) for record in logged] == [("testclient", "/status")]
    assert "secret-of-someone" not in caplog.text


def test_probes_pages_and_metrics_support_head(guarded):
    for path in (*PROBES, *FILES):
        assert guarded.head(path).status_code == 200
    for path in ("/metrics", "/status"):
        assert guarded.head(path).status_code == 401
        assert guarded.head(path, headers=TOKEN_HEADER).status_code == 200


def test_head_is_possible_wherever_get_is_and_allow_is_true(guarded):
    for path in ("/", "/openapi.json", "/api/v1/servers", "/api/v1/forecasts", "/api/v1/servers/nobody/history"):
        got, head = (guarded.request(each, path, headers=TOKEN_HEADER) for each in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (got.status_code, b""), path
    assert guarded.head("/api/v1/events", headers=TOKEN_HEADER).headers["allow"] == "GET"
    for path, allowed in (
        ("/healthz", "GET, HEAD"),
        ("/api/v1/silences", "GET, HEAD, POST"),
        ("/api/v1/reload", "POST"),
    ):
        token = SENT["the admin token" if path == "/api/v1/reload" else "the token"]
        refused = guarded.delete(path, headers={"authorization": token})
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed), path


HOSTILE = (
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "....//....//etc/passwd",
    "C:\\windows\\win.ini",
    "\x00",
    "a\r\nSet-Cookie: x=1",
    "' OR 1=1 --",
    "a'; DROP TABLE samples; --",
    '"} 1\nforged_metric{x="',
    "<script>alert(1)</script>",
    "{{7*7}}${7*7}",
    "$(touch /tmp/x)",
    "é",
    "a" * 254,
)


@pytest.fixture(scope="module")
def moments():
    """Two fixed times: the last complete step, and the one five steps earlier."""
    return complete_start(), complete_start(5)


@pytest.fixture(scope="module")
def open_daemon(tmp_path_factory, moments):
    with daemon(tmp_path_factory.mktemp("open")) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        post(client, record("ppml0001", moments[0]))
        wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 1)
        yield client


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_in_a_path_or_query_matches_nothing(open_daemon, name):
    for route in ("forecast", "history"):
        for written in (quote(name, safe=""), quote(quote(name, safe=""), safe="")):
            assert open_daemon.get(f"/api/v1/servers/{written}/{route}").status_code == 404
    assert open_daemon.get("/" + quote(name, safe="/.")).status_code in (200, 404)
    for parameter in ("server", "profile"):
        assert open_daemon.get("/api/v1/forecasts", params={parameter: name}).json()["forecasts"] == []
    assert open_daemon.get("/api/v1/forecasts", params={"after": name}).status_code == 200
    for parameter in ("metric", "quantile", "horizon", "limit"):
        assert open_daemon.get("/api/v1/forecasts", params={parameter: name}).status_code == 422
    assert open_daemon.get("/api/v1/alerts", params={"server": name}).json() == {"alerts": [], "next": None}


def test_no_path_returns_a_file_of_the_machine(open_daemon):
    climbing = ("/../README.md", "/%2e%2e/README.md", "/dashboard/../../README.md", "/app.js/../../history.py", "//etc")
    for path in climbing:
        answer = open_daemon.get(path)
        assert answer.status_code in (200, 404), path
        assert b"root:" not in answer.content
        assert b"import" not in answer.content[:200]


@pytest.mark.parametrize("name", [name for name in HOSTILE if not is_server_name(name)])
def test_a_name_that_is_not_printable_or_too_long_is_rejected_by_its_field_and_not_stored(open_daemon, name):
    answer = post(open_daemon, record(name)).json()
    assert (answer["accepted"], answer["rejected"][0]["field"]) == (0, "server_name")
    assert [server["server_name"] for server in open_daemon.get("/api/v1/servers").json()["servers"]] == ["ppml0001"]
    assert "forged_metric" not in open_daemon.get("/metrics").text
    reasons = {each["name"]: each["reason"] for each in open_daemon.get("/status").json()["left_out"]}
    assert "printable" in reasons[name[:100] + "…" * (len(name) > 100)]


def test_a_printable_name_is_stored_and_shown_as_it_is_and_does_nothing_else(tmp_path):
    names = sorted([*(name for name in HOSTILE if is_server_name(name)), 'quo"ted\\', "namespace/pod", "a b"])
    with daemon(tmp_path) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert post(client, *(record(name) for name in names)).json()["accepted"] == len(names)
        wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == len(names))
        assert [server["server_name"] for server in client.get("/api/v1/servers").json()["servers"]] == names
        for name in names:
            for route in ("forecast", "history") if "%" not in name else ():  # the test client decodes paths twice
                answer = client.get(f"/api/v1/servers/{quote(name, safe='')}/{route}")
                assert (answer.status_code, answer.json()["server_name"]) == (200, name)
        lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("fleet_forecast_cpu")]
    shown = {re.fullmatch(r'\w+\{server="((?:[^"\\]|\\.)*)",.*\} \S+', line)[1] for line in lines}
    assert {name.replace('\\"', '"').replace("\\\\", "\\") for name in shown} == set(names)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_value_in_any_field_is_rejected_or_ignored_and_not_stored(open_daemon, moments, text):
    for field in ("timestamp", "profile"):
        answer = post(open_daemon, record("ppml0001") | {field: text}).json()
        assert [rejection["field"] for rejection in answer["rejected"]] == [field]
    for field in ("cpu_pct", "state"):
        answer = post(open_daemon, record("ppml0001", moments[1]) | {field: text}).json()
        assert [cell["field"] for cell in answer.get("left_out", answer["rejected"])] == [field]
    answer = post(open_daemon, record("ppml0001", moments[1]) | {text: text}).json()
    assert answer["ignored_fields"] == [text[:100]]
    history = open_daemon.get("/api/v1/servers/ppml0001/history", params={"raw": True}).json()
    assert set(history["timestamps"]) == set(map(iso, moments))
    assert set(history["states"]) == {None}
