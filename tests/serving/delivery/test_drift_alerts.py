"""Alerts on the model: one for each profile of the advice, until its reasons end; silences, shadow mode, receivers."""

import asyncio
from types import SimpleNamespace

import pytest

from fleet_forecast.drift.advice import Reason
from fleet_forecast.serving.alerting.alert import as_document
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.delivery.alertmanager import AlertmanagerFormat
from fleet_forecast.serving.delivery.drift_alerts import DriftAlerts
from fleet_forecast.serving.delivery.outbox import Outbox
from fleet_forecast.serving.monitoring.drift_loop import DriftLoop
from fleet_forecast.serving.monitoring.drift_monitor import Advice

SINCE, NOW = 1_796_000_000.0, 1_796_003_600.0
WORSE, NEW = Reason("database", "database is worse"), Reason("mainframe", "mainframe is new")


class Receiver:
    def __init__(self):
        self.got = []

    def enqueue(self, alerts):
        self.got += alerts

    def taken(self):
        taken, self.got = self.got, []
        return taken


@pytest.fixture
def scene():
    """silenced: profiles under a silence."""
    found = SimpleNamespace(silenced=set(), receiver=Receiver())
    silences = SimpleNamespace(silenced_now=lambda: lambda server, profile: (server, profile) in found.silenced)
    found.outbox = Outbox(AlertBook(AlertRules()), silences, shadow=False)
    found.alerts = DriftAlerts(found.outbox, [found.receiver], lambda: NOW)
    return found


def test_an_alert_for_each_profile_begins_once_and_ends_with_its_reasons(scene):
    advice = Advice((WORSE, NEW), True, since_seconds=SINCE)
    scene.alerts.on_advice(advice)
    scene.alerts.on_advice(advice)
    database, mainframe = scene.receiver.taken()
    assert [(each.profile, each.severity, each.reason) for each in (database, mainframe)] == [
        ("database", "watch", "drift"),
        ("mainframe", "watch", "drift"),
    ]
    assert (database.sentence, database.started_seconds, database.state) == ("database is worse", SINCE, "firing")
    scene.alerts.on_advice(Advice((WORSE,), True, since_seconds=SINCE))
    (ended,) = scene.receiver.taken()
    assert (ended.profile, ended.state, ended.started_seconds, ended.ended_seconds) == (
        "mainframe",
        "resolved",
        SINCE,
        NOW,
    )
    assert ended.sentence.startswith("mainframe is new: no longer a reason to train again")
    assert [alert.profile for alert in scene.alerts.firing()] == ["database"]
    assert as_document(database)["server_name"] == ""


def test_a_text_that_changes_and_a_second_reason_of_a_profile_are_the_same_alert(scene):
    scene.alerts.on_advice(Advice((WORSE,), True, since_seconds=SINCE))
    scene.receiver.taken()
    scene.alerts.on_advice(Advice((WORSE, Reason("database", "and more")), True, since_seconds=SINCE + 1))
    assert scene.receiver.taken() == []
    (alert,) = scene.alerts.firing()
    assert (alert.sentence, alert.started_seconds) == ("database is worse; and more", SINCE)


def test_a_silence_of_the_profile_and_shadow_mode_hold_an_alert_back(scene):
    scene.silenced.add(("", "database"))
    scene.alerts.on_advice(Advice((WORSE, NEW), True, since_seconds=SINCE))
    assert [alert.profile for alert in scene.receiver.taken()] == ["mainframe"]
    scene.silenced.clear()
    scene.alerts.on_advice(Advice((WORSE, NEW), True, since_seconds=SINCE))
    assert [alert.profile for alert in scene.receiver.taken()] == ["database"]
    scene.outbox.shadow = True
    assert scene.alerts.firing() == []


def test_the_alertmanager_gets_labels_without_server_and_metric_and_a_link_to_the_model(scene):
    scene.alerts.on_advice(Advice((WORSE,), True, since_seconds=SINCE))
    form = AlertmanagerFormat(AlertBook(AlertRules()), "https://forecasts.example/")
    fields = form.fields(scene.alerts.firing()[0], NOW + 240)
    assert fields["labels"] == {
        "alertname": "FleetForecastDrift",
        "profile": "database",
        "severity": "watch",
        "reason": "drift",
    }
    assert fields["annotations"] == {"summary": "database is worse"}
    assert fields["generatorURL"] == "https://forecasts.example/#/model"


def test_the_loop_passes_each_advice_on_and_publishes_a_change_only():
    advices = [Advice((WORSE,)), Advice((WORSE,)), Advice()]
    monitor = SimpleNamespace(advice=Advice(), is_due=lambda _: True)
    published, passed = [], []

    async def on_request(update, snapshot, now):
        monitor.advice = advices.pop(0)

    monitor.update = None
    forecasts = SimpleNamespace(listeners=[], snapshot=None, on_request=on_request)
    events = SimpleNamespace(publish=lambda kind, fields: published.append((kind, fields["reasons"])))

    async def cycles():
        loop = DriftLoop(monitor, forecasts, events, lambda: NOW)
        loop.listeners.append(passed.append)
        task = asyncio.create_task(loop.run())
        for _ in range(3):
            forecasts.listeners[0](None)
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(cycles())
    assert [advice.reasons for advice in passed] == [(WORSE,), (WORSE,), ()]
    assert published == [("advice", ["database is worse"]), ("advice", [])]
