"""Background tasks: a failure is logged and counted, and the task restarts."""

import asyncio
import logging
from collections import Counter

from fleet_forecast.serving import background
from fleet_forecast.serving.background import keep_running
from fleet_forecast.serving.delivery.notifiers import Notifier
from fleet_forecast.serving.forecasts.model_manager import ModelManager
from tests.serving.alerting.examples import alert
from tests.serving.daemon_client import daemon, wait_for


def test_a_task_that_fails_is_logged_counted_and_restarted_until_it_is_cancelled(monkeypatch, caplog):
    monkeypatch.setattr(background, "RESTART_SECONDS", 0.0)
    failures, begun = Counter(), []

    async def work():
        begun.append(1)
        if len(begun) < 3:
            raise IndexError("nobody foresaw this")
        await asyncio.Event().wait()

    async def scene():
        task = asyncio.create_task(keep_running("pull", work, failures))
        while len(begun) < 3 and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return task.cancelled()

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(scene())
    assert (len(begun), failures) == (3, {"pull": 2})
    assert all(entry.exc_info and entry.work == "pull" for entry in caplog.records)


def test_the_daemon_continues_after_its_model_watch_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "RESTART_SECONDS", 0.01)
    faults, watch = [RuntimeError("nobody foresaw this")], ModelManager.watch

    async def fails_once(slot):
        if faults:
            raise faults.pop()
        await watch(slot)

    monkeypatch.setattr(ModelManager, "watch", fails_once)
    with daemon(tmp_path) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert 'fleet_background_failures_total{work="model"} 1' in client.get("/metrics").text


def test_a_restarted_notifier_sends_its_queue(monkeypatch):
    monkeypatch.setattr(background, "RESTART_SECONDS", 0.01)
    faults, sent = [OverflowError("nobody foresaw this")], []

    async def post(_delivery, _url, body):
        if faults:
            raise faults.pop()
        sent.append(body)

    monkeypatch.setattr(Notifier, "_post", post)

    async def scene():
        delivery = Notifier("http://hook.example")
        delivery.enqueue([alert()])
        task = asyncio.create_task(keep_running("delivery", delivery.run, Counter()))
        for _ in range(200):
            if sent:
                break
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await delivery.close()

    asyncio.run(scene())
    assert len(sent) == 1
