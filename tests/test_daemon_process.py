"""The running daemon under hostile and unlucky circumstances: slow clients, floods, signals, damaged models."""

import concurrent.futures
import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from starlette.testclient import TestClient

from serving.app import create_app
from serving.settings import Settings
from tests.fake_daemon import FakeDaemon
from tests.test_app import complete_start, iso, record, wait_for

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("daemon")
    with FakeDaemon(folder, "--header-seconds", 2, "--body-seconds", 2) as started:
        yield started


def connect(daemon, text=b""):
    client = socket.create_connection(("127.0.0.1", daemon.port), timeout=10)
    client.sendall(text)
    return client


def closed_within(client, seconds):
    client.settimeout(seconds)
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def test_200_slow_clients_starve_nobody_and_are_let_go(running):
    headers = b"POST /api/v1/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    slow = [connect(running, headers) for _ in range(100)]  # headers that never end
    slow += [connect(running, headers + b"Content-Length: 100\r\n\r\n{") for _ in range(100)]  # a body that never ends
    taken = []
    for _ in range(20):
        started = time.monotonic()
        assert httpx.get(running.url + "/healthz").status_code == 200
        taken.append(time.monotonic() - started)
    assert max(taken) < 2.0
    assert all(closed_within(client, 8.0) for client in slow)
    for client in slow:
        client.close()


def test_connections_that_say_nothing_are_closed(running):
    with connect(running) as client:
        assert closed_within(client, 8.0)


def test_endless_headers_are_cut_off(running):
    with connect(running, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n") as client:
        try:
            for _ in range(200):
                client.sendall(b"X-Filler: " + b"a" * 1000 + b"\r\n")
        except OSError:
            pass
        assert closed_within(client, 5.0)
    assert httpx.get(running.url + "/healthz").status_code == 200


@pytest.mark.parametrize(
    "request_line",
    [b"GET /%ff%00/../../etc/passwd HTTP/1.1", b"GET \xff HTTP/1.1", b"BREW / HTTP/1.1", b"GET http:// HTTP/1.1"],
)
def test_odd_request_lines_are_no_server_errors(running, request_line):
    with connect(running, request_line + b"\r\nHost: 127.0.0.1\r\n\r\n") as client:
        assert client.recv(100).split(b" ")[1][:1] == b"4"


def test_a_100_mb_body_is_refused_without_taking_memory(running):
    before = running.memory_mib()
    size = 100 * 1024 * 1024
    for text in (f"Content-Length: {size}\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n"):
        head = f"POST /api/v1/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{text}"
        with connect(running, head.encode()) as client:
            piece = b" " * 65536
            try:
                for _ in range(size // len(piece)):
                    client.sendall(piece if "Length" in text else b"10000\r\n" + piece + b"\r\n")
            except OSError:
                pass
            else:
                raise AssertionError("the whole body was taken")
    assert running.memory_mib() - before < 16 + 8  # the limit itself is 8 MiB


def test_a_name_from_outside_cannot_forge_a_log_line(running):
    name = 'x"}\n{"event": "forged"'
    body = json.dumps({"records": [record() | {"server_name": name}]}).encode()
    assert httpx.post(running.url + "/api/v1/metrics", content=body, headers=JSON).json()["accepted"] == 0
    for line in running.log.read_text().splitlines():
        assert json.loads(line)["event"] != "forged"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_during_a_forecast_and_an_open_stream(tmp_path, number):
    request = b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with FakeDaemon(tmp_path, seconds_per_call=1.0) as started, connect(started, request) as stream:
        assert b"200 OK" in stream.recv(4096)
        body = json.dumps({"records": [record()]})
        assert httpx.post(started.url + "/api/v1/metrics", content=body, headers=JSON).status_code == 200
        time.sleep(0.3)  # the forecast of the new server is under way
        code, seconds = started.stop(number)
        assert (code, seconds < 10) == (0, True)
        assert closed_within(stream, 5.0)


def test_the_server_sent_stream_tells_of_the_cycle(tmp_path):
    with FakeDaemon(tmp_path) as started, httpx.stream("GET", started.url + "/api/v1/events", timeout=20) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 3000"
        httpx.post(started.url + "/api/v1/metrics", json={"records": [record()]})
        assert next(line for line in lines if line.startswith("event:")) == "event: cycle"


def test_ten_times_the_load_is_503_with_retry_after_and_probes_answer(tmp_path):
    body = json.dumps({"records": [record(f"ppml{n:04d}") for n in range(1000)]}).encode()
    with FakeDaemon(tmp_path, "--max-waiting-records", 1000) as started, httpx.Client(timeout=30) as client:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            posts = [
                pool.submit(client.post, started.url + "/api/v1/metrics", content=body, headers=JSON)
                for _ in range(100)
            ]
            taken = []
            while not all(post.done() for post in posts):
                begun = time.monotonic()
                assert httpx.get(started.url + "/healthz").status_code == 200
                taken.append(time.monotonic() - begun)
        answers = [post.result() for post in posts]
        assert {answer.status_code for answer in answers} == {200, 503}
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
        assert max(taken) < 2.0
        accepted = sum(answer.json()["accepted"] for answer in answers if answer.status_code == 200)
        assert client.get(started.url + "/status").json()["records"]["accepted"] == accepted


def test_a_kill_and_a_restart_bring_the_forecasts_back(tmp_path):
    with FakeDaemon(tmp_path) as started:
        post = httpx.post(started.url + "/api/v1/metrics", json={"records": [record(cpu_pct=42.0)]})
        assert post.json()["accepted"] == 1
        started.stop(signal.SIGKILL)
        started.start()
        url = started.url + "/api/v1/servers/ppml0001/forecast"
        got = wait_for(lambda: (answer := httpx.get(url)).status_code == 200 and answer.json())
        assert got["metrics"]["cpu_pct"]["current"] == 42.0
        assert got["origin"] <= iso(complete_start())


def test_an_address_in_use_and_a_locked_history_are_named(tmp_path):
    with FakeDaemon(tmp_path) as started:
        again = subprocess.run(
            started.command,
            cwd=Path(__file__).parent.parent,
            env=started.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert again.returncode == 1
        assert "another process uses it" in again.stderr


# --- damaged models -------------------------------------------------------------------------------------------------


def truncated(model):
    (model / "model.onnx").write_bytes((model / "model.onnx").read_bytes()[:1000])


def bit_flipped(model):
    content = bytearray((model / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (model / "model.onnx").write_bytes(content)


def half_written(model):
    (model / "manifest.json").unlink()


def other_version(model):
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace('"contract_version": "1.0.0"', '"contract_version": "9.0.0"'))


def with_a_pickle(model):
    (model / "extra.pkl").write_bytes(b"cos\nsystem\n(S'touch /nowhere'\ntR.")


@pytest.mark.parametrize("damage", [truncated, bit_flipped, half_written, other_version, with_a_pickle])
def test_a_bad_model_never_replaces_a_good_one(tmp_path, tiny_model_dir, damage):
    good, bad, link = tmp_path / "good", tmp_path / "bad", tmp_path / "current"
    shutil.copytree(tiny_model_dir.resolve(), good)
    shutil.copytree(good, bad)
    damage(bad)
    link.symlink_to("good")
    token = b"0123456789abcdef"
    settings = Settings(model=link, history=tmp_path / "h.sqlite", allowed_hosts=("testserver",))
    with TestClient(create_app(settings, admin_token=token)) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200, 30)
        model = client.get("/api/v1/model").json()["model"]
        (tmp_path / "next").symlink_to("bad")
        (tmp_path / "next").rename(link)
        answer = client.post("/api/v1/reload", headers={**JSON, "authorization": "Bearer " + token.decode()})
        assert answer.status_code == 409
        assert answer.json()["problem"]
        assert client.get("/readyz").status_code == 200
        assert client.get("/api/v1/model").json()["model"] == model
        assert client.post("/api/v1/forecast", json={"records": [record()]}).status_code == 200


def test_no_module_of_the_daemon_can_unpickle():
    for path in [*Path("serving").glob("*.py"), *Path("forecasting").glob("*.py"), Path("tft_inference.py")]:
        text = path.read_text()
        for banned in ("import pickle", "torch.load(", "joblib", "allow_pickle=True", "cloudpickle", "eval(", "exec("):
            assert banned not in text.replace(".eval(", ""), (path, banned)


# --- the OpenAPI document -------------------------------------------------------------------------------------------


def check_declared(operation):
    declared = set(operation.definition.raw["responses"])

    @hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case):
        response = case.call()
        assert str(response.status_code) in declared, (case.method, case.path, response.status_code, response.text)
        assert response.status_code == 503 or response.status_code < 500

    check()


def test_nothing_the_openapi_document_allows_is_a_server_error_or_undeclared(running):
    schema = schemathesis.openapi.from_url(running.url + "/openapi.json")
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/api/v1/events":  # it never ends
            continue
        check_declared(operation)
        tried.add(operation.path)
    assert {"/api/v1/metrics", "/api/v1/forecast", "/api/v1/forecasts", "/api/v1/servers/{name}/history"} <= tried
