"""Severities of alerts, and the levels at which they fire: of a measured curve for a budget of false alarms.

`page` wakes somebody up; `watch` is for working hours. A detector without a measured curve (false alarms by level)
fires at the probabilities of the rules. One with a curve fires at the lowest level that fits the rest of the user's
budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fleet_forecast.serving.alerting.rules import AlertRules

PAGE, WATCH = "page", "watch"
SEVERITIES = (PAGE, WATCH)  # the highest first
# False alarms per server and month of breaches and departures at their default probabilities: `benchmarks/alerts.py
# --seeds 202,302 --servers 45` with a model without a risk model found 3 and 4 in 21 server-months.
WITHOUT_CURVE = {PAGE: 0.14, WATCH: 0.19}
LEAST_SHARE = 0.5  # of a budget, for the detectors with a curve


class CurvePoint(Protocol):
    """One point of a detector's measured curve."""

    @property
    def level(self) -> float:
        """Probability at or above which an alert fires."""
        ...

    @property
    def false_alarms_per_server_month(self) -> float:
        """Measured at this level."""
        ...


def level_for_budget(curve: Sequence[CurvePoint], budget: float) -> float | None:
    """The lowest level at and above which every measured level keeps the budget; None if the highest does not.

    budget: false alarms per server and month.
    """
    chosen = None
    for point in sorted(curve, key=lambda point: -point.level):
        if point.false_alarms_per_server_month > budget:
            break
        chosen = point.level
    return chosen


class Levels(NamedTuple):
    """Probabilities of one detector: an alert fires at or above `fire` and ends below `resolve`."""

    fire: float
    resolve: float


NEVER = Levels(float("inf"), float("inf"))  # no measured level keeps the budget


def levels_of(curve: Sequence[CurvePoint], rules: AlertRules) -> dict[str, Levels]:
    """Levels by severity of a detector with this curve, empty for none.

    `resolve` is below `fire` by the ratio of the rules' resolve_probability to their fire_probability.
    """
    if curve:
        budgets = {PAGE: rules.page_false_alarms_per_server_month, WATCH: rules.watch_false_alarms_per_server_month}
        chosen = {
            severity: level_for_budget(curve, max(budget - WITHOUT_CURVE[severity], LEAST_SHARE * budget))
            for severity, budget in budgets.items()
        }
    else:
        chosen = {PAGE: rules.fire_probability, WATCH: rules.watch_level}
    ratio = rules.resolve_probability / rules.fire_probability
    return {severity: NEVER if fire is None else Levels(fire, fire * ratio) for severity, fire in chosen.items()}
