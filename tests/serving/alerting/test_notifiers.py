"""Events, alerts over HTTP, and their delivery, to the real Alertmanager among others."""

import asyncio
import json
import shutil
import socket
import subprocess
import time
from types import SimpleNamespace

import httpx
import pytest
from starlette.websockets import WebSocketDisconnect

from fleet_forecast.serving.alerting.book import Alert, AlertBook, AlertRules
from fleet_forecast.serving.alerting.notifiers import AlertmanagerDelivery, Delivery
from fleet_forecast.serving.alerting.watch import AlertWatch
from fleet_forecast.serving.monitoring import events
from fleet_forecast.serving.monitoring.events import EventHub, TooManyListenersError, as_server_sent
from tests.serving.alerting.test_book import forecast
from tests.serving.routes.test_routes import complete_start, daemon, forecast_of, post, record, wait_for


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


def test_a_listener_that_lags_is_dropped_and_the_others_are_not():
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


def test_in_a_burst_who_reads_gets_every_event_and_who_is_stuck_is_dropped(monkeypatch):
    monkeypatch.setattr(events, "PATIENCE_SECONDS", 0.1)
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


def test_a_cycle_of_many_alerts_leaves_the_event_loop_to_others_and_reaches_a_listener(tmp_path):
    servers = 300
    snapshots = [
        SimpleNamespace(forecasts={f"ppweb{n:03}": forecast(97, origin, f"ppweb{n:03}") for n in range(servers)})
        for origin in (1, 2)
    ]

    async def scene():
        hub, forecasts = EventHub(), SimpleNamespace(listeners=[], snapshot=None)
        scores = SimpleNamespace(take=lambda _snapshot: None)
        watch = AlertWatch(AlertBook(AlertRules()), scores, forecasts, hub, [], tmp_path / "alerts.json", time.time)
        reader = asyncio.create_task(collect(hub.subscribe(), servers))
        turns_before_all_were_told = 0

        async def take_turns():
            nonlocal turns_before_all_were_told
            while True:
                turns_before_all_were_told += bool(told)
                await asyncio.sleep(0)

        told, publish = [], hub.publish
        hub.publish = lambda *event: told.append(event) or publish(*event)
        other = asyncio.create_task(take_turns())
        for forecasts.snapshot in snapshots:
            await watch._judge()
        other.cancel()
        return len(await asyncio.wait_for(reader, 5.0)), hub.dropped, turns_before_all_were_told

    got, dropped, turns = asyncio.run(scene())
    assert (got, dropped) == (servers, 0)
    assert turns >= servers // events.PORTION_EVENTS - 1


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


def test_the_websocket_tells_of_cycles(tmp_path):
    with daemon(tmp_path) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        with client.websocket_connect("/ws/predictions") as socket_:
            post(client, record())
            told = json.loads(socket_.receive_text())
    assert told["event"] == "cycle"
    assert told["data"]["servers"] in (0, 1)


def test_a_websocket_from_another_origin_is_refused(tmp_path):
    with (
        daemon(tmp_path) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/ws/predictions", headers={"origin": "http://evil.example"}) as socket_,
    ):
        socket_.receive_text()


def test_an_alert_over_http_begins_with_the_second_forecast(tmp_path):
    with daemon(tmp_path) as client:
        post(client, record("ppweb001", seconds=complete_start(1), cpu_pct=99.0))
        forecast_of(client, "ppweb001")
        wait_for(lambda: client.get("/api/v1/risks").json()["risks"])
        assert client.get("/api/v1/alerts").json() == {"alerts": []}
        post(client, record("ppweb001", cpu_pct=99.0))
        (alert,) = wait_for(lambda: client.get("/alerts/active").json()["alerts"])
        assert (alert["server_name"], alert["metric"], alert["threshold"]) == ("ppweb001", "cpu_pct", 90.0)
        assert alert["state"] == "firing"
        assert "web_api" in alert["sentence"]
        (risk, *_) = client.get("/api/v1/risks").json()["risks"]
        assert (risk["server_name"], risk["metric"]) == ("ppweb001", "cpu_pct")
        assert risk["probability"] > 0.9
        assert client.get("/api/v1/alerts", params={"profile": "database"}).json() == {"alerts": []}
        text = client.get("/metrics").text
        assert 'fleet_alerts_firing{metric="cpu_pct"} 1' in text
        assert 'fleet_breach_probability{server="ppweb001",profile="web_api",metric="cpu_pct",horizon="1h"}' in text
    with daemon(tmp_path) as client:  # what fired before a restart still fires
        wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"])


# --- delivery -------------------------------------------------------------------------------------------------------


def alert(ended=None, name="ppweb001"):
    book = AlertBook(AlertRules())
    for origin in (1, 2):
        changed = book.judge([forecast(97, origin, name)], time.time())
    (found,) = changed
    return found if ended is None else Alert(**{**vars(found), "ended_seconds": ended})


async def run_until_sent(delivery: Delivery, alerts: int):
    task = asyncio.create_task(delivery.run())
    while delivery.sent < alerts and not task.done():
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await delivery.close()


def test_a_webhook_is_tried_again_until_it_takes_each_alert_once():
    answers = iter([httpx.Response(500), httpx.Response(302, headers={"location": "http://elsewhere"})])
    bodies = []

    def handle(request):
        answer = next(answers, None)
        if answer is None:
            bodies.append(json.loads(request.content))
            return httpx.Response(200)
        return answer

    delivery = Delivery("http://hook.example/secret", httpx.MockTransport(handle))
    delivery.take([alert(), alert(ended=5.0)])
    asyncio.run(run_until_sent(delivery, 2))
    assert [each["state"] for each in bodies[0]["alerts"]] == ["firing", "resolved"]
    assert (len(bodies), delivery.failures) == (1, 2)


@pytest.mark.parametrize("problem", [OSError("too many open files"), UnicodeError("label empty or too long")])
def test_a_delivery_outlives_what_the_http_client_lets_through(problem):
    faults = [problem]

    def handle(_request):
        if faults:
            raise faults.pop()
        return httpx.Response(200)

    delivery = Delivery("http://hook.example", httpx.MockTransport(handle))
    delivery.take([alert()])
    asyncio.run(run_until_sent(delivery, 1))
    assert (delivery.sent, delivery.failures) == (1, 1)


def test_the_queue_is_bounded(monkeypatch):
    monkeypatch.setattr("fleet_forecast.serving.alerting.notifiers.QUEUE_ALERTS", 3)

    async def scene():
        delivery = Delivery("http://hook.example")
        delivery.take([alert()] * 5)
        await delivery.close()
        return delivery

    delivery = asyncio.run(scene())
    assert (delivery.dropped, len(delivery._changed)) == (2, 3)


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class RealAlertmanager:
    def __init__(self, folder):
        self.folder, self.address = folder, free_address()
        self.url = f"http://{self.address}"
        self.hook_address = free_address()
        (folder / "am.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")

    def start(self):
        flags = ["--config.file=am.yml", "--storage.path=data", f"--web.listen-address={self.address}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["prometheus-alertmanager", *flags, "--cluster.listen-address="],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        wait_for(self.ready, 20)

    def ready(self):
        try:
            return httpx.get(self.url + "/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self):
        self.process.terminate()
        self.process.wait(10)

    def alerts(self):
        return httpx.get(self.url + "/api/v2/alerts").json()


@pytest.mark.skipif(shutil.which("prometheus-alertmanager") is None, reason="prometheus-alertmanager is not installed")
def test_the_real_alertmanager_keeps_resolves_and_survives_its_restart(tmp_path):
    manager = RealAlertmanager(tmp_path)
    manager.start()
    firing = [alert()]

    async def scene():
        delivery = AlertmanagerDelivery(manager.url, lambda: list(firing), 0.3)
        task = asyncio.create_task(delivery.run())
        delivery.take(firing)

        async def until(condition):
            deadline = time.monotonic() + 15
            while not await asyncio.to_thread(condition):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)

        await until(lambda: len(manager.alerts()) == 1)
        (before,) = manager.alerts()
        await asyncio.sleep(2.0)  # longer than the end it was given first: it stays because it is told again
        (stays,) = manager.alerts()
        await asyncio.to_thread(manager.stop)
        await asyncio.to_thread(manager.start)
        await until(lambda: len(manager.alerts()) == 1)
        (after,) = manager.alerts()
        ended = Alert(**{**vars(firing.pop()), "ended_seconds": time.time()})
        delivery.take([ended])
        await until(lambda: manager.alerts() == [])
        await until(lambda: delivery.failures >= 0 and not delivery._changed)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await delivery.close()
        return before, stays, after

    try:
        before, stays, after = asyncio.run(scene())
    finally:
        manager.stop()
    assert before["labels"] == {
        "alertname": "FleetForecastBreach",
        "server": "ppweb001",
        "profile": "web_api",
        "metric": "cpu_pct",
    }
    assert before["status"]["state"] in ("active", "unprocessed")
    assert "CPU is at 97 %" in before["annotations"]["summary"]
    assert before["fingerprint"] == stays["fingerprint"] == after["fingerprint"]
    assert before["startsAt"] == stays["startsAt"] == after["startsAt"]


def test_an_alert_that_ended_and_began_again_is_not_told_as_ended():
    bodies = []

    async def scene():
        transport = httpx.MockTransport(
            lambda request: bodies.append(json.loads(request.content)) or httpx.Response(200)
        )
        again = alert()
        delivery = AlertmanagerDelivery("http://am", lambda: [again], 60.0, transport)
        delivery.take([alert(ended=time.time()), again])
        await delivery._deliver()
        await delivery.close()

    asyncio.run(scene())
    ((told,),) = bodies
    assert told["endsAt"] > told["startsAt"]
