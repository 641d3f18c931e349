"""One more metric or profile is one entry: changes of a copy of the checkout, without an edit elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("server_profiles.py", "data_contract.py", "metrics_generator.py")
LATENCY = '            MetricSpec("latency_ms"'
GPU = '            MetricSpec("gpu_pct", "%", 0, 100, "GPU in use"),\n'
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
def checkout(tmp_path: Path) -> Path:
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "fleet_forecast", copy / "fleet_forecast", ignore=shutil.ignore_patterns("__pycache__"))
    for script in SCRIPTS:
        shutil.copy(ROOT / script, copy)
    return copy


def edit(checkout: Path, file: str, before: str, text: str) -> None:
    """Insert text before a place in a file."""
    path = checkout / file
    content = path.read_text(encoding="utf-8")
    assert before in content
    path.write_text(content.replace(before, text + before, 1), encoding="utf-8")


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=checkout, capture_output=True, text=True, check=False)


def test_a_metric_without_baselines_is_read_and_checked_and_not_simulated(checkout: Path) -> None:
    edit(checkout, "fleet_forecast/contract/specs.py", LATENCY, GPU)
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


def test_a_metric_with_baselines_is_simulated(checkout: Path) -> None:
    edit(checkout, "fleet_forecast/contract/specs.py", LATENCY, GPU)
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


def test_a_baseline_in_one_profile_only_or_of_an_unknown_metric_fails_at_import_with_the_place(checkout: Path) -> None:
    edit(checkout, "server_profiles.py", "            latency_ms=", "            gpu_pct=(40, 8),\n")
    result = run(checkout, "metrics_generator.py", "--hours", "1")
    assert result.returncode == 1
    assert "server_profiles.py: profile database has no baseline for gpu_pct" in result.stderr
    path = checkout / "server_profiles.py"
    text = path.read_text().replace("            gpu_pct=(40, 8),\n", "")
    path.write_text(text.replace("            latency_ms=", "            gpu_pct=(40, 8),\n            latency_ms="))
    result = run(checkout, "metrics_generator.py", "--hours", "1")
    assert "add it to METRIC_SPECS in fleet_forecast/contract/specs.py" in result.stderr


def test_a_profile_is_simulated_named_and_inferred(checkout: Path) -> None:
    edit(checkout, "server_profiles.py", '    GENERIC = "generic"', '    MAINFRAME = "mainframe"\n')
    missing = run(checkout, "metrics_generator.py", "--hours", "1")
    assert "profile mainframe has no ProfileSpec; add one to _SPECS" in missing.stderr
    edit(checkout, "server_profiles.py", "    ProfileSpec(\n        profile=ServerProfile.GENERIC", MAINFRAME)
    result = run(checkout, "metrics_generator.py", "--hours", "1", "--num_mainframe", "3", "--incident_rate", "100")
    assert result.returncode == 0, result.stderr
    metadata = json.loads((checkout / "training" / "metrics_metadata.json").read_text())
    assert metadata["fleet"]["mainframe"] == 3
    checked = run(checkout, "data_contract.py", "training")
    assert "mainframe" in json.loads(checked.stdout.splitlines()[-1])["profiles"]
    program = "from server_profiles import infer_profile_from_name; print(infer_profile_from_name('zos07'))"
    assert run(checkout, "-c", program).stdout.strip() == "mainframe"
