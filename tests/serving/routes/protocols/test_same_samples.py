"""The protocols store the same samples of the same measurements."""

import time

import pytest

from fleet_forecast.iso_time import iso
from tests.serving.daemon_client import post
from tests.serving.routes.protocols import test_otlp, test_remote_write
from tests.sources.protocols.otlp_bodies import disk_io, metric, request
from tests.sources.protocols.write_bodies import fleet_series


def test_json_remote_write_and_otlp_store_the_same_samples(client):
    now = int(time.time()) - 60
    for second in range(0, 60, 10):
        memory, disk = 0.5 + second / 200, float(second)
        instant, taken = now + second, {"mem_pct": 100 * memory, "disk_io_mb_s": disk}
        assert post(client, {"timestamp": iso(instant), "server_name": "json", **taken}).json()["accepted"] == 1
        series = [fleet_series(name, "prometheus:9100", [(instant * 1000, value)]) for name, value in taken.items()]
        assert test_remote_write.send(client, *series).status_code == 204
        total = sum(10 * each * 10**6 for each in range(0, second + 1, 10))  # the rate is that of the last ten seconds
        host = [metric("system.memory.utilization", [({"state": "used"}, instant, memory)]), disk_io(instant, total, 0)]
        assert test_otlp.send(client, request("otlp", *host)).status_code == 200
    stored = {name: test_otlp.stored(client, name) for name in ("json", "prometheus", "otlp")}
    assert stored["json"] == stored["prometheus"]
    for name in ("mem_pct", "disk_io_mb_s"):
        expected = stored["json"][name] if name == "mem_pct" else [None, *stored["json"][name][1:]]  # a first value
        assert stored["otlp"][name] == pytest.approx(expected)
