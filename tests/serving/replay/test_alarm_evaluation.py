"""Scores of alarms, recommended rules, and answers of people as incidents."""

import csv
import json

import numpy as np
import pytest

from fleet_forecast.contract.fleet.fleet_file import read_fleet
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.intervals.incidents_file import read_incidents
from fleet_forecast.serving.alerting.rules import AlertRules, alert_rules_of
from fleet_forecast.serving.replay.alarm_evaluation import Incident, evaluate_alarms, scores
from fleet_forecast.serving.replay.curve import LevelPoint, recommended_rules
from fleet_forecast.serving.replay.labels import write_alerts, write_incidents
from fleet_forecast.serving.replay.replay import labelled_incidents
from tests.conftest import tiny_fleet
from tests.serving.alerting.examples import alert

STEP = 300.0


def test_alarms_and_incidents_are_counted_once_with_their_lead():
    seconds = np.arange(1, 101) * STEP
    firing = np.zeros((2, 100), dtype=bool)
    for server, begin, end in ((0, 10, 12), (0, 20, 22), (0, 60, 90), (1, 40, 41)):
        firing[server, begin:end] = True
    incidents = [Incident(0, 8 * STEP, 15 * STEP, 30 * STEP, "a"), Incident(1, 70 * STEP, 75 * STEP, 80 * STEP, "b")]
    found = scores(evaluate_alarms(firing, seconds, incidents), incidents, server_months=2.0)
    assert (found["found"], found["false_alarms"], found["false_alarms_per_server_month"]) == (1, 2, 1.0)
    assert (found["precision"], found["recall"], found["recall_ahead"]) == (round(1 / 3, 3), 0.5, 0.5)
    assert found["alarms_per_server_month"] == 2.0
    assert found["lead_minutes"] == dict.fromkeys(("p5", "p25", "p50", "p75", "p95"), 20.0)
    nothing = scores(evaluate_alarms(np.zeros((2, 100), dtype=bool), seconds, []), [], 2.0)
    assert (nothing["precision"], nothing["recall"], nothing["lead_minutes"]) == (None, None, {})


def test_recommended_rules_keep_the_budgets_and_are_a_fleet_file(tmp_path):
    curve = [LevelPoint(level, rate, {}) for level, rate in ((0.2, 3.0), (0.4, 1.5), (0.6, 0.3), (0.8, 0.1))]
    (tmp_path / "r.toml").write_text(recommended_rules(curve, AlertRules()))
    rules = alert_rules_of(read_fleet(tmp_path / "r.toml"))
    assert (rules.fire_probability, rules.watch_level, rules.resolve_probability) == (0.8, 0.4, 0.4)
    assert recommended_rules(curve[:3], AlertRules()) is None


def test_labels_become_incidents(tmp_path):
    answers = tmp_path / "alerts.csv"
    write_alerts(answers, [alert(ended=2e9), alert(name="ppweb002"), alert(name="ppweb003")], end_seconds=2e9)
    rows = list(csv.DictReader(answers.read_text().splitlines()))
    assert {row["is_incident"] for row in rows} == {""}
    notices = []
    for row, answer in zip(rows, ("yes", "No", ""), strict=True):
        row["is_incident"] = answer

    def save():
        with answers.open("w") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)

    save()
    assert write_incidents(answers, tmp_path / "incidents.csv", notices.append) == 1
    (incident,) = read_incidents(tmp_path / "incidents.csv", ["ppweb001", "ppweb002"])
    assert (incident.server_name, incident.type, incident.end_seconds) == ("ppweb001", "labelled", 2e9)
    assert "1 alerts have no label" in notices[0]
    rows[1]["is_incident"] = "maybe"
    save()
    with pytest.raises(DataFileError, match="row 2: is_incident is 'maybe'; write yes or no"):
        write_incidents(answers, tmp_path / "incidents.csv", notices.append)
    rows[0]["is_incident"] = rows[1]["is_incident"] = ""
    save()
    with pytest.raises(DataFileError, match="no row is labelled yes"):
        write_incidents(answers, tmp_path / "incidents.csv", notices.append)
    answers.write_text(json.dumps({}))
    with pytest.raises(DataFileError, match="of a replay"):
        write_incidents(answers, tmp_path / "incidents.csv", notices.append)


def test_runs_of_a_label_in_the_data_are_incidents():
    frame = tiny_fleet(hours=4).sort_values(["server_name", "timestamp"], ignore_index=True)
    frame["incident"] = None
    assert labelled_incidents(frame, 300) == []
    frame.loc[[3, 4, 5, 9, 48], "incident"] = ["oom", "oom", "ddos", "oom", "oom"]  # 48 rows a server
    found = labelled_incidents(frame, 300)
    start = frame["timestamp"][0].timestamp()
    names = frame["server_name"]
    assert [(each.server_name, (each.start_seconds - start) / 300, each.type) for each in found] == [
        (names[0], 3, "oom"),
        (names[0], 5, "ddos"),
        (names[0], 9, "oom"),
        (names[48], 0, "oom"),
    ]
    assert [each.end_seconds - each.start_seconds for each in found] == [600, 300, 300, 300]
