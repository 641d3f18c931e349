"""The record of alerts: those that ended recently, and the numbers that began in this week and the last."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.alert import Alert
from fleet_forecast.serving.alerting.severity import SEVERITIES

RECENT_ALERTS = 2_000
WEEK_SECONDS = 7 * 86_400


@dataclass
class WeekTally:
    """Alerts that began, or whose severity rose, in the week after `since`: numbers by "SEVERITY REASON".

    deliverable: those that no silence covered. In shadow mode they were not delivered either.
    """

    since_seconds: float
    deliverable: Counter[str] = field(default_factory=Counter)
    silenced: Counter[str] = field(default_factory=Counter)

    def as_fields(self) -> dict[str, Any]:
        """For `restore`, in JSON types."""
        numbers = {"deliverable": dict(self.deliverable), "silenced": dict(self.silenced)}
        return {"since_seconds": self.since_seconds, **numbers}

    def as_document(self) -> dict[str, Any]:
        """In JSON types."""
        kinds = sorted(self.deliverable.keys() | self.silenced.keys())
        return {
            "since": iso(self.since_seconds),
            "alerts": [
                {
                    "severity": kind.partition(" ")[0],
                    "reason": kind.partition(" ")[2],
                    "deliverable": self.deliverable[kind],
                    "silenced": self.silenced[kind],
                }
                for kind in kinds
            ],
        }


class AlertRecord:
    """Ended alerts, the newest last, bounded; and the tallies of two weeks."""

    def __init__(self) -> None:
        self.recent: deque[Alert] = deque(maxlen=RECENT_ALERTS)
        self.week: WeekTally | None = None
        self.last_week: WeekTally | None = None
        self._severities: dict[tuple[str, str], str] = {}  # of alerts that fire, as they were counted

    def add(self, changed: Iterable[Alert], is_silenced: Callable[[Alert], bool], now_seconds: float) -> bool:
        """Record what began, ended or rose; returns whether a week ended, whose tally is then `last_week`."""
        ended = self.week is not None and now_seconds >= self.week.since_seconds + WEEK_SECONDS
        if ended:
            self.last_week = self.week
        if self.week is None or ended:
            self.week = WeekTally(now_seconds)
        for alert in changed:
            if alert.ended_seconds is not None:
                self.recent.append(alert)
                self._severities.pop(alert.key, None)
                continue
            if _is_higher(alert.severity, self._severities.get(alert.key)):
                tally = self.week.silenced if is_silenced(alert) else self.week.deliverable
                tally[f"{alert.severity} {alert.reason}"] += 1
            self._severities[alert.key] = alert.severity
        return ended

    def as_fields(self) -> dict[str, Any]:
        """For `restore`, in JSON types."""
        weeks = {"week": self.week, "last_week": self.last_week}
        return {
            "recent": [asdict(alert) for alert in self.recent],
            **{name: None if tally is None else tally.as_fields() for name, tally in weeks.items()},
        }

    def restore(self, fields: Mapping[str, Any], firing: Iterable[Alert]) -> None:
        """Read what `as_fields` returned before a restart; firing: the alerts that go on."""
        self.recent.extend(Alert(**alert) for alert in fields["recent"])
        self.week, self.last_week = (_tally(fields[name]) for name in ("week", "last_week"))
        self._severities = {alert.key: alert.severity for alert in firing}


def _tally(fields: Mapping[str, Any] | None) -> WeekTally | None:
    if fields is None:
        return None
    return WeekTally(
        float(fields["since_seconds"]), Counter(dict(fields["deliverable"])), Counter(dict(fields["silenced"]))
    )


def _is_higher(severity: str, before: str | None) -> bool:
    return before is None or SEVERITIES.index(severity) < SEVERITIES.index(before)
