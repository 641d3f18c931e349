"""Delivery of alerts to webhooks and to the real Alertmanager."""

import asyncio
import json
import shutil
import socket
import subprocess
import time
from dataclasses import replace

import httpx
import pytest

from fleet_forecast.serving.alerting.notifiers import AlertmanagerNotifier, Notifier
from tests.serving.alerting.examples import alert
from tests.serving.daemon_client import wait_for


async def run_until_sent(notifier: Notifier, alerts: int):
    task = asyncio.create_task(notifier.run())
    while notifier.sent < alerts and not task.done():
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await notifier.close()


def test_a_failed_webhook_is_retried_and_gets_each_alert_once():
    responses = iter([httpx.Response(500), httpx.Response(302, headers={"location": "http://elsewhere"})])
    bodies = []

    def handle(request):
        response = next(responses, None)
        if response is None:
            bodies.append(json.loads(request.content))
            return httpx.Response(200)
        return response

    notifier = Notifier("http://hook.example/secret", httpx.MockTransport(handle))
    notifier.enqueue([alert(), alert(ended=5.0)])
    asyncio.run(run_until_sent(notifier, 2))
    assert [each["state"] for each in bodies[0]["alerts"]] == ["firing", "resolved"]
    assert (len(bodies), notifier.failures) == (1, 2)


@pytest.mark.parametrize("problem", [OSError("too many open files"), UnicodeError("label empty or too long")])
def test_a_notifier_goes_on_after_errors_that_the_http_client_does_not_wrap(problem):
    faults = [problem]

    def handle(_request):
        if faults:
            raise faults.pop()
        return httpx.Response(200)

    notifier = Notifier("http://hook.example", httpx.MockTransport(handle))
    notifier.enqueue([alert()])
    asyncio.run(run_until_sent(notifier, 1))
    assert (notifier.sent, notifier.failures) == (1, 1)


def test_the_queue_is_bounded(monkeypatch):
    monkeypatch.setattr("fleet_forecast.serving.alerting.notifiers.QUEUE_ALERTS", 3)

    async def scene():
        notifier = Notifier("http://hook.example")
        notifier.enqueue([alert()] * 5)
        await notifier.close()
        return notifier

    notifier = asyncio.run(scene())
    assert (notifier.dropped, len(notifier._queue)) == (2, 3)


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
        notifier = AlertmanagerNotifier(manager.url, lambda: list(firing), 0.3)
        task = asyncio.create_task(notifier.run())
        notifier.enqueue(firing)

        async def until(condition):
            deadline = time.monotonic() + 15
            while not await asyncio.to_thread(condition):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)

        await until(lambda: len(manager.alerts()) == 1)
        (before,) = manager.alerts()
        await asyncio.sleep(2.0)  # longer than its first end: it stays because it is sent again
        (stays,) = manager.alerts()
        await asyncio.to_thread(manager.stop)
        await asyncio.to_thread(manager.start)
        await until(lambda: len(manager.alerts()) == 1)
        (after,) = manager.alerts()
        ended = replace(firing.pop(), ended_seconds=time.time())
        notifier.enqueue([ended])
        await until(lambda: manager.alerts() == [])
        await until(lambda: notifier.failures >= 0 and not notifier._queue)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await notifier.close()
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


def test_an_alert_that_ended_and_began_again_is_sent_as_firing():
    bodies = []

    async def scene():
        transport = httpx.MockTransport(
            lambda request: bodies.append(json.loads(request.content)) or httpx.Response(200)
        )
        again = alert()
        notifier = AlertmanagerNotifier("http://am", lambda: [again], 60.0, transport)
        notifier.enqueue([alert(ended=time.time()), again])
        await notifier._deliver()
        await notifier.close()

    asyncio.run(scene())
    ((sent,),) = bodies
    assert sent["endsAt"] > sent["startsAt"]
