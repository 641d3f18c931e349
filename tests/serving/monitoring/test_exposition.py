"""/metrics: read by Prometheus's own linter, and value by value."""

import re
import shutil
import subprocess

import pytest

from fleet_forecast.serving.histogram import Histogram
from tests.serving.daemon_client import daemon, forecast_of, post, record, wait_for

LINE = re.compile(r'([a-z_]+)((?:\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})?) (\S+)$')


@pytest.fixture
def page(tmp_path):
    with daemon(tmp_path) as client:
        post(client, record("ppml0001", cpu_pct=60.0, disk_io_mb_s=2.0, latency_ms=20.0), record("odd"))
        post(client, record(cpu_pct=180.0))
        forecast_of(client)
        wait_for(lambda: client.get("/status").json()["servers"]["forecast"] == 2)
        yield lambda accept="*/*": client.get("/metrics", headers={"accept": accept})


def values(text):
    matches = [LINE.match(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(matches)
    return {match[1] + match[2]: float(match[3]) for match in matches if match}


def test_forecasts_are_in_base_units_with_the_horizon_as_a_label(page):
    found = values(page().text)
    place = 'server="ppml0001",profile="ml_compute",horizon="1h",quantile="0.9"'
    assert found[f"fleet_forecast_cpu_ratio{{{place}}}"] == pytest.approx(0.64)
    assert found[f"fleet_forecast_disk_io_bytes_per_second{{{place}}}"] == pytest.approx(6e6)
    assert found[f"fleet_forecast_latency_seconds{{{place}}}"] == pytest.approx(0.024)


def test_own_figures(page):
    found = values(page().text)
    assert found["fleet_ingested_records_total"] == 2
    assert found['fleet_rejected_records_total{field="cpu_pct"}'] == 1
    assert found["fleet_servers_unmatched"] == 1
    assert found['fleet_servers{profile="ml_compute"}'] == 1
    assert found['fleet_model_info{model="tft_model_fake"}'] == 1
    assert found["fleet_model_last_reload_successful"] == 1
    assert found["fleet_history_size_bytes"] > 0
    assert found["fleet_cycle_duration_seconds_count"] == found["fleet_cycles_total"]


def test_openmetrics_on_request(page):
    answer = page("application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert "# TYPE fleet_cycles counter\n" in answer.text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="the program promtool is not installed")
def test_promtool_has_no_complaint(page):
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page().text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_histogram_counts_cumulatively():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert list(histogram.samples("h")) == [
        'h_bucket{le="1.0"} 2',
        'h_bucket{le="2.0"} 3',
        'h_bucket{le="+Inf"} 4',
        "h_sum 12.0",
        "h_count 4",
    ]
