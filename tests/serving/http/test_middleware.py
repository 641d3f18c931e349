"""The checks before any route: size, host, content type, token."""

import asyncio
import json

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from fleet_forecast.serving.access_tokens import AccessTokens
from fleet_forecast.serving.http.bounded_body import BoundedBody, WaitingBodies
from fleet_forecast.serving.http.middleware import RequestGuard
from fleet_forecast.serving.http.unsent_responses import UnsentResponses
from fleet_forecast.serving.monitoring.http_counters import HttpCounters
from fleet_forecast.serving.settings import Settings
from tests.serving.daemon_client import (
    TOKEN,
    daemon,
    post,
    record,
    wait_for,
)


def test_a_body_beyond_the_limit_is_413(tmp_path):
    with daemon(tmp_path, max_body_mib=0.01) as client:
        big = json.dumps({"records": [record() for _ in range(500)]}).encode()
        headers = {"content-type": "application/json"}
        assert client.post("/api/v1/metrics", content=big, headers=headers).status_code == 413
        chunks = (big[start : start + 1000] for start in range(0, len(big), 1000))
        assert client.post("/api/v1/metrics", content=chunks, headers=headers).status_code == 413


def body_of(waiting, *messages, client=""):
    """A BoundedBody that receives the messages, and then nothing."""
    parts = asyncio.Queue()
    for body, more_body in messages:
        parts.put_nowait({"type": "http.request", "body": body, "more_body": more_body})
    return BoundedBody(parts.get, 5.0, 1000, waiting, client)


def test_the_total_size_of_complete_bodies_is_bounded_and_released(tmp_path):
    async def one_waits_while_another_comes():
        waiting, small = WaitingBodies(100), b"x" * 60
        first = body_of(waiting, (small, False))
        await first()
        with pytest.raises(HTTPException) as refused:
            await body_of(waiting, (small, False))()
        first.release()
        third = body_of(waiting, (small, False))
        await third()
        held = waiting.held_bytes
        third.release()
        return refused.value.status_code, refused.value.headers, held, waiting.held_bytes

    assert asyncio.run(one_waits_while_another_comes()) == (503, {"Retry-After": "1"}, 60, 0)
    with daemon(tmp_path, max_waiting_mib=0.001) as client:  # a single body is always accepted
        assert post(client, *(record(f"ppml{n:04d}") for n in range(100))).json()["accepted"] == 100


def test_an_incomplete_body_gives_its_room_to_a_complete_one():
    async def scene():
        waiting = WaitingBodies(100)
        stalled = body_of(waiting, (b"x" * 90, True))
        await stalled()
        rest = asyncio.create_task(stalled())
        await asyncio.sleep(0)
        complete = body_of(waiting, (b"x" * 60, False))
        await complete()
        with pytest.raises(HTTPException) as refused:
            await rest
        return refused.value.status_code, refused.value.headers["connection"], waiting.held_bytes

    assert asyncio.run(scene()) == (503, "close", 60)


def test_the_client_with_the_most_incomplete_bytes_gives_way_first():
    async def scene():
        waiting = WaitingBodies(100)
        modest = body_of(waiting, (b"x" * 20, True), (b"", False), client="a")
        greedy = [body_of(waiting, (b"x" * 30, True), client="b") for _ in range(2)]
        for body in (modest, *greedy):
            await body()
        await body_of(waiting, (b"x" * 40, False), client="c")()
        await modest()
        with pytest.raises(HTTPException):
            await greedy[0]()
        return [body.held_bytes for body in (modest, *greedy)]

    assert asyncio.run(scene()) == [20, 0, 30]


def test_the_oldest_large_response_is_given_up_when_too_much_is_unsent():
    async def scene():
        unsent, taken = UnsentResponses(150_000), bytearray()

        async def not_read(_message):
            await asyncio.Event().wait()

        async def read(message):
            taken.extend(message["body"])

        def message(size):
            return {"type": "http.response.body", "body": b"x" * size}

        stuck = [asyncio.create_task(unsent.send(not_read, message(70_000), 30.0)) for _ in range(2)]
        await asyncio.sleep(0)
        await unsent.send(read, message(80_000), 30.0)
        with pytest.raises(TimeoutError):
            await stuck[0]
        held = unsent.unsent_bytes
        stuck[1].cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        return len(taken), held, unsent.unsent_bytes, unsent.given_up

    assert asyncio.run(scene()) == (80_000, 70_000, 0, 1)


def test_an_aborted_upload_gets_no_response_and_raises_nothing():
    sent = []

    async def scene():
        parts = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(parts)

        async def send(message):
            sent.append(message)

        async def app(scope, receive, _send):
            await Request(scope, receive).body()

        guard = RequestGuard(app, Settings(), AccessTokens(), HttpCounters())
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await guard({"type": "http", "method": "POST", "path": "/x", "headers": headers}, receive, send)

    asyncio.run(scene())
    assert sent == []


def test_another_content_type_or_encoding_is_415(client):
    assert client.post("/api/v1/metrics", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    for encoding in ("br", "deflate", "gzip, gzip"):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        packed = client.post("/api/v1/metrics", content=b"{}", headers=headers)
        assert (packed.status_code, "gzip or zstd" in packed.json()["detail"]) == (415, True)


@pytest.mark.parametrize("path", ["/status", "/metrics", "/api/v1/servers"])
def test_an_unknown_host_header_is_refused(client, path):
    assert client.get(path, headers={"host": "evil.example"}).status_code == 421
    assert client.get(path, headers={"host": "localhost:8000"}).status_code == 200
    assert client.get(path, headers={"host": "[::1]:8000"}).status_code == 200


@pytest.mark.parametrize("host", ["10.244.0.5:8000", "evil.example", ""])
def test_probes_are_answered_whatever_the_host_header(client, host):
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers={"host": host}).status_code in (200, 503)


PATHS = ["/healthz", "/readyz", "/status", "/api/v1/forecasts", "/api/v1/servers/a/forecast", "/openapi.json"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "sent", [None, "Bearer wrong", "Bearer é", "Basic " + TOKEN.decode(), "Bearer " + TOKEN.decode()]
)
def test_with_a_token_everything_but_the_probes_needs_it(tmp_path, path, sent):
    with daemon(tmp_path, token=TOKEN) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        headers = {} if sent is None else {"authorization": sent.encode()}
        status = client.get(path, headers=headers).status_code
    right = sent == "Bearer " + TOKEN.decode()
    assert (status != 401) == (right or path in ("/healthz", "/readyz"))
