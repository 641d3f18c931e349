"""Delivery of alerts to the Alertmanager, also to the real one: labels, severities, ends."""

import asyncio
import json
import shutil
import socket
import subprocess
import time
from dataclasses import replace

import httpx
import pytest

from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.delivery.alertmanager import AlertmanagerFormat, AlertmanagerNotifier
from tests.serving.alerting.examples import alert
from tests.serving.daemon_client import wait_for

FORM = AlertmanagerFormat(AlertBook(AlertRules()), "https://forecasts.example/")


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
def test_the_real_alertmanager_has_both_severities_in_turn_and_survives_its_restart(tmp_path):
    manager = RealAlertmanager(tmp_path)
    manager.start()
    firing = [alert()]

    async def scene():
        notifier = AlertmanagerNotifier(manager.url, lambda: list(firing), 0.3, FORM)
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
        firing.append(replace(firing.pop(), severity="watch"))
        await until(lambda: [each["labels"]["severity"] for each in manager.alerts()] == ["watch"])
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
        "severity": "page",
        "reason": "breach",
    }
    assert before["generatorURL"] == "https://forecasts.example/#ppweb001"
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
        notifier = AlertmanagerNotifier("http://am", lambda: [again], 60.0, FORM, transport)
        notifier.enqueue([alert(ended=time.time()), again])
        await notifier._deliver()
        await notifier.close()

    asyncio.run(scene())
    ((sent,),) = bodies
    assert sent["endsAt"] > sent["startsAt"]


def test_labels_have_the_names_of_the_rules_and_one_for_each_reason():
    names = {"server": ("server", "instance"), "metric": ("signal",)}
    form = AlertmanagerFormat(AlertBook(AlertRules(labels={"team": "web"}, label_names=names)), None)
    fields = form.fields(replace(alert(), reason="departure", severity="watch"), 5.0)
    assert fields["labels"] == {
        "alertname": "FleetForecastDeparture",
        "server": "ppweb001",
        "instance": "ppweb001",
        "profile": "web_api",
        "signal": "cpu_pct",
        "severity": "watch",
        "reason": "departure",
        "team": "web",
    }
    assert "generatorURL" not in fields


def test_an_alert_that_is_silenced_or_changes_its_severity_is_ended_once_under_its_old_labels():
    bodies, firing = [], [alert()]

    async def scene():
        transport = httpx.MockTransport(
            lambda request: bodies.append(json.loads(request.content)) or httpx.Response(200)
        )
        notifier = AlertmanagerNotifier("http://am", lambda: list(firing), 60.0, FORM, transport)
        await notifier._deliver()
        firing[:] = [replace(firing[0], severity="watch")]
        await notifier._deliver()
        firing.clear()
        await notifier._deliver()
        await notifier._deliver()
        await notifier.close()

    asyncio.run(scene())
    now = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(time.time() + 5))
    sent = [[(each["labels"]["severity"], each["endsAt"] > now + ":59") for each in body] for body in bodies]
    assert sent == [[("page", True)], [("watch", True), ("page", False)], [("watch", False)]]
