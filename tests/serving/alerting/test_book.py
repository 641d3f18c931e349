"""Streaks and hysteresis: from detections to alerts."""

from dataclasses import replace

import numpy as np
import pytest

from data_contract import METRICS
from fleet_forecast.serving.alerting.alert import DEPARTURE
from fleet_forecast.serving.alerting.book import AlertBook, detectors_of
from fleet_forecast.serving.alerting.detection import Detection
from fleet_forecast.serving.alerting.rules import AlertRules, BoundsRule
from tests.serving.alerting.examples import STEP, VIEW, forecast


def test_an_alert_needs_several_forecasts_and_describes_itself():
    book = AlertBook(AlertRules())
    high = np.r_[np.full(10, 70.0), np.full(86, 97.0)]
    assert book.update([forecast(high, 1)], 1.0) == []
    assert book.update([forecast(high, 1)], 2.0) == []  # the same origin counts once
    (alert,) = book.update([forecast(high, 2)], 3.0)
    assert (alert.server_name, alert.metric, alert.started_seconds) == ("ppweb001", "cpu_pct", 3.0)
    assert alert.probability > 0.9
    assert alert.expected_seconds == (2 + 11) * STEP
    assert "ppweb001 (web_api): CPU is at 70 % and exceeds 90 %" in alert.sentence
    assert book.update([forecast(high, 3)], 4.0) == []
    assert book.firing["ppweb001", "cpu_pct"].started_seconds == 3.0


def test_a_provisional_forecast_raises_no_alert_and_its_complete_step_counts():
    book = AlertBook(AlertRules())
    for origin in (1, 2, 3):
        assert book.update([replace(forecast(97, origin), provisional=True)], 0.0) == []
    assert book.update([forecast(97, 2)], 0.0) == []
    assert len(book.update([forecast(97, 3)], 0.0)) == 1


def test_a_metric_that_is_not_measured_raises_no_alert():
    book = AlertBook(AlertRules())
    for origin in range(4):
        assert book.update([replace(forecast(97, origin), current=(None,) * 6)], 0.0) == []


def test_an_alert_resolves_with_hysteresis():
    book = AlertBook(AlertRules())
    for origin in (1, 2):
        book.update([forecast(97, origin)], 0.0)
    doubtful = forecast(88.5, 3)  # between the two levels: neither fires nor resolves
    assert book.update([doubtful], 0.0) == []
    assert 0.25 < book.probabilities["ppweb001"][0, 2] < 0.5
    for origin in (4, 5):
        assert book.update([forecast(20, origin)], 0.0) == []
    assert book.update([forecast(97, 6)], 0.0) == []  # the streak is interrupted
    for origin in (7, 8):
        assert book.update([forecast(20, origin)], 0.0) == []
    (ended,) = book.update([forecast(20, 9)], 9.0)
    assert (ended.ended_seconds, book.firing) == (9.0, {})


def test_alerts_go_on_after_the_clock_was_ahead_for_a_while():
    book = AlertBook(AlertRules())
    for origin in (1, 2, 600):  # the third with a clock two days ahead
        book.update([forecast(97, origin)], (origin + 1) * STEP)
    assert len(book.firing) == 1
    ended = [alert for origin in (4, 5, 6) for alert in book.update([forecast(20, origin)], (origin + 1) * STEP)]
    assert [alert.key for alert in ended] == [("ppweb001", "cpu_pct")]
    assert book.update([forecast(20, 5)], 8 * STEP) == []  # an earlier origin is ignored again
    assert book.update([forecast(97, 7)], 8 * STEP) == []
    assert len(book.update([forecast(97, 8)], 9 * STEP)) == 1


def test_an_exceedance_after_the_lookahead_raises_no_alert_but_is_a_risk():
    book = AlertBook(AlertRules())
    late = np.r_[np.full(60, 20.0), np.full(36, 97.0)]
    for origin in range(4):
        assert book.update([forecast(late, origin)], 0.0) == []
    assert book.probabilities["ppweb001"][0].tolist() == pytest.approx([0, 0, 0, 1], abs=0.05)


def test_the_alerts_of_a_server_that_left_end():
    book = AlertBook(AlertRules())
    for origin in (1, 2):
        book.update([forecast(97, origin)], 0.0)
    assert book.keep_only(["ppweb001"], 1.0) == []
    (ended,) = book.keep_only([], 2.0)
    assert ended.ended_seconds == 2.0
    assert "fell silent" in ended.sentence
    assert book.firing == {}


def test_alerts_survive_a_restart():
    book = AlertBook(AlertRules())
    for origin in (1, 2):
        book.update([forecast(97, origin)], 5.0)
    again = AlertBook(AlertRules())
    again.restore(book.as_documents())
    assert again.firing == book.firing
    assert again.update([forecast(97, 3)], 9.0) == []
    assert again.firing["ppweb001", "cpu_pct"].started_seconds == 5.0


class FlappingDetector:
    """A detector of its own kind: all metrics of servers in `flapping`, nothing about the others."""

    reason = "flapping"
    resolved_text = "no longer flaps"
    curve = ()

    def __init__(self):
        self.flapping = {}
        self.kept = None

    def detect(self, forecasts, _firing, /):
        for each in forecasts:
            for metric, probability in self.flapping.get(each.server_name, {}).items():
                yield Detection(each.server_name, metric, probability, lambda _forecast, _detection: " and flaps.")

    def keep_only(self, server_names):
        self.kept = set(server_names)


def test_a_new_detector_is_added_by_giving_it_to_the_book():
    detector = FlappingDetector()
    book = AlertBook(AlertRules(), [*detectors_of(AlertRules()), detector])
    detector.flapping = {"ppweb001": {"mem_pct": 0.8}}
    assert book.update([forecast(20, 1)], 1.0) == []
    (alert,) = book.update([forecast(20, 2)], 2.0)
    assert (alert.metric, alert.reason, alert.probability) == ("mem_pct", "flapping", 0.8)
    assert alert.sentence == "ppweb001 (web_api): memory is at 1 % and flaps. Alert since 1970-01-01T00:00:02Z."
    detector.flapping = {}
    for origin in range(3, 9):  # no result: the alert is kept
        assert book.update([forecast(20, origin)], origin) == []
    detector.flapping = {"ppweb001": {"mem_pct": 0.1}}
    assert [book.update([forecast(20, origin)], origin) for origin in (9, 10)] == [[], []]
    (ended,) = book.update([forecast(20, 11)], 11.0)
    assert ended.sentence == "ppweb001 (web_api): memory no longer flaps."
    book.keep_only([], 12.0)
    assert detector.kept == set()


def test_an_alert_of_a_detector_that_was_switched_off_ends():
    detector = FlappingDetector()
    detector.flapping = {"ppweb001": {"mem_pct": 0.8}}
    before = AlertBook(AlertRules(), [*detectors_of(AlertRules()), detector])
    for origin in (1, 2):
        before.update([forecast(20, origin)], 1.0)
    book = AlertBook(AlertRules())
    book.restore(before.as_documents())
    ended = [alert for origin in (3, 4, 5) for alert in book.update([forecast(20, origin)], origin)]
    assert [alert.key for alert in ended] == [("ppweb001", "mem_pct")]


def with_metric(made, metric, value):
    """The forecast of a model with one more metric, at `value`."""
    model = replace(made.model, metrics=(*made.model.metrics, metric))
    quantiles = np.concatenate([made.quantiles, np.full_like(made.quantiles[:1], value)])
    return replace(made, model=model, quantiles=quantiles, current=(*made.current, value))


def test_a_metric_without_label_unit_or_baseline_raises_alerts_if_it_has_a_threshold():
    rules = AlertRules.model_construct(
        **{**vars(AlertRules()), "servers": {"ppweb001": {"gpu_load": BoundsRule(above=5.0)}}}
    )
    book = AlertBook(rules)
    for origin in range(20):
        both = [with_metric(forecast(20, origin, name), "gpu_load", 9.0) for name in ("ppweb001", "ppweb002")]
        book.update(both, origin * STEP)
    (alert,) = book.firing.values()
    assert alert.key == ("ppweb001", "gpu_load")
    assert "gpu_load is at 9 and exceeds 5 with a probability of 100 %" in alert.sentence
    assert book.probabilities["ppweb002"].shape == (len(METRICS) + 1, 4)


def test_a_forecast_of_24_hours_raises_alerts_within_the_lookahead():
    late = np.r_[np.full(200, 20.0), np.full(88, 97.0)]
    made = forecast(20)
    quantiles = np.full((len(METRICS), len(made.model.quantiles), 288), 1.0, dtype=np.float32)
    quantiles[0] = late
    day = AlertBook(AlertRules(lookahead_seconds=86_400))
    default = AlertBook(AlertRules())
    for origin in range(3):
        for book in (day, default):
            book.update([replace(made, origin_seconds=origin * STEP, quantiles=quantiles)], origin * STEP)
    assert list(day.firing) == [("ppweb001", "cpu_pct")]
    assert default.firing == {}
    assert day.probabilities["ppweb001"][0].tolist() == pytest.approx([0, 0, 0, 0, 1], abs=0.05)


def test_other_quantile_levels_raise_alerts():
    view = replace(VIEW, quantiles=(0.05, 0.5, 0.95))
    book = AlertBook(AlertRules())
    for origin in range(20):
        made = forecast(97, origin)
        book.update([replace(made, model=view, quantiles=made.quantiles[:, ::3])], origin * STEP)
    assert list(book.firing) == [("ppweb001", "cpu_pct")]
    assert book.firing["ppweb001", "cpu_pct"].reason != DEPARTURE
