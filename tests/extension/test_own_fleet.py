"""A fleet of nine profiles, two of them its own, and eight metrics, two of them its own.

It is simulated, exposed by a made-up exporter and pulled from a real Prometheus; then it is trained on, served, alerted
on and drawn.
"""

import json

import httpx
import numpy as np
import pytest
from playwright.sync_api import sync_playwright

import metrics_generator
from data_contract import METRICS, read_metrics
from fleet_forecast.contract.definitions import BUILT_IN_FLEET, use_fleet
from fleet_forecast.contract.fleet.fleet_file import read_fleet
from tests.extension.checkout import ROOT, run
from tests.serving.daemon_client import STEP, wait_for
from tests.serving.dashboard.chromium import FLAGS, PROGRAM
from tests.serving.fake_daemon import DaemonProcess
from tests.sources.exporters import open_metrics
from tests.sources.programs import running_prometheus

FLEET = r"""
timezone = "Europe/Berlin"
holidays = "DE"
business_hours = "08:00-18:00"
[profiles.cache]
patterns = ['redis\d+']
first_name = "redis001"
servers = 3
baselines = {cpu_pct = [35, 8], mem_pct = [82, 6], net_in_mb_s = [60, 20]}
[profiles.build]
patterns = ['runner\d+']
first_name = "runner01"
servers = 3
baselines = {cpu_pct = [45, 18], mem_pct = [60, 10], fs_used_pct = [65, 8], queue_depth = [6, 4]}
rhythm = {weekend = 0.3, windows = [{start = "09:00", end = "19:00", multiplier = 2.0}]}
[profiles.database]
baselines = {fs_used_pct = [72, 6]}
[metrics.fs_used_pct]
unit = "%"
kind = "percent"
query = 'max by (instance) (100 - 100 * node_filesystem_avail_bytes{fstype!~"tmpfs"} / node_filesystem_size_bytes)'
threshold = 20
[metrics.queue_depth]
unit = "messages"
kind = "rate"
query = "max by (instance) (broker_queue_messages)"
[alerts]
fire_forecasts = 1
[alerts.profiles.build]
queue_depth = {below = 1000}
"""
SERVERS = [f for p in ("ml_compute", "database", "web_api", "data_ingest") for f in (f"--num_{p}", "2")]
SERVERS += [f for p in ("conductor_mgmt", "risk_analytics", "generic") for f in (f"--num_{p}", "1")]
SMALL = {"epochs": 1, "hidden-size": 8, "context-hours": 4, "horizon-hours": 1, "batch-size": 64, "device": "cpu"}
SWITCHES = ("--no-risk-model", "--no-comparison", "--no-final-fit")


def trained(folder, file, *flags):
    """Train a small model on the fleet's data; returns its directory."""
    settings = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    paths = ["--training-dir", folder / "data", "--models-dir", folder / "models", "--fleet", file]
    result = run(ROOT, "tft_trainer.py", *paths, *settings, *SWITCHES, *flags)
    assert result.returncode == 0, result.stderr
    return (folder / "models" / "current").resolve()


def exposed(frame):
    """What the exporter of each server had at the middle of each step: (series, value, second)."""
    for row in frame.to_dict("records"):
        second, instance = int(row["timestamp"].timestamp()) + STEP // 2, f'instance="{row["server_name"]}:9100"'
        values = {metric: row[metric] for metric in METRICS if not np.isnan(row[metric])}
        used, queue = (values.pop(metric, None) for metric in ("fs_used_pct", "queue_depth"))
        for metric, value in values.items():
            yield f"own_{metric}{{{instance}}}", value, second
        if used is not None:
            yield f'node_filesystem_size_bytes{{{instance},fstype="ext4"}}', 100e9, second
            yield f'node_filesystem_avail_bytes{{{instance},fstype="ext4"}}', 1e9 * (100 - used), second
            yield f'node_filesystem_avail_bytes{{{instance},fstype="tmpfs"}}', 0, second
        if queue is not None:
            yield f"broker_queue_messages{{{instance}}}", queue, second


def rows_of(folder):
    return read_metrics(folder).frame.sort_values(["server_name", "timestamp"]).reset_index(drop=True)


def pulled(folder, file, simulated, url):
    """Pull the fleet; what was simulated has come through, apart from the last step of the text form's digits."""
    flags = ["--fleet", str(file), "--from_prometheus", url, "--hours", "61", "--out_dir", str(folder)]
    assert metrics_generator.main(flags) == 0
    found = rows_of(folder)
    both = simulated.merge(found, on=["server_name", "timestamp"], suffixes=("", "_pulled"))
    assert len(both) == len(found) > 0.97 * len(simulated)  # rows in which nothing was measured have no series
    for metric in METRICS:
        np.testing.assert_allclose(both[f"{metric}_pulled"], both[metric], rtol=1e-4, atol=1e-4, equal_nan=True)
    own = found.groupby("server_name", observed=True)[["fs_used_pct", "queue_depth"]].count() > 0
    assert {name[:4] for name in own.index[own["queue_depth"]]} == {"runn"}
    assert {name[:4] for name in own.index[own["fs_used_pct"]]} == {"runn", "ppdb"}


def drawn_server(url, name):
    """Captions of the charts of a server's page, once each chart is there."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))
        page = browser.new_page()
        page.goto(f"{url}/#/server/{name}")
        figures = page.locator("figure:has(.js-plotly-plot .main-svg) figcaption")
        figures.first.wait_for()
        captions = figures.all_inner_texts()
        browser.close()
        return captions


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(PROGRAM is None, reason="the program chromium is not installed")
def test_an_own_fleet_from_prometheus_to_alert(tmp_path):
    file, simulated = tmp_path / "fleet.toml", tmp_path / "simulated"
    queries = "".join(
        f"[metrics.{metric}]\nquery = 'avg_over_time(own_{metric}[$window])'\n" for metric in BUILT_IN_FLEET.names
    )
    file.write_text(FLEET + queries)
    flags = ["--fleet", str(file), "--start", "now-60h", "--hours", "60", "--out_dir", str(simulated), *SERVERS]
    assert metrics_generator.main(flags) == 0
    with use_fleet(read_fleet(file)):
        history = rows_of(simulated)
        text = open_metrics(sorted(exposed(history), key=lambda sample: sample[2]))
    (tmp_path / "prometheus").mkdir()
    with running_prometheus(tmp_path / "prometheus", text) as prometheus:
        with use_fleet(read_fleet(file)):
            pulled(tmp_path / "data", file, history, prometheus)
        model = trained(tmp_path, file)
        config = json.loads((model / "config.json").read_text())
        assert len(config["spec"]["metrics"]) == 8
        assert {"cache", "build"} < set(config["profiles"])
        assert len(config["profiles"]) == 9
        assert config["spec"]["calendar"]["holidays"] == ["DE"]
        assert "queue_depth" in (model / "report.html").read_text()
        warm = trained(tmp_path, file, "--warm-start", model)
        with DaemonProcess(tmp_path, "--fleet", file, "--prometheus", prometheus, model=warm) as daemon:
            served(daemon)


def served(daemon):
    """The daemon pulls; it forecasts, alerts, exposes and draws the metrics of each server."""

    def get(path):
        return httpx.get(daemon.url + path, timeout=30)

    wait_for(lambda: get("/api/v1/servers/runner01/forecast").status_code == 200, 120)
    forecast = get("/api/v1/servers/runner01/forecast").json()
    assert forecast["profile"] == "build"
    assert forecast["metrics"]["queue_depth"]["unit"] == "messages"
    assert len(forecast["metrics"]["queue_depth"]["q0.5"]) == 3_600 // STEP
    cache = get("/api/v1/servers/redis001/forecast").json()
    assert list(cache["metrics"]) == ["cpu_pct", "mem_pct", "net_in_mb_s"]
    assert cache["not_measured"] == ["disk_io_mb_s", "net_out_mb_s", "latency_ms", "fs_used_pct", "queue_depth"]
    alerts = wait_for(lambda: get("/api/v1/alerts").json()["alerts"], 60)
    assert {"fs_used_pct", "queue_depth"} <= {alert["metric"] for alert in alerts}
    assert {alert["profile"] for alert in alerts if alert["metric"] == "queue_depth"} == {"build"}
    page = get("/metrics").text
    for name in ("fs_used_ratio", "queue_depth"):
        assert f'fleet_forecast_{name}{{server="runner01",profile="build",horizon="1h",quantile="0.5"}}' in page
        assert f'fleet_forecast_{name}{{server="redis001"' not in page
    assert 'fleet_breach_probability{server="redis001",profile="cache",metric="queue_depth"' not in page
    assert get("/api/v1/heat-map?value=quantile&metric=queue_depth").json()["unit"] == "messages"
    profiles = {each["profile"]: each["trained"] for each in get("/api/v1/profiles").json()["profiles"]}
    assert profiles["cache"]
    assert get("/api/v1/model").json()["contradictions"] == []
    captions = drawn_server(daemon.url, "runner01")
    assert len(captions) == len(forecast["metrics"])
    assert [caption for caption in captions if "queue_depth" in caption and "messages" in caption]
