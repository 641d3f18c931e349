"""Which alerts receivers are sent: none that is silenced, and none at all in shadow mode.

An alert that begins during a silence and goes on after it is sent when the silence ends. The end of an alert is sent if
its beginning was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fleet_forecast.serving.alerting.alert import Alert, AlertKey
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.delivery.silence_book import SilenceBook


class Outbox:
    """What is sent of the book's alerts. shadow: nothing is."""

    def __init__(self, book: AlertBook, silences: SilenceBook, shadow: bool) -> None:
        self.shadow = shadow
        self._book, self._silences = book, silences
        self._sent: dict[AlertKey, str] = {}  # severity of the alerts that receivers have as firing

    def silenced_now(self) -> Callable[[Alert], bool]:
        """Whether a silence covers an alert at this moment; for many alerts ask once."""
        of_server = self._silences.silenced_now()
        return lambda alert: of_server(alert.server_name, alert.profile)

    def firing(self) -> list[Alert]:
        """The firing alerts that receivers may have now."""
        if self.shadow:
            return []
        is_silenced = self.silenced_now()
        return [alert for alert in list(self._book.firing.values()) if not is_silenced(alert)]

    def to_send(self, changed: Iterable[Alert]) -> list[Alert]:
        """Alerts that began, changed their severity or ended, for receivers; each state of an alert once.

        changed: of the last update of the book.
        """
        ended = [a for a in changed if a.ended_seconds is not None and self._sent.pop(a.key, None) is not None]
        begun = [alert for alert in self.firing() if self._sent.get(alert.key) != alert.severity]
        self._sent.update({alert.key: alert.severity for alert in begun})
        return [*ended, *begun]

    def as_fields(self) -> list[list[str]]:
        """The alerts that were sent, for `restore`: server, metric, severity."""
        return [[*key, severity] for key, severity in self._sent.items()]

    def restore(self, sent: Iterable[Sequence[str]]) -> None:
        """Add the alerts that were sent before a restart."""
        self._sent.update({(server, metric): severity for server, metric, severity in sent})
