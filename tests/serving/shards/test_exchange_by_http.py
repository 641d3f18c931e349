"""The exchange of peers by HTTP: waits for the other's step, bounded times, the status and the metrics."""

import time

import pytest

from tests.serving.daemon_client import complete_start, forecast_of, post, record, wait_for
from tests.serving.shards.scene import fleet, names_of

FIRST, SECOND = names_of(1, 2, 3), names_of(2, 2, 2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    now = [complete_start(1) + 1.0]
    with fleet(tmp_path_factory.mktemp("fleet"), clock=lambda: now[0], shard_seconds=2.0) as running:
        for number, names in ((1, FIRST), (2, SECOND)):
            for name in names:
                post(running.clients[number], record(name, complete_start(1), cpu_pct=40.0))
        now[0] = complete_start() + 1.0
        yield running


def test_peers_of_both_shards_are_those_of_each_server(shards):
    for number, names in ((1, FIRST), (2, SECOND)):
        wait_for(lambda: forecast_of(shards.clients[number], names[0])["peers"]["count"] == 4)  # noqa: B023
    status = shards.clients[1].get("/status").json()["shard"]
    (neighbour,) = status.pop("neighbours")
    nothing = {"forward": False, "leaving_servers": 0, "leaving_problem": None}
    assert status == {"number": 1, "count": 2, **nothing}
    assert neighbour == {"number": 2, "address": "http://testserver", "missing": False, "peers": 2, "problem": None}
    page = shards.clients[1].get("/metrics").text
    assert 'fleet_shard_info{shard="1",shards="2"} 1' in page
    assert 'fleet_shard_up{shard="2"} 1' in page
    assert shards.clients[1].get(f"/api/v1/servers/{FIRST[0]}/peers").json()["servers"] == 4


def test_a_request_for_a_step_to_come_waits_no_longer_than_asked(shards):
    asked = {"after": None, "last_step": 2**32 - 1, "wait_seconds": 0.3}
    started = time.monotonic()
    answer = shards.clients[1].post("/api/v1/shard/peers", json=asked, headers={"X-Fleet-Shard": "1/2"})
    assert answer.status_code == 200
    assert 0.3 <= time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    "asked", [{}, {"last_step": -1}, {"last_step": 1, "after": {}}, {"last_step": "x"}, {"last_step": 1, "more": 2}]
)
def test_a_malformed_request_is_refused(shards, asked):
    answer = shards.clients[1].post("/api/v1/shard/peers", json=asked, headers={"X-Fleet-Shard": "1/2"})
    assert answer.status_code == 422


def test_a_daemon_refuses_requests_meant_for_another_shard(shards):
    asked = {"last_step": 1}
    assert shards.clients[1].post("/api/v1/shard/peers", json=asked).status_code == 409
