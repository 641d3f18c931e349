"""A fleet of nine profiles, two of them its own, and eight metrics, two of them its own: simulated, trained, served."""

import json

import httpx
import pandas as pd
import pytest

import metrics_generator
from tests.extension.checkout import ROOT, run
from tests.serving.daemon_client import STEP, wait_for
from tests.serving.fake_daemon import DaemonProcess

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
threshold = 20
[metrics.queue_depth]
unit = "messages"
kind = "rate"
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


def records(folder, hours):
    """The last hours of the data as bodies for the daemon."""
    frame = pd.read_parquet(folder / "data" / "server_metrics.parquet")
    frame = frame[frame["timestamp"] >= frame["timestamp"].max() - pd.Timedelta(hours=hours)].drop(columns="incident")
    lines = frame.to_json(orient="records", date_format="iso", lines=True, default_handler=str).splitlines()
    return [[json.loads(line) for line in lines[first : first + 5_000]] for first in range(0, len(lines), 5_000)]


@pytest.mark.slow
def test_an_own_fleet_from_simulation_to_alert(tmp_path):
    file = tmp_path / "fleet.toml"
    file.write_text(FLEET)
    flags = ["--fleet", str(file), "--start", "now-60h", "--hours", "60", "--out_dir", str(tmp_path / "data"), *SERVERS]
    assert metrics_generator.main(flags) == 0
    model = trained(tmp_path, file)
    config = json.loads((model / "config.json").read_text())
    assert len(config["spec"]["metrics"]) == 8
    assert {"cache", "build"} < set(config["profiles"])
    assert len(config["profiles"]) == 9
    assert config["spec"]["calendar"]["holidays"] == ["DE"]
    assert "queue_depth" in (model / "report.html").read_text()
    warm = trained(tmp_path, file, "--warm-start", model)
    with DaemonProcess(tmp_path, "--fleet", file, model=warm) as daemon:
        for body in records(tmp_path, hours=6):
            answer = httpx.post(f"{daemon.url}/api/v1/metrics", json={"records": body}, timeout=60).json()
            assert answer["rejected"] == []

        def get(path):
            return httpx.get(daemon.url + path, timeout=30)

        wait_for(lambda: get("/api/v1/servers/runner01/forecast").status_code == 200, 60)
        forecast = get("/api/v1/servers/runner01/forecast").json()
        assert forecast["profile"] == "build"
        assert forecast["metrics"]["queue_depth"]["unit"] == "messages"
        assert len(forecast["metrics"]["queue_depth"]["q0.5"]) == 3_600 // STEP
        alerts = wait_for(lambda: get("/api/v1/alerts").json()["alerts"], 60)
        assert {"fs_used_pct", "queue_depth"} <= {alert["metric"] for alert in alerts}
        page = get("/metrics").text
        for name in ("fs_used_ratio", "queue_depth"):
            assert f'fleet_forecast_{name}{{server="runner01",profile="build",horizon="1h",quantile="0.5"}}' in page
        assert get("/api/v1/heat-map?value=quantile&metric=queue_depth").json()["unit"] == "messages"
        profiles = {each["profile"]: each["trained"] for each in get("/api/v1/profiles").json()["profiles"]}
        assert profiles["cache"]
        assert get("/api/v1/model").json()["contradictions"] == []
