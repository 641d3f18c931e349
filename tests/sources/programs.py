"""Real databases of samples for tests, on ports of their own, with made-up history."""

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import httpx
import pytest

START_SECONDS = 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require(program):
    if shutil.which(program) is None:
        pytest.skip(f"the program {program} is not installed (apt-get install {program})")


@contextmanager
def running(command, folder, ready_url, **client):
    """A program until the block ends; `client`: arguments of httpx.get for the question whether it is ready."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(ready_url, client):
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, (folder / "log").read_text()[-3000:]
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(url, client):
    try:
        return httpx.get(url, **client).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def running_prometheus(folder, history, *flags, scheme="http", **client):
    """The address of a Prometheus whose database holds the samples of an OpenMetrics text."""
    require("prometheus")
    (folder / "history.om").write_text(history)
    (folder / "prometheus.yml").write_text("scrape_configs: []\n")
    create = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "history.om", "data"]
    subprocess.run(create, cwd=folder, check=True, capture_output=True)
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", *flags]
    command += ["--storage.tsdb.retention.time=10y", f"--web.listen-address={address}"]
    with running(command, folder, f"{scheme}://{address}/-/ready", **client):
        yield f"{scheme}://{address}"


@contextmanager
def running_victoria_metrics(folder, *flags):
    """The address of an empty VictoriaMetrics."""
    require("victoria-metrics")
    address = f"127.0.0.1:{free_port()}"
    command = ["victoria-metrics", "-storageDataPath=data", "-retentionPeriod=100y", "-memory.allowedPercent=2"]
    command += [f"-httpListenAddr={address}", "-search.latencyOffset=0s", "-loggerLevel=ERROR", *flags]
    with running(command, folder, f"http://{address}/health"):
        yield f"http://{address}"
