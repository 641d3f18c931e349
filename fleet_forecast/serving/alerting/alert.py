"""One alert, as the alert book stores it and as the API and webhooks send it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fleet_forecast.iso_time import iso_milliseconds
from fleet_forecast.serving.alerting.severity import PAGE

BREACH, DEPARTURE = "breach", "departure"  # reasons of the built-in detectors
DRIFT = "drift"  # reason of alerts on the model, which have no server and no metric
AlertKey = tuple[str, str]  # server name and metric


@dataclass(frozen=True)
class Alert:
    """One alert; times are seconds since 1970, UTC. ended_seconds is None while it fires.

    probability: that of the detector named by `reason`. threshold: the bound that the alert is about; below: it is a
    lower one. expected, earliest, latest: when the metric crosses it, None if it does not within the horizon.
    highest_severity: reached so far. crossed: when a measured value was first beyond the bound, None if none was.
    """

    server_name: str
    profile: str
    metric: str
    threshold: float | None
    probability: float
    current: float | None
    started_seconds: float
    ended_seconds: float | None
    expected_seconds: float | None
    earliest_seconds: float | None
    latest_seconds: float | None
    sentence: str
    reason: str = BREACH
    severity: str = PAGE
    highest_severity: str = PAGE
    below: bool = False
    crossed_seconds: float | None = None

    @property
    def lead_minutes(self) -> float | None:
        """From the beginning of the alert to the first measured crossing of its bound; None without one."""
        return None if self.crossed_seconds is None else (self.crossed_seconds - self.started_seconds) / 60

    @property
    def key(self) -> AlertKey:
        """Server and metric: one alert fires for each at a time."""
        return self.server_name, self.metric

    @property
    def state(self) -> str:
        """As in the API: firing or resolved."""
        return "firing" if self.ended_seconds is None else "resolved"


def as_document(alert: Alert, silenced: bool = False) -> dict[str, Any]:
    """The alert in JSON types, for the API, the event streams and webhooks. silenced: whether it is not delivered."""
    fields = dict(vars(alert))
    for name in ("started", "ended", "expected", "earliest", "latest", "crossed"):
        seconds = fields.pop(f"{name}_seconds")
        fields[f"{name}_at"] = None if seconds is None else iso_milliseconds(seconds)
    lead = alert.lead_minutes
    return {
        "state": alert.state,
        "silenced": silenced,
        **fields,
        "lead_minutes": None if lead is None else round(lead, 1),
    }
