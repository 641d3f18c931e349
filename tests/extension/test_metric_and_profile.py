"""One more metric or profile is one entry: changes of a copy of the checkout, without an edit elsewhere."""

import json

import pytest

from tests.extension.checkout import ROOT, copy_of_checkout, insert, run

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
