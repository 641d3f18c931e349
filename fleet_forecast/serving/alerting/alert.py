"""One alert, as the alert book stores it and as the API and webhooks send it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fleet_forecast.iso_time import iso_milliseconds

BREACH, DEPARTURE = "breach", "departure"  # reasons of the built-in detectors
AlertKey = tuple[str, str]  # server name and metric


@dataclass(frozen=True)
class Alert:
    """One alert; times are seconds since 1970, UTC. ended_seconds is None while it fires.

    probability: that of the detector named by `reason`. expected, earliest, latest: when the metric crosses the
    threshold, None if it does not within the horizon.
    """

    server_name: str
    profile: str
    metric: str
    threshold: float
    probability: float
    current: float | None
    started_seconds: float
    ended_seconds: float | None
    expected_seconds: float | None
    earliest_seconds: float | None
    latest_seconds: float | None
    sentence: str
    reason: str = BREACH

    @property
    def key(self) -> AlertKey:
        """Server and metric: one alert fires for each at a time."""
        return self.server_name, self.metric

    @property
    def state(self) -> str:
        """As in the API: firing or resolved."""
        return "firing" if self.ended_seconds is None else "resolved"


def as_document(alert: Alert) -> dict[str, Any]:
    """The alert in JSON types, for the API, the event streams and webhooks."""
    fields = dict(vars(alert))
    for name in ("started", "ended", "expected", "earliest", "latest"):
        seconds = fields.pop(f"{name}_seconds")
        fields[f"{name}_at"] = None if seconds is None else iso_milliseconds(seconds)
    return {"state": alert.state, **fields}
