"""The curve of a replay: alarms, false alarms, recall and lead time by the level at which alerts fire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fleet_forecast.risk.alarms import hysteresis
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.alerting.severity import level_for_budget
from fleet_forecast.serving.replay.alarm_evaluation import Incident, evaluate_alarms, scores
from fleet_forecast.serving.replay.past_alerts import PastAlerts

SHARED = "breach and departure"
LEVELS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


class LevelPoint(NamedTuple):
    """One level. false_alarms_per_server_month: of all alarms where no incidents are known."""

    level: float
    false_alarms_per_server_month: float
    scores: Mapping[str, Any]


def measured_curves(
    past: PastAlerts, incidents: Sequence[Incident] | None, rules: AlertRules
) -> dict[str, list[LevelPoint]]:
    """Curves by reason: one of the detectors that fire at the rules' probabilities, together, under SHARED.

    Detectors with a measured curve of their own have one each, at its levels. incidents: None if not known.
    """
    shared = [reason for reason in past.probabilities if reason not in past.curve_levels]
    groups: dict[str, tuple[list[str], tuple[float, ...]]] = {SHARED: (shared, LEVELS)} if shared else {}
    groups |= {reason: ([reason], tuple(sorted(levels))) for reason, levels in past.curve_levels.items()}
    return {
        name: [_point(past, incidents or (), rules, reasons, level) for level in levels]
        for name, (reasons, levels) in groups.items()
    }


def _point(
    past: PastAlerts, incidents: Sequence[Incident], rules: AlertRules, reasons: Sequence[str], level: float
) -> LevelPoint:
    probabilities = np.stack([past.probabilities[reason] for reason in reasons])  # (reason, server, step, metric)
    resolve = level * rules.resolve_probability / rules.fire_probability
    above = np.any(probabilities >= level, axis=0)
    below = ~np.any(probabilities >= resolve, axis=0) & ~np.all(np.isnan(probabilities), axis=0)
    by_metric = hysteresis(np.asarray(above), np.asarray(below), rules.fire_forecasts, rules.resolve_forecasts)
    on = np.asarray(by_metric.any(axis=2))
    found = scores(evaluate_alarms(on, past.seconds, incidents), incidents, server_months(past))
    return LevelPoint(level, found["false_alarms_per_server_month"], found)


def server_months(past: PastAlerts) -> float:
    """Replayed time of all servers, in months of 30 days."""
    firing = next(iter(past.firing.values()))
    step_seconds = float(past.seconds[1] - past.seconds[0]) if len(past.seconds) > 1 else 0.0
    return max(firing.size * step_seconds / (30 * 86_400), 1e-9)


def recommended_rules(curve: Sequence[LevelPoint], rules: AlertRules) -> str | None:
    """The table [alerts] with the levels that keep the budgets in this period; None if no level keeps that of pages."""
    page = level_for_budget(curve, rules.page_false_alarms_per_server_month)
    watch = level_for_budget(curve, rules.watch_false_alarms_per_server_month)
    if page is None or watch is None:
        return None
    ratio = rules.resolve_probability / rules.fire_probability
    return (
        "# Levels that keep the budgets of false alarms in the replayed period: a part of fleet.toml.\n[alerts]\n"
        f"page_false_alarms_per_server_month = {rules.page_false_alarms_per_server_month:g}\n"
        f"watch_false_alarms_per_server_month = {rules.watch_false_alarms_per_server_month:g}\n"
        f"fire_probability = {page:g}\n"
        f"watch_probability = {watch:g}\n"
        f"resolve_probability = {page * ratio:g}\n"
    )
