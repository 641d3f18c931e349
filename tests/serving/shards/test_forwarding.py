"""Forwarded records: the answer follows when the owner has them on disk; failures are bounded; loops are impossible."""

import time

import pytest

from fleet_forecast.serving.clients import Client, Right, digest_of
from tests.serving.daemon_client import TOKEN, complete_start, post, record, wait_for
from tests.serving.routes.protocols import test_otlp, test_remote_write
from tests.serving.shards.scene import fleet, names_of
from tests.sources.protocols.otlp_bodies import add_host, request
from tests.sources.protocols.write_bodies import fleet_series

FIRST, SECOND, THIRD = (names_of(shard, 3, 3) for shard in (1, 2, 3))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    with fleet(tmp_path_factory.mktemp("fleet"), 3, forward=True, shard_seconds=0.9) as running:
        for client in running.clients.values():
            wait_for(lambda: client.get("/readyz").status_code == 200)  # noqa: B023
        yield running


@pytest.fixture(autouse=True)
def healthy_links(request):
    if "shards" in request.fixturenames:
        for link in request.getfixturevalue("shards").links.values():
            link.down, link.hangs_seconds, link.answer = False, 0.0, None
            link.seen.clear()
        for client in request.getfixturevalue("shards").clients.values():
            for neighbour in client.app.state.daemon.neighbours.values():
                neighbour._failed_monotonic = None


def stored(shards, number):
    store = shards.daemon(number).store
    return {name for name, server in store.servers.items() if store.last_step(server.server_id) is not None}


def sent_on(link):
    """Forwarded records. Shards ask each other for their peers at any time too; that is not looked at here."""
    return [body for path, _, body in link.seen if path == "/api/v1/shard/samples"]


def test_each_record_is_stored_by_its_owner_before_the_answer(shards):
    names = [FIRST[0], SECOND[0], THIRD[0], SECOND[1]]
    answer = post(shards.clients[1], *map(record, names)).json()
    assert (answer["accepted"], answer["rejected"]) == (4, [])
    for number, own in enumerate((FIRST[:1], SECOND[:2], THIRD[:1]), start=1):
        assert stored(shards, number) >= set(own)
        assert not stored(shards, number) & set(names) - set(own)


def test_values_state_and_profile_arrive_as_they_were_sent(shards):
    values = {"cpu_pct": 0.1 + 0.2, "mem_pct": None, "latency_ms": 1e-7, "state": "idle", "profile": "cache"}
    assert post(shards.clients[3], record(SECOND[0], **values)).json()["accepted"] == 1
    store, step = shards.daemon(2).store, complete_start() // 300
    server = store.servers[SECOND[0]]
    (sample,) = store.samples_of([server.server_id], step, step).result(5)[server.server_id]
    by_metric = dict(zip(store.metrics, sample.values, strict=True))
    assert (server.profile, sample.state) == ("cache", "idle")
    assert (by_metric["cpu_pct"], by_metric["latency_ms"]) == (0.1 + 0.2, 1e-7)


def test_rejections_of_the_owner_have_the_index_of_the_request(shards):
    limited = shards.daemon(3).store._database.servers
    before, limited._max_servers = limited._max_servers, len(limited.by_name)
    try:
        answer = post(shards.clients[1], record(FIRST[1]), record(), record(THIRD[2])).json()
    finally:
        limited._max_servers = before
    (rejected,) = [each for each in answer["rejected"] if each["value"] == THIRD[2]]
    assert rejected["index"] == 2
    assert "number of servers is at its limit" in rejected["reason"]


def test_remote_write_and_otlp_are_forwarded_too(shards):
    instant = test_remote_write.now_ms()
    series = [fleet_series("cpu_pct", f"{name}:9100", [(instant, 31.5)]) for name in (FIRST[2], SECOND[2], THIRD[1])]
    answer = test_remote_write.send(shards.clients[1], *series, message=test_remote_write.V2)
    assert (answer.status_code, answer.headers[test_remote_write.WRITTEN.format("samples")]) == (204, "3")
    assert SECOND[2] in stored(shards, 2)
    made = request(FIRST[0], test_otlp.memory())
    add_host(made, THIRD[2], test_otlp.memory())
    assert test_otlp.send(shards.clients[2], made).status_code == 200
    assert THIRD[2] in stored(shards, 3)
    counts = shards.daemon(1).ingest
    assert counts.tally.not_stored["remote_write", "wrong_shard"] == 0


def test_a_shard_that_is_down_gives_503_and_the_parts_of_the_others_are_stored(shards):
    shards.links[1, 3].down = True
    late = complete_start(1)
    answer = post(shards.clients[1], record(FIRST[0], late), record(SECOND[0], late), record(THIRD[0], late))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    detail = answer.json()["detail"]
    assert detail.startswith("not stored in whole: shard 3/3 (http://testserver) does not respond: ConnectError")
    assert detail.endswith("; send all of it again")
    shards.links[1, 3].down = False
    time.sleep(1.0)  # requests in between fail at once
    again = post(shards.clients[1], record(FIRST[0], late), record(SECOND[0], late), record(THIRD[0], late))
    assert again.json() == {"accepted": 3, "rejected": []}


def test_a_shard_that_hangs_delays_once_and_for_a_bounded_time(shards):
    shards.links[1, 2].hangs_seconds = 5.0
    started = time.monotonic()
    assert post(shards.clients[1], record(SECOND[0])).status_code == 503
    assert 0.3 < time.monotonic() - started < 2.0
    started = time.monotonic()
    assert post(shards.clients[1], record(SECOND[0])).status_code == 503  # the next one does not wait
    assert time.monotonic() - started < 0.3
    assert post(shards.clients[1], record(FIRST[0])).status_code == 200


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"rejected": 1}', b'{"rejected": [{"index": "x"}]}', b"\x00" * 100, b"[" * 10_000]
)
def test_a_hostile_response_does_not_count_as_stored(shards, answer):
    shards.links[1, 2].answer = answer
    assert post(shards.clients[1], record(SECOND[0])).status_code == 503


def test_a_wrong_list_of_addresses_gives_an_error_and_no_loop(shards):
    shards.links[1, 2].target, right = shards.clients[3], shards.links[1, 2].target
    try:
        answer = post(shards.clients[1], record(SECOND[0]))
    finally:
        shards.links[1, 2].target = right
    assert answer.status_code == 503
    assert "meant for shard 2/3, this is shard 3/3" in answer.json()["detail"]
    assert len(sent_on(shards.links[1, 2])) == 1
    assert not sent_on(shards.links[3, 2])


def test_a_forwarded_record_of_a_third_shard_is_rejected_and_not_sent_on(shards):
    answer = shards.clients[2].post(
        "/api/v1/shard/samples", json={"records": [record(THIRD[0])]}, headers={"X-Fleet-Shard": "2/3"}
    )
    assert answer.json()["rejected"][0]["field"] == "wrong_shard"
    assert not any(sent_on(link) for link in shards.links.values())


def test_forwarding_gives_no_more_rights_than_the_sender_has(tmp_path):
    clients = {digest_of(TOKEN): Client("agent", frozenset({Right.WRITE}))}
    changes = {1: {"clients": clients}}
    headers = {"authorization": f"Bearer {TOKEN.decode()}"}
    with fleet(tmp_path, 2, forward=True, changes=changes) as shards:
        (name,) = names_of(2, 2, 1)
        for cpu, accepted in ((50.0, 1), (60.0, 0), (50.0, 1)):
            body = {"records": [record(name, cpu_pct=cpu)]}
            answer = shards.clients[1].post("/api/v1/metrics", json=body, headers=headers).json()
            assert answer["accepted"] == accepted, answer
