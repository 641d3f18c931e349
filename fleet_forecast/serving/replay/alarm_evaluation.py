"""Evaluates alarms against incidents: true and false ones, found incidents, lead times.

An alarm is a period in which any alert fires on a server. It is true if it begins within the window of an incident on
that server; several alarms of one incident count once. All other alarms are false. An incident is found if it has an
alarm, and found ahead if the alarm begins before the incident does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fleet_forecast.risk.alarms import match

MONTH_SECONDS = 30 * 86_400
LEAD_SHARES = (5, 25, 50, 75, 95)  # percentiles of the lead time


@dataclass(frozen=True)
class Incident:
    """One incident on the server of a row; seconds since 1970.

    onset, end: of the window in which an alarm counts. start: of the incident itself.
    """

    server: int
    onset: float
    start: float
    end: float
    type: str = ""


class AlarmEvaluation(NamedTuple):
    """Alarms, false alarms and found incidents.

    begins, false: boolean [server, step], beginnings of all and of false alarms. alarms: by incident, when its first
    alarm began, or None.
    """

    begins: np.ndarray
    false: np.ndarray
    alarms: list[float | None]


def evaluate_alarms(firing: np.ndarray, seconds: np.ndarray, incidents: Sequence[Incident]) -> AlarmEvaluation:
    """Evaluate alarms. firing: boolean [server, step]; seconds: [step], when each step was evaluated."""
    matched = match(firing, seconds, ((incident.server, incident.onset, incident.end) for incident in incidents))
    alarms = [None if np.isnan(hit) else hit for hit in matched.hits.tolist()]
    return AlarmEvaluation(matched.begins, matched.false, alarms)


def scores(evaluated: AlarmEvaluation, incidents: Sequence[Incident], server_months: float) -> dict[str, Any]:
    """Numbers of an evaluation; a share without cases is None.

    lead_minutes: percentiles of the time from the alarm to the start of the incident, negative after it.
    """
    pairs = list(zip(evaluated.alarms, incidents, strict=True))
    leads = [(incident.start - alarm) / 60 for alarm, incident in pairs if alarm is not None]
    false = int(evaluated.false.sum())
    found, ahead = len(leads), sum(lead > 0 for lead in leads)

    def share(part: int, whole: int) -> float | None:
        return round(part / whole, 3) if whole else None

    percentiles = np.percentile(leads, LEAD_SHARES).tolist() if leads else []
    return {
        "alarms_per_server_month": round(int(evaluated.begins.sum()) / server_months, 3),
        "incidents": len(incidents),
        "found": found,
        "false_alarms": false,
        "false_alarms_per_server_month": round(false / server_months, 3),
        "precision": share(found, found + false),
        "recall": share(found, len(incidents)),
        "recall_ahead": share(ahead, len(incidents)),
        "lead_minutes": {
            f"p{percent}": round(value, 1) for percent, value in zip(LEAD_SHARES, percentiles, strict=False)
        },
    }
