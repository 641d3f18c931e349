"""The checks before any route: size, host, content type, token."""

import asyncio
import gzip
import json

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from fleet_forecast.serving.http.bounded_body import BoundedBody, WaitingBodies
from fleet_forecast.serving.http.middleware import RequestGuard
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


def test_the_total_size_of_waiting_bodies_is_bounded_and_released(tmp_path):
    async def one_waits_while_another_comes():
        waiting, small = WaitingBodies(100), b"x" * 60
        parts = asyncio.Queue()

        async def slowly():
            return await parts.get()

        first = BoundedBody(slowly, 5.0, 1000, waiting)
        parts.put_nowait({"type": "http.request", "body": small, "more_body": True})
        await first()

        async def at_once():
            return {"type": "http.request", "body": small, "more_body": False}

        second = BoundedBody(at_once, 5.0, 1000, waiting)
        with pytest.raises(HTTPException) as refused:
            await second()
        first.release()
        third = BoundedBody(at_once, 5.0, 1000, waiting)
        await third()
        held = waiting.held_bytes
        third.release()
        return refused.value.status_code, refused.value.headers, held, waiting.held_bytes

    assert asyncio.run(one_waits_while_another_comes()) == (503, {"Retry-After": "1"}, 60, 0)
    with daemon(tmp_path, max_waiting_mib=0.001) as client:  # a single body is always accepted
        assert post(client, *(record(f"ppml{n:04d}") for n in range(100))).json()["accepted"] == 100


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

        guard = RequestGuard(app, Settings(), None, None)
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await guard({"type": "http", "method": "POST", "path": "/x", "headers": headers}, receive, send)

    asyncio.run(scene())
    assert sent == []


def test_another_content_type_or_an_encoding_is_415(client):
    assert client.post("/api/v1/metrics", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    packed = client.post(
        "/api/v1/metrics",
        content=gzip.compress(b'{"records": []}'),
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    )
    assert (packed.status_code, "Content-Encoding" in packed.json()["detail"]) == (415, True)


def test_an_unknown_host_header_is_refused(client):
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/healthz", headers={"host": "localhost:8000"}).status_code == 200
    assert client.get("/healthz", headers={"host": "[::1]:8000"}).status_code == 200


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
