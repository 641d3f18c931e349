"""The alert loop, and alerts over HTTP."""

import asyncio
import time
from types import SimpleNamespace

from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.delivery.alert_loop import AlertLoop
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.monitoring import events
from fleet_forecast.serving.monitoring.events import EventHub
from fleet_forecast.serving.monitoring.scores import ForecastScores
from tests.serving.alerting.examples import STEP, forecast
from tests.serving.daemon_client import complete_start, daemon, forecast_of, post, record, wait_for
from tests.serving.delivery.scene import sinks
from tests.serving.monitoring.test_events import collect


def test_a_cycle_of_many_alerts_leaves_the_event_loop_to_others_and_reaches_a_listener(tmp_path):
    servers = 300
    snapshots = [
        FleetSnapshot({f"ppweb{n:03}": forecast(97, origin, f"ppweb{n:03}") for n in range(servers)}, origin * STEP)
        for origin in (1, 2)
    ]

    async def scene():
        hub, forecasts = EventHub(), SimpleNamespace(listeners=[], snapshot=None)
        book = AlertBook(AlertRules())
        alert_loop = AlertLoop(book, ForecastScores(), forecasts, sinks(book, tmp_path, events=hub), time.time)
        reader = asyncio.create_task(collect(hub.subscribe(), servers))
        turns_before_the_last_event = 0

        async def take_turns():
            nonlocal turns_before_the_last_event
            while True:
                turns_before_the_last_event += bool(sent)
                await asyncio.sleep(0)

        sent, publish = [], hub.publish
        hub.publish = lambda *event: sent.append(event) or publish(*event)
        other = asyncio.create_task(take_turns())
        for forecasts.snapshot in snapshots:
            await alert_loop._update()
        other.cancel()
        return len(await asyncio.wait_for(reader, 5.0)), hub.dropped, turns_before_the_last_event

    got, dropped, turns = asyncio.run(scene())
    assert (got, dropped) == (servers, 0)
    assert turns >= servers // events.BATCH_EVENTS - 1


def test_an_alert_over_http_begins_with_the_second_forecast(tmp_path):
    with daemon(tmp_path) as client:
        post(client, record("ppweb001", seconds=complete_start(1), cpu_pct=99.0))
        forecast_of(client, "ppweb001")
        wait_for(lambda: client.get("/api/v1/risks").json()["risks"])
        assert client.get("/api/v1/alerts").json() == {"alerts": [], "next": None}
        post(client, record("ppweb001", cpu_pct=99.0))
        (alert,) = wait_for(lambda: client.get("/alerts/active").json()["alerts"])
        assert (alert["server_name"], alert["metric"], alert["threshold"]) == ("ppweb001", "cpu_pct", 90.0)
        assert alert["state"] == "firing"
        assert "web_api" in alert["sentence"]
        (risk, *_) = client.get("/api/v1/risks").json()["risks"]
        assert (risk["server_name"], risk["metric"]) == ("ppweb001", "cpu_pct")
        assert risk["probability"] > 0.9
        assert client.get("/api/v1/alerts", params={"profile": "database"}).json() == {"alerts": [], "next": None}
        text = client.get("/metrics").text
        assert 'fleet_alerts_firing{metric="cpu_pct"} 1' in text
        assert 'fleet_breach_probability{server="ppweb001",profile="web_api",metric="cpu_pct",horizon="1h"}' in text
    with daemon(tmp_path) as client:  # alerts that fired before a restart still fire
        wait_for(lambda: client.get("/api/v1/alerts").json()["alerts"])
