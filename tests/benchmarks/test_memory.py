"""benchmarks/memory.py runs and reports the size of the data it simulates."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_peak_memory_of_training_lies_between_the_floor_and_the_limit():
    command = [sys.executable, "benchmarks/memory.py", "--quick"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert [case["rows"] for case in report["cases"].values()] == [18 * 90 * 720, 1_159 * 90 * 12]
    for case in report["cases"].values():
        assert case["floor_bytes"] < case["peak_bytes"] < report["limit_bytes"]
        assert case["windows"] > 0
