"""The dashboard: no content from other hosts, no markup from data, and it draws in a real browser."""

import contextlib
import re
import shutil
import socket
import subprocess
import threading

import httpx
import pytest
import uvicorn

from fleet_forecast.serving.dashboard import FILES, FOLDER
from tests.serving.daemon_client import STEP, TOKEN, complete_start, daemon, forecast_of, post, record, wait_for
from tests.serving.fake_daemon import FakeDaemon
from tests.serving.fake_engine import FakeConfig, FakeEngine

BROWSER = shutil.which("chromium")


def test_the_files_need_no_token_and_have_the_content_security_policy(tmp_path):
    with daemon(tmp_path, token=TOKEN) as client:
        for path in FILES:
            answer = client.get(path)
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_file_names_another_host_or_inserts_markup():
    for name, _media_type in FILES.values():
        file = FOLDER / name
        text = file.read_text()
        hosts = set(re.findall(r"https?://[^\s\"']+", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}, file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|style=|\son\w+=", text), file


def page_in_browser(folder, address):
    """The page after its requests, as the browser writes it; nothing broke the content security policy."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    command += ["--virtual-time-budget=4000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert "Content Security Policy" not in done.stderr
    return done.stdout


@contextlib.contextmanager
def listening(client):
    """The address of a server of the client's application; the client has started it already."""
    config = uvicorn.Config(client.app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.skipif(BROWSER is None, reason="the program chromium is not installed")
def test_it_draws_the_forecast_in_a_browser(tmp_path):
    start = complete_start()
    records = [record("ppdb001", start - n * STEP, cpu_pct=60.0 + n % 9, mem_pct=85.0) for n in range(40)]
    with FakeDaemon(tmp_path) as running:
        assert httpx.post(running.url + "/api/v1/metrics", json={"records": records}).json()["accepted"] == 40
        wait_for(lambda: httpx.get(running.url + "/api/v1/servers/ppdb001/forecast").status_code == 200)
        page = page_in_browser(tmp_path, running.url + "/#ppdb001")
    assert "database (pattern" in page
    assert page.count("<svg") == 6 + 4  # metrics; groups of variables and attention
    assert "CPU, mean of earlier days at this time" in page
    assert "10 % on the horizon" in page
    assert 'class="most"' in page
    assert ">now<" in page
    assert ">80 % interval<" in page


@pytest.mark.skipif(BROWSER is None, reason="the program chromium is not installed")
def test_an_address_with_a_stray_percent_sign_leaves_the_page_working(tmp_path):
    with daemon(tmp_path) as client, listening(client) as address:
        page = page_in_browser(tmp_path, address + "/#100%")
    assert "no such server" in page
    assert ">connecting<" not in page


@pytest.mark.skipif(BROWSER is None, reason="the program chromium is not installed")
def test_it_draws_a_model_with_other_quantile_levels_and_a_day_of_horizon(tmp_path):
    engine = FakeEngine(FakeConfig(horizon_steps=288, quantiles=(0.05, 0.45, 0.95), targets=("cpu_pct",)))
    with daemon(tmp_path, engine) as client:
        post(client, record())
        forecast_of(client)
        with listening(client) as address:
            page = page_in_browser(tmp_path, address + "/#ppml0001")
    assert page.count("<svg") == 1 + 4
    assert page.count("<polygon") == 1
    assert ">90 % interval<" in page
    assert '<span id="inner" hidden' in page
