"""The dashboard: nothing from elsewhere, no markup from outside, and it draws in a real browser."""

import re
import shutil
import subprocess

import httpx
import pytest

from fleet_forecast.serving.dashboard import FILES, FOLDER
from tests.serving.daemon_client import STEP, TOKEN, complete_start, daemon, record, wait_for
from tests.serving.fake_daemon import FakeDaemon

BROWSER = shutil.which("chromium")


def test_the_files_need_no_token_and_carry_the_policy(tmp_path):
    with daemon(tmp_path, token=TOKEN) as client:
        for path in FILES:
            answer = client.get(path)
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_comes_from_another_host_and_text_is_only_ever_text():
    for file in FOLDER.iterdir():
        text = file.read_text()
        hosts = set(re.findall(r"https?://[^\s\"']+", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}, file
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|style=|\son\w+=", text), file


@pytest.mark.skipif(BROWSER is None, reason="the program chromium is not installed")
def test_it_draws_the_forecast_in_a_browser(tmp_path):
    start = complete_start()
    records = [record("ppdb001", start - n * STEP, cpu_pct=60.0 + n % 9, mem_pct=85.0) for n in range(40)]
    with FakeDaemon(tmp_path) as running:
        assert httpx.post(running.url + "/api/v1/metrics", json={"records": records}).json()["accepted"] == 40
        wait_for(lambda: httpx.get(running.url + "/api/v1/servers/ppdb001/forecast").status_code == 200)
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        command += ["--virtual-time-budget=4000", "--dump-dom", running.url + "/#ppdb001"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    page = done.stdout
    assert "database (pattern" in page
    assert page.count("<svg") == 6 + 4  # metrics; groups of variables and attention
    assert "CPU, usual at this time of day" in page
    assert "10 % on the hours to come" in page
    assert 'class="most"' in page
    assert ">now<" in page
    assert "Content Security Policy" not in done.stderr
