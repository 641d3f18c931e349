"""The parts behind an alert loop, for tests."""

import time

from fleet_forecast.serving.delivery.alert_loop import AlertSinks
from fleet_forecast.serving.delivery.alert_record import AlertRecord
from fleet_forecast.serving.delivery.outbox import Outbox
from fleet_forecast.serving.delivery.silence_book import SilenceBook
from fleet_forecast.serving.monitoring.events import EventHub


def sinks(book, folder, silences=(), shadow=False, notifiers=(), events=None, clock=time.time):
    silence_book = SilenceBook(silences, folder / "silences.json", clock)
    outbox = Outbox(book, silence_book, shadow)
    return AlertSinks(
        events or EventHub(), list(notifiers), outbox, AlertRecord(), silence_book, folder / "alerts.json"
    )
