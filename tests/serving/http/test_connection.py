"""The limits of one connection: bytes outside a body, idle time, unread responses."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from fleet_forecast.serving.http.connection import MAX_PIPELINED, make_protocol
from fleet_forecast.serving.http.connection_table import ConnectionTable, State, client_address
from fleet_forecast.serving.http.websocket import make_websocket
from fleet_forecast.serving.monitoring.http_counters import HttpCounters
from tests.reliability.hostile import closed_within
from tests.serving.daemon_client import wait_for

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = GET + b"Transfer-Encoding: chunked\r\n\r\n"
BIG = bytes(24 << 20)  # more than the kernel holds for a client


async def answer_at_once(_scope, _receive, send, body=b"ok"):
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer_big(scope, receive, send):
    await answer_at_once(scope, receive, send, BIG)


async def count_body(scope, receive, send):
    """Respond with the size of the body and the names of the headers, when the body is complete."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    names = b",".join(name for name, _ in scope["headers"])
    await answer_at_once(scope, receive, send, b"%d %s" % (size, names))


@contextlib.contextmanager
def serving(app, keep_alive=30.0, body_seconds=30.0, most=100):
    """A server of `app` in a thread: a function that connects and sends, and the set of open connections."""
    table = ConnectionTable(most, most, HttpCounters())
    config = uvicorn.Config(
        app,
        http=make_protocol(30.0, body_seconds, table),
        ws=make_websocket(body_seconds, table),
        loop="asyncio",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        stack.callback(thread.join)
        stack.callback(setattr, server, "should_exit", True)
        wait_for(lambda: server.started)

        def connected(sent, receive_buffer=None):
            client = stack.enter_context(socket.socket())
            if receive_buffer is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            client.settimeout(10)
            client.connect(listening.getsockname())
            client.sendall(sent)
            return client

        yield connected, server.server_state.connections


def parse_response(client):
    """Status line, headers and the short body of a response."""
    got = b""
    while not got.partition(b"\r\n\r\n")[2]:
        piece = client.recv(65536)
        assert piece, "closed without an answer"
        got += piece
    return got


def bytes_taken(client, piece, most=32 << 20):
    """Bytes of endless `piece`s that the server reads before it closes the connection."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            client.sendall(piece)
            sent += len(piece)
    return sent


@pytest.mark.parametrize("piece", [b"X-A: " + b"a" * 8000 + b"\r\n", b"a" * 8000], ids=["many", "one"])
@pytest.mark.parametrize("app", [answer_at_once, count_body])
def test_endless_trailers_are_cut_off(app, piece):
    with serving(app) as (connected, _):
        client = connected(CHUNKED)
        if app is answer_at_once:
            parse_response(client)
        client.sendall(b"0\r\nX-B: ")
        assert bytes_taken(client, piece) < 32 << 20


def test_a_trailer_is_not_a_header_and_the_connection_is_kept():
    with serving(count_body) as (connected, _):
        client = connected(CHUNKED)
        for _ in range(2):
            client.sendall(b"2\r\nab\r\n0\r\nX-Trailer: 1\r\n\r\n")
            assert parse_response(client).endswith(b"\r\n\r\n2 host,transfer-encoding")
            client.sendall(CHUNKED)


def test_a_body_in_tiny_chunks_is_received_completely():
    with serving(count_body) as (connected, _):
        client = connected(CHUNKED + b"1\r\n \r\n" * 10_000 + b"0\r\n\r\n")
        assert b"\r\n\r\n10000 " in parse_response(client)


def test_a_body_in_too_many_tiny_chunks_is_refused():
    with serving(count_body) as (connected, connections):
        client = connected(CHUNKED)
        assert bytes_taken(client, b"1\r\n \r\n" * 10_000) < 16 << 20
        wait_for(lambda: not connections, 5.0)


def test_a_body_after_its_response_is_not_read_on():
    with serving(answer_at_once) as (connected, connections):
        client = connected(GET + b"Content-Length: 100000000\r\n\r\n")
        parse_response(client)
        assert bytes_taken(client, b"x" * 8000) < 16 << 20  # what the kernel holds
        wait_for(lambda: not connections, 5.0)


@pytest.mark.parametrize(("count", "answered"), [(MAX_PIPELINED, True), (10_000, False)])
def test_few_pipelined_requests_are_answered_and_many_close_the_connection(count, answered):
    started = []

    async def app(scope, receive, send):
        started.append(scope["path"])
        await answer_at_once(scope, receive, send)

    with serving(app) as (connected, connections):
        client = connected((GET + b"\r\n") * count)
        if answered:
            wait_for(lambda: len(started) == count)
            return
        assert closed_within(client, 5.0)
        wait_for(lambda: not connections, 5.0)
        assert len(started) <= MAX_PIPELINED + 1


def test_a_request_with_another_one_behind_it_learns_that_its_client_is_gone():
    ended = []

    async def stream(_scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        received = {"type": ""}
        while received["type"] != "http.disconnect":
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    received = await receive()
        ended.append(True)

    with serving(stream) as (connected, _):
        client = connected((GET + b"\r\n") * 2)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.close()
        wait_for(lambda: ended, 5.0)


UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
BAD_UPGRADES = {
    "another method": (GET.replace(b"GET", b"POST") + UPGRADE + KEY + b"Content-Length: 300\r\n\r\nabc"),
    "a body": GET + UPGRADE + KEY + b"Content-Length: 300\r\n\r\nabc",
    "chunks": GET + UPGRADE + KEY + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "no key": GET + UPGRADE + b"\r\n",
    "another version": GET + UPGRADE.replace(b"13", b"12") + KEY + b"\r\n",
    "300 headers": GET + UPGRADE + KEY + b"X: a\r\n" * 300 + b"\r\n",
    "a long header": GET + UPGRADE + KEY + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", BAD_UPGRADES.values(), ids=BAD_UPGRADES)
def test_an_upgrade_that_cannot_succeed_is_answered_and_closed(sent):
    with serving(answer_at_once, keep_alive=0.5, body_seconds=0.5) as (connected, connections):
        client = connected(sent)
        assert client.recv(65536).startswith(b"HTTP/1.1 ")
        wait_for(lambda: not connections, 5.0)


def test_a_websocket_whose_client_never_takes_the_close_is_aborted():
    async def app(scope, _receive, send):
        await send({"type": "websocket.accept"})
        for _ in range(400):  # more than the kernel and the transport hold
            try:
                async with asyncio.timeout(0.2):
                    await send({"type": "websocket.send", "bytes": bytes(65536)})
            except TimeoutError:
                return

    with serving(app, body_seconds=0.5) as (connected, connections):
        client = connected(GET + UPGRADE + KEY + b"\r\n", receive_buffer=4096)
        assert client.recv(12) == b"HTTP/1.1 101"
        wait_for(lambda: not connections, 10.0)


def test_at_the_limit_the_oldest_incomplete_connection_is_closed_for_a_new_one():
    with serving(answer_at_once, most=3) as (connected, _):
        answered = connected(GET + b"\r\n")
        parse_response(answered)
        incomplete = [connected(GET) for _ in range(2)]
        time.sleep(0.2)
        new = connected(GET + b"\r\n")
        assert parse_response(new).startswith(b"HTTP/1.1 200")
        assert closed_within(incomplete[0], 2.0)
        assert not closed_within(incomplete[1], 0.3)
        answered.sendall(GET + b"\r\n")
        assert parse_response(answered).startswith(b"HTTP/1.1 200")


class FakeTransport:
    aborted = False

    def abort(self):
        self.aborted = True


def test_connections_of_one_address_and_of_all_are_limited_and_requests_in_progress_stay():
    counters = HttpCounters()
    table = ConnectionTable(3, 2, counters)
    own = [FakeTransport() for _ in range(3)]
    assert [table.add(each, "10.0.0.1") for each in own] == [True, True, True]
    assert [each.aborted for each in own] == [True, False, False]
    for each in own[1:]:
        table.set_state(each, State.BUSY)
    refused, other = FakeTransport(), FakeTransport()
    assert not table.add(refused, "10.0.0.1")
    assert table.add(other, "10.0.0.2")
    assert table.add(FakeTransport(), "10.0.0.3")  # the third address's connection replaces the second's
    assert [each.aborted for each in (*own[1:], refused, other)] == [False, False, True, True]
    assert counters.closed == {"address": 2, "total": 1}


def test_addresses_of_one_ipv6_network_are_one_client():
    assert client_address("2001:db8::1") == client_address("2001:db8::ffff:1")
    assert client_address("2001:db8:0:1::1") != client_address("2001:db8::1")
    assert client_address("fe80::1%eth0") == client_address("fe80::2")
    assert client_address("10.0.0.1") == "10.0.0.1"


@pytest.mark.parametrize(
    ("limit", "request_text", "later"),
    [
        ({"keep_alive": 0.5}, GET + b"\r\n", b"\r\n"),
        ({"body_seconds": 0.5}, GET + b"Content-Length: 1000000\r\n\r\n", b"x"),
    ],
    ids=["bytes that begin no request", "a body that never ends"],
)
def test_data_after_a_response_does_not_keep_a_connection(limit, request_text, later):
    with serving(answer_at_once, **limit) as (connected, connections):
        client = connected(request_text)
        parse_response(client)
        client.sendall(later)
        wait_for(lambda: not connections, 5.0)


def test_a_connection_is_kept_when_a_body_ends_after_its_response():
    with serving(answer_at_once, body_seconds=0.4) as (connected, _):
        client = connected(GET + b"Content-Length: 1\r\n\r\n")
        parse_response(client)
        client.sendall(b"x")
        time.sleep(0.8)
        client.sendall(GET + b"\r\n")
        assert parse_response(client).startswith(b"HTTP/1.1 200 ")


def test_a_websocket_on_a_kept_connection_is_not_closed_by_the_timers_of_requests():
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await answer_at_once(scope, receive, send)
            return
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    with serving(app, keep_alive=0.3, body_seconds=0.3) as (connected, _):
        client = connected(GET + b"\r\n")
        parse_response(client)
        client.sendall(GET + upgrade + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 101 ")
        assert not closed_within(client, 1.0)


@pytest.mark.parametrize("ending", [b"\r\n", b"Connection: close\r\n\r\n"], ids=["kept", "closed"])
def test_a_client_that_reads_nothing_is_disconnected(ending):
    with serving(answer_big, body_seconds=0.5) as (connected, connections):
        client = connected(GET + ending)
        assert client.recv(10)
        wait_for(lambda: not connections, 5.0)


@pytest.mark.parametrize("ending", [b"\r\n", b"Connection: close\r\n\r\n"], ids=["kept", "closed"])
def test_a_slow_client_that_reads_gets_the_complete_response(ending):
    with serving(answer_big, keep_alive=0.6, body_seconds=0.6) as (connected, _):
        client = connected(GET + ending, receive_buffer=65536)
        started, got = time.monotonic(), 0
        while piece := client.recv(65536):
            got += len(piece)
            slow_part = min(got, 4 << 20)  # 2 s of it; so slow that the kernel asks for more less often than in 0.6 s
            time.sleep(max(0.0, started + slow_part / (2 << 20) - time.monotonic()))
        assert got > len(BIG)
