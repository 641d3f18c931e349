"""Severities in the alert book: rise, fall and end of one alert, curves, lower bounds, what peers show."""

from dataclasses import replace

import numpy as np
import pytest

from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.detection import Detection
from fleet_forecast.serving.alerting.rules import AlertRules, BoundsRule
from fleet_forecast.serving.alerting.severity import PAGE, WATCH
from tests.serving.alerting.examples import STEP, forecast
from tests.serving.alerting.test_severity import CURVE


class GivenDetector:
    """A detector whose probability of one metric is given; `reason` and `curve` are those of the test."""

    resolved_text = "is over"

    def __init__(self, reason="risk", curve=()):
        self.reason, self.curve, self.probability = reason, curve, 0.0

    def detect(self, forecasts, _firing, /):
        for each in forecasts:
            probability = self.probability if each.server_name == "ppweb001" else 0.0
            yield Detection(each.server_name, "mem_pct", probability, lambda _forecast, _detection: " and so on.")

    def keep_only(self, server_names):
        pass


def run(book, detector, probabilities, first=1):
    """(origin, severity, whether ended) of the changes that the probabilities of successive forecasts cause."""
    changes = []
    for origin, detector.probability in enumerate(probabilities, start=first):
        changed = book.update([forecast(20, origin)], float(origin))
        changes += [(origin, alert.severity, alert.ended_seconds is not None) for alert in changed]
    return changes


def test_an_alert_rises_from_watch_to_page_falls_back_and_ends_as_one_alert():
    detector = GivenDetector()
    book = AlertBook(AlertRules(), [detector])
    assert run(book, detector, [0.4, 0.4]) == [(2, WATCH, False)]
    assert run(book, detector, [0.6, 0.6], 3) == [(4, PAGE, False)]
    assert run(book, detector, [0.2, 0.2, 0.3, 0.2, 0.2, 0.2], 5) == [(10, WATCH, False)]
    assert book.firing["ppweb001", "mem_pct"].started_seconds == 2.0
    assert run(book, detector, [0.2, 0.2], 11) == []  # below neither level of a watch
    assert book.firing["ppweb001", "mem_pct"].highest_severity == PAGE
    assert run(book, detector, [0.1, 0.1, 0.1], 13) == [(15, WATCH, True)]
    assert book.firing == {}


def test_a_sudden_alert_is_a_page_at_once():
    detector = GivenDetector()
    assert run(AlertBook(AlertRules(), [detector]), detector, [0.9, 0.9]) == [(2, PAGE, False)]


def test_a_measured_curve_replaces_the_probabilities():
    detector = GivenDetector(curve=CURVE)  # page at 0.7, watch at 0.3
    book = AlertBook(AlertRules(page_false_alarms_per_server_month=0.3), [detector])
    assert run(book, detector, [0.69, 0.69]) == [(2, WATCH, False)]
    assert run(book, detector, [0.71, 0.71], 3) == [(4, PAGE, False)]


def test_a_detector_that_keeps_no_budget_raises_no_alert_of_that_severity():
    detector = GivenDetector(curve=CURVE[:3])  # no level keeps the pages' budget
    book = AlertBook(AlertRules(), [detector])
    assert run(book, detector, [0.99] * 4) == [(2, WATCH, False)]
    assert run(book, detector, [0.0] * 3, 5) == [(7, WATCH, True)]


def test_the_reason_of_an_alert_stays_while_its_detector_goes_on():
    first, second = GivenDetector("risk"), GivenDetector("other")
    book = AlertBook(AlertRules(), [first, second])
    first.probability = 0.6
    run(book, first, [0.6, 0.6])
    second.probability = 0.95
    run(book, first, [0.3], 3)
    assert book.firing["ppweb001", "mem_pct"].reason == "risk"
    run(book, first, [0.1], 4)
    assert book.firing["ppweb001", "mem_pct"].reason == "other"


def test_an_alert_that_ends_keeps_its_reason():
    first, second = GivenDetector("risk"), GivenDetector("other")
    book = AlertBook(AlertRules(), [first, second])
    run(book, first, [0.9, 0.9])
    second.probability = 0.01  # nearer to its level than the first one from here on
    assert run(book, first, [0.0, 0.0], 3) == []
    assert book.firing["ppweb001", "mem_pct"].reason == "risk"
    (ended,) = book.update([forecast(20, 5)], 5.0)
    assert (ended.reason, ended.sentence) == ("risk", "ppweb001 (web_api): memory is over.")


def test_a_restored_page_falls_to_watch_and_ends_as_before_the_restart():
    detector = GivenDetector()
    before = AlertBook(AlertRules(), [detector])
    run(before, detector, [0.9, 0.9])
    book = AlertBook(AlertRules(), [detector])
    book.restore(before.as_documents())
    assert run(book, detector, [0.2, 0.2, 0.2], 3) == [(5, WATCH, False)]
    assert run(book, detector, [0.0, 0.0, 0.0], 6) == [(8, WATCH, True)]


def test_a_lower_bound_raises_an_alert_and_both_bounds_raise_one_each_way():
    rules = AlertRules(servers={"ppweb001": {"cpu_pct": {"above": 80, "below": 10}}})
    falling = np.maximum(30 - np.arange(96), 2)
    for course, threshold, words in ((falling, 10, "falls below 10 %"), (97, 80, "exceeds 80 %")):
        book = AlertBook(rules)
        for origin in (1, 2):
            book.update([forecast(course, origin)], origin * STEP)
        (alert,) = book.firing.values()
        assert (alert.threshold, alert.below) == (threshold, threshold == 10)
        assert words in alert.sentence
    assert AlertBook(AlertRules()).update([forecast(falling, 1)], 0.0) == []


def test_a_rule_of_one_bound_leaves_the_other():
    rules = AlertRules(profiles={"web_api": {"net_in_mb_s": {"below": 0.1}}}, servers={"a": {"net_in_mb_s": 70}})
    default = AlertRules().bounds_of("x", "web_api", "net_in_mb_s")
    assert rules.bounds_of("x", "web_api", "net_in_mb_s") == (default.above, 0.1)
    assert rules.bounds_of("a", "web_api", "net_in_mb_s") == (70, 0.1)
    with pytest.raises(ValueError, match="below must be less than above"):
        BoundsRule(above=1, below=2)


def test_the_sentence_has_the_start_the_reason_and_the_peers_that_do_not_show_it():
    book = AlertBook(AlertRules())
    for origin in (1, 2):
        others = [forecast(20 + n, origin, f"ppweb10{n}") for n in range(3)]
        other_profile = forecast(20, origin, "ppdb001", profile="database")
        book.update([forecast(97, origin), *others, other_profile, forecast(97, origin, "ppweb200")], origin * STEP)
    sentence = book.firing["ppweb001", "cpu_pct"].sentence
    assert "it is based on 24 h of own history and 0 peers. Alert since 1970-01-01T00:10:00Z." in sentence
    assert sentence.endswith(
        "3 of 4 other web_api servers do not show it (ppweb100, ppweb101, ...); the profile's median is 22 %."
    )


def test_the_first_measured_crossing_gives_the_lead_time():
    book = AlertBook(AlertRules())
    for origin, current in ((1, 70), (2, 70), (3, 70), (4, 91), (5, 95)):
        made = forecast(97, origin)
        book.update([replace(made, current=(float(current), *made.current[1:]))], origin * 600.0)
    assert book.firing["ppweb001", "cpu_pct"].lead_minutes == 20
