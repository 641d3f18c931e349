"""The daemon as a process: malformed connections, its log, its start and its end. More in tests/reliability."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from fleet_forecast.iso_time import iso
from tests.reliability.hostile import closed_within, connect
from tests.serving.daemon_client import complete_start, record, wait_for
from tests.serving.fake_daemon import FakeDaemon

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("daemon")
    with FakeDaemon(folder, "--header-seconds", 2, "--body-seconds", 2) as started:
        yield started


def test_connections_without_a_request_are_closed(running):
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
def test_malformed_request_lines_are_client_errors(running, request_line):
    with connect(running, request_line + b"\r\nHost: 127.0.0.1\r\n\r\n") as client:
        assert client.recv(100).split(b" ")[1][:1] == b"4"


def test_a_server_name_cannot_forge_a_log_line(running):
    name = 'x"}\n{"event": "forged"'
    body = json.dumps({"records": [record() | {"server_name": name}]}).encode()
    assert httpx.post(running.url + "/api/v1/metrics", content=body, headers=JSON).json()["accepted"] == 0
    for line in running.log.read_text().splitlines():
        assert json.loads(line)["event"] != "forged"


def test_the_event_stream_has_an_event_for_each_cycle(tmp_path):
    with FakeDaemon(tmp_path) as started, httpx.stream("GET", started.url + "/api/v1/events", timeout=20) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 3000"
        httpx.post(started.url + "/api/v1/metrics", json={"records": [record()]})
        assert next(line for line in lines if line.startswith("event:")) == "event: cycle"


def test_forecasts_are_available_again_after_a_kill_and_a_restart(tmp_path):
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
            cwd=Path(__file__).parents[3],
            env=started.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert again.returncode == 1
        assert "another process uses it" in again.stderr
        assert "Traceback" not in again.stderr


def test_many_hangups_cause_few_loads_and_new_tokens_are_used(tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef-old")
    with FakeDaemon(tmp_path, "--token-file", token, seconds_per_load=0.2) as started:

        def status(text):
            return httpx.get(started.url + "/metrics", headers={"authorization": f"Bearer 0123456789abcdef-{text}"})

        assert (status("old").status_code, status("new").status_code) == (200, 401)
        token.write_text("0123456789abcdef-new")
        for _ in range(200):
            started.process.send_signal(signal.SIGHUP)
        wait_for(lambda: status("new").status_code == 200)
        assert status("old").status_code == 401
        time.sleep(1.0)
        loads = started.log.read_text().count('"model loaded"')
        assert 2 <= loads <= 5
        assert started.stop()[0] == 0


def test_nobody_reading_the_log_stops_neither_requests_nor_the_shutdown(tmp_path):
    with FakeDaemon(tmp_path) as started:
        started.stop()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writing, b"x" * 4096):
                pass
        os.set_blocking(writing, True)
        started.log = Path(f"/proc/self/fd/{writing}")
        started.start()
        os.close(writing)
        assert httpx.post(started.url + "/api/v1/metrics", json={"records": [record()]}).status_code == 200
        code, seconds = started.stop()
        assert (code, seconds < 10.0) == (0, True)
        os.close(reading)


def test_a_body_that_does_not_come_ends_an_event_stream_without_an_exception(tmp_path):
    with FakeDaemon(tmp_path, "--body-seconds", 0.5) as daemon:
        text = b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\n"
        with connect(daemon, text) as client:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            assert closed_within(client, 10.0)
        assert '"exception"' not in daemon.log.read_text()
