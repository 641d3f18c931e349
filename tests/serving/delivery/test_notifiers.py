"""Delivery of alerts to webhooks."""

import asyncio
import json

import httpx
import pytest

from fleet_forecast.serving.delivery.notifiers import Notifier
from tests.serving.alerting.examples import alert


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
    monkeypatch.setattr("fleet_forecast.serving.delivery.notifiers.QUEUE_ALERTS", 3)

    async def scene():
        notifier = Notifier("http://hook.example")
        notifier.enqueue([alert()] * 5)
        await notifier.close()
        return notifier

    notifier = asyncio.run(scene())
    assert (notifier.dropped, len(notifier._queue)) == (2, 3)
