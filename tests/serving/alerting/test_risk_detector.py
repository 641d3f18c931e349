"""Alerts on risks: one metric a server, the message names what drives the risk and what the model was trained on."""

from dataclasses import replace

import numpy as np
import pytest

from data_contract import METRICS
from fleet_forecast.inference.risk_model import RISK_HORIZONS, Driver
from fleet_forecast.risk.alarms import CurvePoint
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.risk_detector import RISK, RiskDetector
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.forecasts.snapshot import ServerRisk
from tests.serving.alerting.examples import forecast


class FakeRiskModel:
    """The features are the contributions of the drivers."""

    drivers = (Driver("cpu_pct", 900), Driver("latency_ms", 1_800), Driver("latency_ms", 0), Driver(None, None))
    trained_on = "simulator"
    curve = tuple(CurvePoint(level, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0) for level in (0.2, 0.5))

    def contributions(self, features):
        return features


MODEL = FakeRiskModel()


def at_risk(probability, origin, drivers=(0.1, 1.0, 0.5, 3.0), name="ppweb001"):
    probabilities = np.linspace(probability - 0.01, probability + 0.01, len(RISK_HORIZONS), dtype=np.float32)
    risk = ServerRisk(MODEL, probabilities, np.array(drivers, dtype=np.float32))
    return replace(forecast(30, origin, name), risk=risk)


def book():
    rules = AlertRules()
    return AlertBook(rules, [RiskDetector(rules)])


def test_a_risk_fires_after_two_forecasts_and_ends_after_three():
    alerts = book()
    assert alerts.update([at_risk(0.9, 1)], 0.0) == []
    (begun,) = alerts.update([at_risk(0.9, 2)], 0.0)
    assert (begun.reason, begun.metric) == (RISK, "latency_ms")
    assert begun.probability == pytest.approx(0.9)
    changed = [alerts.update([at_risk(0.01, origin)], 0.0) for origin in (3, 4, 5)]
    assert changed[:2] == [[], []]
    ((ended,),) = changed[2:]
    assert ended.state == "resolved"
    assert ended.sentence == "ppweb001 (web_api): latency no longer indicates an incident."


def test_the_message_names_drivers_and_what_the_model_was_trained_on():
    alerts = book()
    alerts.update([at_risk(0.9, 1)], 0.0)
    (begun,) = alerts.update([at_risk(0.9, 2)], 0.0)
    assert begun.sentence.startswith(
        "ppweb001 (web_api): latency is at 1 ms; a risk model trained on simulated fleets gives an incident within 4h "
        "a probability of 90 %, mainly because of latency over 30 min, latency now. "
    )


def test_the_metric_stays_while_the_alert_fires_though_another_one_leads():
    alerts = book()
    for origin in (1, 2):
        alerts.update([at_risk(0.9, origin)], 0.0)
    for origin in (3, 4, 5):
        assert alerts.update([at_risk(0.9, origin, drivers=(9.0, 0.0, 0.0, 0.0))], 0.0) == []
    assert list(alerts.firing) == [("ppweb001", "latency_ms")]


def test_low_risks_and_servers_without_one_give_no_result():
    detector = RiskDetector(AlertRules())
    low, without = at_risk(0.05, 1), forecast(30, 1, "ppweb002")
    assert list(detector.detect([low, without], {})) == []
    assert detector.curve == MODEL.curve
    (found,) = detector.detect([at_risk(0.21, 2)], {})
    assert found.metric == "latency_ms"
    detector.keep_only([])
    assert list(detector.detect([low], {})) == []


def test_a_metric_without_a_known_bound_raises_an_alert_without_threshold():
    alerts = book()
    for origin in (1, 2):
        alerts.update([replace(at_risk(0.9, origin), profile="payments")], 0.0)
    (alert,) = alerts.firing.values()
    assert (alert.metric, alert.threshold, alert.below, alert.expected_seconds) == ("latency_ms", None, False, None)
    assert "latency is at 1 ms; a risk model" in alert.sentence


def test_a_muted_metric_is_not_chosen():
    rules = AlertRules(servers={"ppweb001": dict.fromkeys(set(METRICS) - {"cpu_pct"}, False)})
    (found,) = RiskDetector(rules).detect([at_risk(0.9, 1)], {})
    assert found.metric == "cpu_pct"
