"""The process's own metrics, against what the kernel says."""

import os
import resource
import time
from pathlib import Path

from fleet_forecast.serving.monitoring.process_metrics import process_lines


def values(openmetrics=False):
    lines = [line for line in process_lines(openmetrics) if not line.startswith("#")]
    return {name: float(value) for name, value in (line.split(" ") for line in lines)}


def test_they_are_those_of_the_kernel_under_the_names_of_prometheus():
    found = values()
    seconds = float(Path("/proc/uptime").read_text().split()[0]) - int(
        Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    ) / os.sysconf("SC_CLK_TCK")
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert abs(found["process_start_time_seconds"] - (time.time() - seconds)) < 2
    assert found["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 0.8 < found["process_resident_memory_bytes"] / (resident_pages * resource.getpagesize()) < 1.25
    assert found["process_virtual_memory_bytes"] > found["process_resident_memory_bytes"]
    assert found["process_threads"] >= 1
    assert 0 < found["process_cpu_seconds_total"] <= time.process_time() + 1


def test_an_open_file_is_counted(tmp_path):
    before = values()["process_open_fds"]
    with (tmp_path / "file").open("w"):
        assert values()["process_open_fds"] == before + 1


def test_a_counter_s_family_is_named_without_total_in_openmetrics_only():
    assert "# TYPE process_cpu_seconds counter" in list(process_lines(True))
    assert "# TYPE process_cpu_seconds_total counter" in list(process_lines(False))
