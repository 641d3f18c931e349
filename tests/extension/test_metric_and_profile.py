"""One more metric or profile is one entry: changes of a copy of the checkout, without an edit elsewhere."""

import json

import httpx
import pyarrow.parquet as pq
import pytest

from tests.conftest import tiny_flags, tiny_fleet
from tests.extension.checkout import ROOT, copy_of_checkout, insert, run, train
from tests.serving.daemon_client import complete_start, record, wait_for
from tests.serving.fake_daemon import DaemonProcess, FakeDaemon

LATENCY = '    MetricSpec("latency_ms"'
GPU = '    MetricSpec("gpu_pct", "%", "percent", "GPU in use"),\n'
MAINFRAME = """    ProfileSpec(
        profile=ServerProfile.MAINFRAME,
        name_patterns=_numbered("zos"),
        first_name="zos01",
        default_servers=2,
        baselines=_baselines(
            cpu_pct=(60, 10),
            mem_pct=(70, 8),
            disk_io_mb_s=(90, 20),
            net_in_mb_s=(10, 3),
            net_out_mb_s=(10, 3),
            latency_ms=(9, 2),
        ),
        rhythm=Rhythm("flat"),
        incidents=("disk_io_saturation", "lock_contention"),
    ),
"""


@pytest.fixture
def checkout(tmp_path):
    return copy_of_checkout(tmp_path)


def test_a_metric_without_baselines_is_read_and_checked_and_not_simulated(checkout):
    insert(checkout, "fleet_forecast/contract/definitions.py", LATENCY, GPU)
    (checkout / "gpu.csv").write_text("timestamp,server_name,gpu_pct\n2026-11-23T10:00:00Z,ppml0001,50\n")
    accepted = run(checkout, "data_contract.py", "gpu.csv")
    assert (accepted.returncode, json.loads(accepted.stdout.splitlines()[-1])["metrics"]) == (0, ["gpu_pct"])
    (checkout / "gpu.csv").write_text("timestamp,server_name,gpu_pct\n2026-11-23T10:00:00Z,ppml0001,150\n")
    refused = run(checkout, "data_contract.py", "gpu.csv")
    assert refused.returncode == 1
    assert "gpu_pct: 1 row: outside the range 0 to 100 %" in refused.stderr
    assert "| `gpu_pct` | % | 0 to 100 | GPU in use |" in run(checkout, "data_contract.py", "--document").stdout
    assert run(checkout, "metrics_generator.py", "--hours", "1").returncode == 0
    assert run(ROOT, "metrics_generator.py", "--hours", "1", "--out_dir", str(checkout / "plain")).returncode == 0
    written, plain = (checkout / folder / "server_metrics.parquet" for folder in ("training", "plain"))
    assert written.read_bytes() == plain.read_bytes()


def test_a_metric_with_baselines_is_simulated(checkout):
    insert(checkout, "fleet_forecast/contract/definitions.py", LATENCY, GPU)
    path = checkout / "server_profiles.py"
    path.write_text(
        path.read_text().replace("            latency_ms=", "            gpu_pct=(40, 8),\n            latency_ms=")
    )
    result = run(checkout, "metrics_generator.py", "--hours", "72")
    assert result.returncode == 0, result.stderr
    assert "gpu_pct" in result.stderr
    values = pq.read_table(checkout / "training" / "server_metrics.parquet")["gpu_pct"].to_pandas()
    assert values.mean() == pytest.approx(40, abs=4)
    assert values.dropna().between(0, 100).all()


def test_a_baseline_of_an_unknown_metric_is_refused_with_the_place(checkout):
    insert(checkout, "server_profiles.py", "            latency_ms=", "            gpu_pct=(40, 8),\n")
    result = run(checkout, "metrics_generator.py", "--hours", "1")
    assert result.returncode == 2
    assert "add it to BUILT_IN_METRICS in fleet_forecast/contract/definitions.py" in result.stderr


def test_a_profile_is_simulated_named_and_inferred(checkout):
    insert(checkout, "server_profiles.py", '    GENERIC = "generic"', '    MAINFRAME = "mainframe"\n')
    missing = run(checkout, "metrics_generator.py", "--hours", "1")
    assert "profile mainframe has no ProfileSpec; add one to _SPECS" in missing.stderr
    insert(checkout, "server_profiles.py", "    ProfileSpec(\n        profile=ServerProfile.GENERIC", MAINFRAME)
    result = run(checkout, "metrics_generator.py", "--hours", "1", "--num_mainframe", "3", "--incident_rate", "100")
    assert result.returncode == 0, result.stderr
    metadata = json.loads((checkout / "training" / "metrics_metadata.json").read_text())
    assert metadata["fleet"]["mainframe"] == 3
    checked = run(checkout, "data_contract.py", "training")
    assert "mainframe" in json.loads(checked.stdout.splitlines()[-1])["profiles"]
    program = "from server_profiles import infer_profile_from_name; print(infer_profile_from_name('zos07'))"
    assert run(checkout, "-c", program).stdout.strip() == "mainframe"
    program = "from fleet_forecast.serving.alerting.rules import AlertRules; "
    program += "print(AlertRules().thresholds_of('zos07', 'mainframe')['cpu_pct'].above)"
    assert 60 < float(run(checkout, "-c", program).stdout) < 100


RULES = """
[alerts]
fire_probability = 0.9
resolve_probability = 0.1
fire_forecasts = 1

[alerts.servers.ppdb001]
gpu_pct = 5
"""


def history_of(metric, steps=48):
    """Records of one server, one every 300 s; the other metrics are unremarkable."""
    values = {"cpu_pct": 50.0, "mem_pct": 60.0, metric: 70.0}
    return [record("ppdb001", complete_start(steps - 1 - back), **values) for back in range(steps)]


def assert_stored_forecast_alerted_and_exposed(daemon, metric, base_name):
    """Send a metric to a daemon and read it back through its whole API."""
    sent = httpx.post(f"{daemon.url}/api/v1/metrics", json={"records": history_of(metric)}, timeout=30).json()
    assert (sent["accepted"], sent["rejected"]) == (48, [])

    def get(path):
        return httpx.get(daemon.url + path, timeout=30)

    wait_for(lambda: get("/api/v1/servers/ppdb001/forecast").status_code == 200, 30)
    quantiles = get("/api/v1/servers/ppdb001/forecast").json()["metrics"][metric]
    assert quantiles["current"] == 70.0
    assert quantiles["q0.5"][0] > 5
    assert set(get("/api/v1/servers/ppdb001/history?hours=1").json()["metrics"][metric]) == {70.0}
    (alert,) = wait_for(lambda: get("/api/v1/alerts").json()["alerts"], 30)
    assert (alert["metric"], alert["threshold"]) == (metric, 5)
    assert f" {metric} is at 70 % " in alert["sentence"]
    exposed, labels = get("/metrics").text, 'server="ppdb001",profile="database"'
    assert f'{base_name}{{{labels},horizon="1h",quantile="0.5"}} 0.' in exposed
    assert f'fleet_breach_probability{{{labels},metric="{metric}",horizon="1h"}} 1' in exposed


def test_a_daemon_stores_forecasts_alerts_on_and_exposes_a_metric(checkout, tmp_path):
    insert(checkout, "fleet_forecast/contract/definitions.py", LATENCY, GPU)
    (tmp_path / "rules.toml").write_text(RULES)
    daemon = FakeDaemon(tmp_path, "--fleet", tmp_path / "rules.toml")
    daemon.use_checkout(checkout)
    with daemon:
        assert_stored_forecast_alerted_and_exposed(daemon, "gpu_pct", "fleet_forecast_gpu_ratio")


@pytest.mark.slow
def test_a_model_is_trained_on_a_metric_and_served(checkout, tmp_path):
    insert(checkout, "fleet_forecast/contract/definitions.py", LATENCY, GPU)
    rows = tiny_fleet()
    rows.insert(5, "gpu_pct", rows["cpu_pct"] / 2 + 40)
    (checkout / "training").mkdir()
    rows.to_parquet(checkout / "training" / "server_metrics.parquet", index=False)
    model = train(checkout, *tiny_flags(checkout / "training", checkout / "models"))
    assert "gpu_pct" in json.loads((model / "config.json").read_text())["spec"]["metrics"]
    (tmp_path / "rules.toml").write_text(RULES)
    daemon = DaemonProcess(tmp_path, "--fleet", tmp_path / "rules.toml", model=model)
    daemon.use_checkout(checkout)
    with daemon:
        assert_stored_forecast_alerted_and_exposed(daemon, "gpu_pct", "fleet_forecast_gpu_ratio")
