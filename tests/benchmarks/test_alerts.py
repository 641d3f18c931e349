"""Precision, recall and lead times of alarms on simulated weeks."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import optimize

from benchmarks import alerts as benchmark
from benchmarks.alerts import Incident, Weeks, evaluate, straight_line, strict_thresholds
from fleet_forecast.contract.calendar import DEFAULT_CALENDAR, BusinessCalendar
from fleet_forecast.risk.alarms import hysteresis
from fleet_forecast.serving.alerting.book import AlertBook
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.alerting.severity import PAGE
from tests.serving.alerting.examples import forecast
from tests.serving.fake_engine import FakeConfig, FakeEngine

STEP = 300


@dataclass(frozen=True)
class SimulatedConfig(FakeConfig):
    calendar: BusinessCalendar = DEFAULT_CALENDAR


def weeks(incidents, servers=2, steps=100, first=10):
    """Empty weeks of a few servers; incidents in steps: (server, onset, start, end)."""
    return Weeks(
        names=tuple(f"ppweb{number:03d}" for number in range(servers)),
        profiles=("web_api",) * servers,
        times=np.arange(steps) * STEP,
        values=np.zeros((servers, steps, 1), np.float32),
        incidents=tuple(Incident(server, *(STEP * step for step in rest)) for server, *rest in incidents),
        first=first,
    )


def firing(spans, servers=2, steps=100, first=10):
    """bool [server, evaluated step], on in [begin, end) steps of the data."""
    on = np.zeros((servers, steps), dtype=bool)
    for server, begin, end in spans:
        on[server, begin:end] = True
    return on[:, first:]


def test_every_alarm_and_incident_is_counted_once():
    fleet = weeks([(0, 30, 45, 60), (0, 80, 82, 90), (1, 30, 30, 40)])  # the first has a precursor of 75 minutes
    alarms = firing([(0, 40, 42), (0, 50, 52), (0, 70, 72), (1, 10, 35), (1, 50, 51)])
    found = evaluate([alarms], [fleet], rate=4.0)
    assert (
        found["false_alarms"] == 3
    )  # one after the incident, one that was on before it began, one far from any incident
    assert found["precision"] == 0.25
    assert found["precision_at_usual_rate"] == round(0.25 / 3.25, 3)
    assert (found["recall_long_precursor"], found["ahead_long_precursor"], found["recall_other"]) == (1, 1, 0)
    assert found["lead_minutes_long_precursor"] == [20, 20, 20]  # a step is evaluated when it is over
    months = 2 * 90 * STEP / (30 * 86_400)
    assert found["false_alarms_per_server_month"] == round(3 / months, 3)


def test_an_alarm_during_the_harm_is_a_detection_but_not_ahead():
    found = evaluate([firing([(0, 50, 52)])], [weeks([(0, 30, 45, 60)])], rate=1.0)
    assert (found["precision"], found["recall_long_precursor"], found["ahead_long_precursor"]) == (1, 1, 0)
    assert found["lead_minutes_long_precursor"][1] == -30


def test_without_alarms_there_is_no_precision():
    found = evaluate([firing([])], [weeks([])], rate=1.0)
    assert found["precision"] is None
    assert found["recall_other"] is None


def test_persistence_is_that_of_the_alert_book():
    rules, random = AlertRules(departures=False), np.random.default_rng(0)
    cpu = 88 + 5 * np.sin(np.arange(300) / 8) + 2 * random.normal(size=300)
    book, on, probability = AlertBook(rules), [], []
    for origin, value in enumerate(cpu, start=1):
        book.update([forecast(value, origin)], 0.0)
        on.append(any(alert.severity == PAGE for alert in book.firing.values()))
        probability.append(book.probabilities["ppweb001"][0, 2])
    p = np.array(probability)[None, :, None]
    streaks = rules.fire_forecasts, rules.resolve_forecasts
    expected = hysteresis(p >= rules.fire_probability, p < rules.resolve_probability, *streaks)[0, :, 0]
    assert 0 < sum(on) < len(on)
    assert np.abs(np.diff(on)).sum() > 6  # it did fire and resolve
    np.testing.assert_array_equal(on, expected)


def test_the_straight_line_is_least_squares_through_the_last_hour():
    values = np.random.default_rng(1).normal(size=(2, 40, 3))
    line = straight_line(values, 48)
    assert np.isnan(line[:, :11]).all()
    for step in (11, 25, 39):
        slow = np.polyfit(np.arange(12), values[1, step - 11 : step + 1, 2], 1)
        assert line[1, step, 2] == pytest.approx(np.polyval(slow, 11 + 48))


def test_strict_thresholds_are_within_the_metrics_range():
    found = strict_thresholds(weeks([]), ("cpu_pct", "latency_ms"), 6)
    assert found.shape == (2, 2)
    assert 28 + 6 * 8 < found[0, 0] < 100  # further than linear below the middle, never beyond 100 %
    assert found[0, 1] == 45 + 6 * 15


def test_the_logistic_curve_has_the_highest_likelihood():
    random = np.random.default_rng(2)
    x = random.normal(5, 2, size=4000)
    y = random.random(4000) < 1 / (1 + np.exp(-(1.5 * x - 9)))
    weight = np.where(y, 0.25, 1.0)

    def loss(beta):
        return np.sum(weight * np.logaddexp(0, np.where(y, -1, 1) * (beta[0] + beta[1] * x)))

    slow = optimize.minimize(loss, (0, 0), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-9})
    assert benchmark._logistic(x, y, weight) == pytest.approx(tuple(slow.x), rel=1e-4)


@pytest.mark.parametrize("servers", [7, 10, 90, 91])
def test_a_fleet_has_the_requested_number_of_servers(servers):
    counts = benchmark._counts(servers)
    assert sum(counts.values()) == servers
    assert servers < 90 or counts["web_api"] >= 25


def test_the_replay_uses_the_daemons_code(tiny_model_dir, capsys):
    arguments = ["--model", str(tiny_model_dir), "--servers", "7", "--hours", "3"]
    assert benchmark.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["servers"], summary["hours"], summary["seeds"]) == (7, 3, [202])
    assert set(summary["methods"]) == {"page", "watch", "current_value", "predict_linear", "current_value_tuned"}
    assert summary["methods"]["predict_linear"]["false_alarms"] > 0
    assert benchmark.main([*arguments, "--choose"]) == 1
    assert "needs a model of all metrics" in capsys.readouterr().err


def test_chosen_parameters_are_the_covariance_of_normal_operation_and_calibrated(capsys):
    engine = FakeEngine(SimulatedConfig(history_steps=2))
    fleet = benchmark.simulate(engine, 5, servers=14, hours=24, rate=60)
    assert json.loads(json.dumps(sum(incident.has_long_precursor for incident in fleet.incidents))) > 0
    found = benchmark.choose(engine, [fleet], rate=60)
    scored, _ = benchmark._scored(engine, fleet, AlertRules())
    ordinary = np.ones(scored.shape[:2], dtype=bool)
    for incident in fleet.incidents:
        times = fleet.times[fleet.first :]
        ordinary[incident.server, (times >= incident.onset) & (times <= incident.end + 7_200)] = False
    rows = scored[ordinary]
    rows = rows[~np.isnan(rows).any(axis=1)]
    slow = rows.T @ rows / len(rows) * np.where(np.eye(6), 1.4, 1)
    np.testing.assert_allclose(found["covariance"], slow, atol=1e-3)
    assert found["slope"] > 0
    assert "SIMULATED = DepartureStatistics(" in capsys.readouterr().out


def test_a_missing_model_is_refused(tmp_path, capsys):
    assert benchmark.main(["--model", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
