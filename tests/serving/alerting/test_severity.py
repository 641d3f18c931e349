"""Levels of the severities, chosen from a measured curve for a budget of false alarms."""

from typing import NamedTuple

import pytest

from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.alerting.severity import NEVER, PAGE, WATCH, level_for_budget, levels_of


class Point(NamedTuple):
    level: float
    false_alarms_per_server_month: float


CURVE = [Point(0.1, 9.0), Point(0.3, 1.5), Point(0.5, 0.4), Point(0.7, 0.1), Point(0.9, 0.15), Point(0.95, 0.0)]


@pytest.mark.parametrize(("budget", "level"), [(10, 0.1), (9, 0.1), (2, 0.3), (0.2, 0.7), (0.12, 0.95), (0.0, 0.95)])
def test_the_level_is_the_lowest_at_and_above_which_the_budget_is_kept(budget, level):
    assert level_for_budget(CURVE, budget) == level
    assert level_for_budget(CURVE[::-1], budget) == level


def test_no_level_is_chosen_if_none_keeps_the_budget():
    assert level_for_budget(CURVE[:3], 0.2) is None
    assert levels_of(CURVE[:3], AlertRules())[PAGE] == NEVER
    assert level_for_budget([], 1.0) is None


def test_a_curve_gives_levels_of_the_budgets_and_without_one_they_are_the_rules_probabilities():
    rules = AlertRules()
    assert levels_of(CURVE, rules) == {PAGE: (0.95, 0.475), WATCH: (0.3, 0.15)}
    assert levels_of((), rules) == {PAGE: (0.5, 0.25), WATCH: (0.3, 0.15)}
    own = AlertRules(page_false_alarms_per_server_month=0.6, watch_probability=0.4, resolve_probability=0.1)
    assert levels_of(CURVE, own)[PAGE].fire == 0.5
    assert levels_of((), own)[WATCH] == pytest.approx((0.4, 0.08))


@pytest.mark.parametrize(("budget", "left"), [(1.0, 1.0 - 0.14), (0.2, 0.1), (0.02, 0.01)])
def test_detectors_with_a_curve_have_what_the_others_leave_of_the_budget_but_half_of_it_at_least(budget, left):
    rules = AlertRules(page_false_alarms_per_server_month=budget)
    assert levels_of([Point(0.5, left - 1e-9)], rules)[PAGE].fire == 0.5
    assert levels_of([Point(0.5, left + 1e-9)], rules)[PAGE] == NEVER
