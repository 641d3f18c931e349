"""A change of the number of shards: a third of the servers moves with its history, and nothing is lost or doubled."""

import time

import numpy as np
import pytest

from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.shard import owner_of
from tests.serving.daemon_client import STEP, complete_start, forecast_of, post, record, wait_for
from tests.serving.shards.scene import fleet

NAMES = [f"ppdb{n:03d}" for n in range(24)]
STEPS = 40


@pytest.fixture
def quick(monkeypatch):
    """Retries without pauses."""
    monkeypatch.setattr("fleet_forecast.serving.shards.neighbours.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("fleet_forecast.serving.shards.hand_over.FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("fleet_forecast.serving.shards.hand_over.LONGEST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr("fleet_forecast.serving.shards.forwarding.CELLS_PER_REQUEST", 150)


def fill(shards):
    """A history of several samples a step, with profile and state."""
    random, last = np.random.default_rng(0), complete_start()
    for number in shards.clients:
        store = shards.daemon(number).store
        samples = [
            Sample(
                name, (last - ago * STEP + at) * 1000 + 7, "database", "idle", (*random.uniform(1, 99, 2), *[None] * 4)
            )
            for name in NAMES
            if shards.owner(name) == number
            for ago in range(STEPS)
            for at in (0, 150)
        ]
        store.append(samples).result(10)


def contents(shards):
    """All samples of all files by shard, server and time; servers that leave included."""
    found = {}
    for number in shards.clients:
        store = shards.daemon(number).store
        first, last = store.step_range().result(5)
        for name, server in {**store.servers, **store.leaving}.items():
            for at, state, values in store.raw_samples(server.server_id, first, last).result(5):
                found[number, name, at] = server.profile, state, values
    return found


def without_shard(found):
    return {key[1:]: value for key, value in found.items()}


def settled(shards):
    return all(not shards.daemon(number).store.leaving for number in shards.clients)


@pytest.mark.usefixtures("quick")
def test_a_third_shard_gets_its_servers_with_their_history_and_each_is_in_one_place(tmp_path):
    with fleet(tmp_path, 2) as two:
        fill(two)
        before = contents(two)
    with fleet(tmp_path, 3) as three:
        wait_for(lambda: settled(three), 30)
        after = contents(three)
        assert without_shard(after) == without_shard(before)
        assert len(after) == len(before) == len(NAMES) * STEPS * 2
        assert {(number, name) for number, name, _ in after} == {(owner_of(name, 3), name) for name in NAMES}
        moved = {name for number, name, _ in before if owner_of(name, 3) != number}
        assert moved == {name for name in NAMES if owner_of(name, 3) == 3}
        assert len(NAMES) / 6 < len(moved) < len(NAMES) / 2
        (name, *_) = sorted(moved)
        wait_for(lambda: forecast_of(three.clients[3], name)["history_steps"] == STEPS, 30)
        assert three.clients[1].get(f"/api/v1/servers/{name}/forecast").status_code == 421
        assert name not in [each["server_name"] for each in three.clients[1].get("/api/v1/servers").json()["servers"]]


@pytest.mark.usefixtures("quick")
def test_while_the_new_shard_is_away_nothing_is_deleted_and_the_old_one_does_not_forecast(tmp_path):
    with fleet(tmp_path, 2) as two:
        fill(two)
        before = contents(two)
    with fleet(tmp_path, 3, forward=True) as three:
        for number in (1, 2):
            three.links[number, 3].down = True
        moving = sorted(name for name in NAMES if owner_of(name, 3) == 3)
        wait_for(lambda: "does not respond" in (three.daemon(1).hand_over.problem or ""), 30)
        status = three.clients[1].get("/status").json()["shard"]
        assert status["leaving_servers"] == sum((1, name) in {key[:2] for key in before} for name in moving)
        assert "does not respond" in status["leaving_problem"]
        assert f"fleet_leaving_servers {status['leaving_servers']}" in three.clients[1].get("/metrics").text
        assert three.clients[1].get(f"/api/v1/servers/{moving[0]}/forecast").status_code == 421
        assert post(three.clients[1], record(moving[0])).status_code == 503
        assert without_shard(contents(three)) == without_shard(before)
    with fleet(tmp_path, 2) as two:  # back to two shards: as if nothing had been
        time.sleep(0.2)
        assert settled(two)
        assert contents(two) == before


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_history_that_the_new_shard_has_no_room_for_stays(tmp_path):
    with fleet(tmp_path, 2) as two:
        fill(two)
        before = contents(two)
    with fleet(tmp_path, 3, changes={3: {"max_servers": 2}}) as three:
        wait_for(lambda: "rejects history" in (three.daemon(1).hand_over.problem or ""), 30)
        wait_for(lambda: "rejects history" in (three.daemon(2).hand_over.problem or ""), 30)
        assert without_shard(contents(three)) == without_shard(before)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_shard_that_is_taken_away_gives_its_servers_to_the_others(tmp_path):
    with fleet(tmp_path, 3) as three:
        fill(three)
        before = contents(three)
    with fleet(tmp_path, 2, changes={3: {"shard": "0/2"}}, further=(3,)) as two:
        wait_for(lambda: settled(two), 30)
        after = contents(two)
    assert without_shard(after) == without_shard(before)
    assert {(number, name) for number, name, _ in after} == {(owner_of(name, 2), name) for name in NAMES}
