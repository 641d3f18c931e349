"""The process's own metrics on /metrics, under the names that Prometheus's client libraries use."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from typing import NamedTuple

import psutil

from fleet_forecast.serving.monitoring.text_format import header

PROCESS = psutil.Process()


class _Value(NamedTuple):
    name: str  # of a counter without `_total`
    kind: str
    description: str
    value: float


def process_lines(openmetrics: bool) -> Iterator[str]:
    """Lines of the families named process_*, read now. Their names and meaning are those of Prometheus's guidelines.

    See prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics.
    """
    for name, kind, description, value in _values():
        sample = f"{name}_total" if kind == "counter" else name
        yield from header(name if openmetrics else sample, kind, description)
        yield f"{sample} {value!r}"


def _values() -> Iterator[_Value]:
    with PROCESS.oneshot():
        times, memory = PROCESS.cpu_times(), PROCESS.memory_info()
        yield _Value("process_cpu_seconds", "counter", "Processor time, user and system.", times.user + times.system)
        yield _Value("process_open_fds", "gauge", "Open file descriptors.", PROCESS.num_fds())
        yield _Value(
            "process_max_fds",
            "gauge",
            "Limit of open file descriptors.",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )
        yield _Value("process_virtual_memory_bytes", "gauge", "Virtual memory.", memory.vms)
        yield _Value("process_resident_memory_bytes", "gauge", "Resident memory.", memory.rss)
        yield _Value("process_threads", "gauge", "Threads.", PROCESS.num_threads())
        yield _Value("process_start_time_seconds", "gauge", "Start of the process, since 1970.", PROCESS.create_time())
