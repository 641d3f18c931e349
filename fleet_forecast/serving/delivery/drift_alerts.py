"""Alerts on the model itself: one for each profile that the advice to train again concerns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fleet_forecast.drift.advice import Reason
from fleet_forecast.serving.alerting.alert import DRIFT, Alert
from fleet_forecast.serving.alerting.severity import WATCH
from fleet_forecast.serving.delivery.notifiers import Notifier
from fleet_forecast.serving.delivery.outbox import Outbox
from fleet_forecast.serving.monitoring.drift_monitor import Advice

ENDED = "no longer a reason to train again: another model is in use, or the servers have left"


class DriftAlerts:
    """Begins an alert with the first reason of a profile, and ends it with the last one.

    Nothing is sent in shadow mode, nor while a silence covers the profile. After a restart the alerts that continue are
    sent to a webhook once more.
    """

    def __init__(self, outbox: Outbox, notifiers: Sequence[Notifier], clock: Callable[[], float]) -> None:
        self._outbox, self._notifiers, self._clock = outbox, notifiers, clock
        self._known: dict[str, Alert] = {}  # by profile
        self._sent: set[str] = set()  # profiles whose alert webhooks have as firing

    def firing(self) -> list[Alert]:
        """The alerts that receivers may have now."""
        if self._outbox.shadow:
            return []
        is_silenced = self._outbox.silenced_now()
        return [alert for alert in list(self._known.values()) if not is_silenced(alert)]

    def on_advice(self, advice: Advice) -> None:
        """Send the alerts that begin or end with this advice."""
        now = self._clock()
        by_profile: dict[str, list[Reason]] = {}
        for reason in advice.reasons:
            by_profile.setdefault(reason.profile, []).append(reason)
        gone = [self._known.pop(profile) for profile in [*self._known] if profile not in by_profile]
        for profile, reasons in by_profile.items():
            text = "; ".join(reason.text for reason in reasons)
            known = self._known.get(profile)
            started = known.started_seconds if known else advice.since_seconds or now
            self._known[profile] = drift_alert(profile, text, started)
        ended = [alert for alert in gone if alert.profile in self._sent]
        begun = [alert for alert in self.firing() if alert.profile not in self._sent]
        self._sent = self._sent - {alert.profile for alert in gone} | {alert.profile for alert in begun}
        changed = [replace(alert, ended_seconds=now, sentence=f"{alert.sentence}: {ENDED}") for alert in ended]
        for notifier in self._notifiers:
            notifier.enqueue([*changed, *begun])


def drift_alert(profile: str, text: str, started_seconds: float) -> Alert:
    """An alert without a server and a metric; its probability is 1, because it is a finding, not a forecast."""
    return Alert(
        server_name="",
        profile=profile,
        metric="",
        threshold=None,
        probability=1.0,
        current=None,
        started_seconds=started_seconds,
        ended_seconds=None,
        expected_seconds=None,
        earliest_seconds=None,
        latest_seconds=None,
        sentence=text,
        reason=DRIFT,
        severity=WATCH,
        highest_severity=WATCH,
    )
