"""Event streams: server-sent events and the websocket."""

import asyncio
import json

import pytest
from starlette.websockets import WebSocketDisconnect

from fleet_forecast.serving.monitoring import events
from fleet_forecast.serving.monitoring.events import EventHub, TooManyListenersError, as_server_sent
from tests.serving.daemon_client import daemon, post, record, wait_for


def collect(stream, count):
    async def take():
        return [await anext(stream) for _ in range(count)]

    return take()


def test_every_listener_gets_every_event():
    async def scene():
        hub = EventHub()
        first, second = hub.subscribe(), hub.subscribe()
        hub.publish("cycle", {"servers": 3})
        return await collect(first, 1), await collect(second, 1)

    first, second = asyncio.run(scene())
    assert first == second == [("cycle", b'{"servers":3}')]
    assert as_server_sent(first[0]) == b'event: cycle\ndata: {"servers":3}\n\n'


def test_a_slow_listener_is_dropped_and_the_others_are_not():
    async def scene():
        hub = EventHub()
        slow, quick = hub.subscribe(), hub.subscribe()
        got = 0
        for number in range(events.QUEUE_EVENTS + 5):
            hub.publish("cycle", number)
            await anext(quick)
            got += 1
        rest = [event async for event in slow]
        return hub.dropped, hub.listeners, got, rest

    assert asyncio.run(scene()) == (1, 1, events.QUEUE_EVENTS + 5, [])


def test_in_a_burst_a_reader_gets_every_event_and_a_stuck_listener_is_dropped(monkeypatch):
    monkeypatch.setattr(events, "MAX_WAIT_SECONDS", 0.1)
    burst = 20 * events.QUEUE_EVENTS

    async def scene():
        hub = EventHub()
        stuck, reading, slower = hub.subscribe(), hub.subscribe(), hub.subscribe()

        async def read_with_pauses():
            got = []
            for _ in range(burst):
                got.append(await anext(slower))
                if len(got) % 200 == 0:
                    await asyncio.sleep(0.002)
            return got

        readers = [asyncio.create_task(collect(reading, burst)), asyncio.create_task(read_with_pauses())]
        await asyncio.sleep(0)
        await hub.publish_many("alert", range(burst))
        got = await asyncio.wait_for(asyncio.gather(*readers), 5.0)
        return hub.dropped, got, [event async for event in stuck]

    dropped, got, rest = asyncio.run(scene())
    assert (dropped, rest) == (1, [])
    assert got == [[("alert", b"%d" % number) for number in range(burst)]] * 2


def test_streams_are_bounded_in_number_and_end_with_the_daemon():
    async def scene():
        hub = EventHub()
        streams = [hub.subscribe() for _ in range(events.MAX_LISTENERS)]
        with pytest.raises(TooManyListenersError):
            hub.subscribe()
        hub.close()
        return [[event async for event in stream] for stream in streams]

    assert asyncio.run(scene()) == [[]] * events.MAX_LISTENERS


def test_a_quiet_stream_has_a_heartbeat(monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.01)

    async def scene():
        return await collect(EventHub().subscribe(), 2)

    assert asyncio.run(scene()) == [None, None]
    assert as_server_sent(None).startswith(b":")


def test_the_websocket_sends_cycles(tmp_path):
    with daemon(tmp_path) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        with client.websocket_connect("/ws/predictions") as socket_:
            post(client, record())
            message = json.loads(socket_.receive_text())
    assert message["event"] == "cycle"
    assert message["data"]["servers"] in (0, 1)


def test_a_websocket_from_another_origin_is_refused(tmp_path):
    with (
        daemon(tmp_path) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/ws/predictions", headers={"origin": "http://evil.example"}) as socket_,
    ):
        socket_.receive_text()
