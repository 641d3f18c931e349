"""The report of a replay in HTML and JSON: alerts, their evaluation with incidents, the curve, the worst cases."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.evaluation.report import page_head
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.alert import Alert, as_document
from fleet_forecast.serving.replay.curve import LevelPoint
from fleet_forecast.serving.replay.labels import write_alerts

PICTURES_EXPLAINED = (
    "<p>Pictures: measurements in black, the forecast at the beginning of the alert or incident with its 80 % band in "
    "blue, thresholds dashed, alerts on the metric in yellow, incidents in red.</p>"
)
PAGES, ALL_ALERTS = "page", "page_or_watch"  # the groups of alerts that are evaluated
HEADINGS = {PAGES: "Pages", ALL_ALERTS: "All alerts, page or watch"}
SHOWN_ALERTS = 300  # in the page; all are in alerts.csv and report.json
REPORT_FILE, DATA_FILE, ALERTS_FILE, RULES_FILE = "report.html", "report.json", "alerts.csv", "alerts.toml"


@dataclass(frozen=True)
class ReplayReport:
    """Content of the report.

    facts: of the replay. scores: of PAGES and ALL_ALERTS, by group (all, profile PROFILE, type TYPE). curves: by
    reason. pictures: heading -> figures. rules: recommended, None if no level keeps the budget.
    """

    facts: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]]
    curves: Mapping[str, Sequence[LevelPoint]]
    alerts: Sequence[Alert]
    pictures: Mapping[str, Sequence[str]]
    rules: str | None
    end_seconds: float

    @property
    def has_incidents(self) -> bool:
        """Whether alerts were evaluated with incidents."""
        return bool(self.facts["incidents"])


def write_report(folder: Path, report: ReplayReport) -> dict[str, Any]:
    """Write page, data, alerts and recommended rules into a folder; returns the data without the alerts."""
    data = {
        **report.facts,
        "scores": report.scores,
        "curves": {
            name: [{"level": point.level, **point.scores} for point in curve] for name, curve in report.curves.items()
        },
        "recommended_rules": report.rules,
    }
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / REPORT_FILE, _page(report).encode())
    documents = [{**as_document(alert), "severity": alert.highest_severity} for alert in report.alerts]
    replace_file(folder / DATA_FILE, json.dumps({**data, "alerts": documents}, indent=1).encode())
    write_alerts(folder / ALERTS_FILE, report.alerts, report.end_seconds)
    if report.rules is not None:
        replace_file(folder / RULES_FILE, report.rules.encode())
    return data


def _page(report: ReplayReport) -> str:
    parts = ["<h1>Alerts of the past</h1>", _table(pd.DataFrame(report.facts.items(), columns=["replay", ""]))]
    for group, heading in HEADINGS.items():
        parts += [f"<h2>{heading}</h2>", _scores_table(report.scores[group], report.has_incidents)]
    for name, curve in report.curves.items():
        parts += [
            f"<h2>Alarms by level: {html.escape(name)}</h2>",
            _curve_note(report),
            _curve_table(curve, report.has_incidents),
        ]
    parts += ["<h2>Recommended rules</h2>", _rules(report)]
    if report.pictures:
        parts.append(PICTURES_EXPLAINED)
    for heading, figures in report.pictures.items():
        parts += [f"<h2>{html.escape(heading)}</h2>", *(figures or ["<p>None.</p>"])]
    parts += ["<h2>Alerts by server</h2>", _by_server(report.alerts), "<h2>Alerts</h2>", _alerts_table(report)]
    return page_head("Alerts of the past") + "".join(parts) + "</html>\n"


def _table(frame: pd.DataFrame) -> str:
    """Numbers have three digits; what is missing is "-"."""
    shown = frame.astype(object).where(frame.notna(), "-")
    text = shown.to_html(index=False, border=0, float_format=lambda value: f"{value:.3g}")
    return f'<div class="wide">{text}</div>'


def _scores_table(scores: Mapping[str, Mapping[str, Any]], evaluated: bool) -> str:
    rows = []
    for group, found in scores.items():
        leads = {f"lead {name}, min": value for name, value in found["lead_minutes"].items()}
        numbers = {key.replace("_", " "): value for key, value in found.items() if key != "lead_minutes"}
        kept = {**numbers, **leads} if evaluated else {"alarms a server and month": numbers["alarms per server month"]}
        rows.append({"group": group, **kept})
    return _table(pd.DataFrame(rows))


def _curve_note(report: ReplayReport) -> str:
    kind = "false alarms" if report.has_incidents else "alarms (no incidents are known, so all are counted)"
    return f"<p>By the probability at which an alert fires: {kind} a server and month, recall and lead time.</p>"


def _curve_table(curve: Sequence[LevelPoint], evaluated: bool) -> str:
    alarms = f"{'false ' if evaluated else ''}alarms a server and month"
    rows = [
        {
            "level": point.level,
            alarms: point.false_alarms_per_server_month,
            "precision": point.scores["precision"],
            "recall": point.scores["recall"],
            "recall ahead": point.scores["recall_ahead"],
            "median lead, min": point.scores["lead_minutes"].get("p50"),
        }
        for point in curve
    ]
    return _table(pd.DataFrame(rows))


def _rules(report: ReplayReport) -> str:
    if report.rules is None:
        return "<p>No level keeps the budget of false alarms; raise the budget, or the thresholds.</p>"
    return f"<pre>{html.escape(report.rules)}</pre>"


def _by_server(alerts: Sequence[Alert]) -> str:
    counts = Counter((alert.server_name, alert.metric, alert.reason) for alert in alerts)
    rows = [(*key, number) for key, number in counts.most_common(SHOWN_ALERTS)]
    return _table(pd.DataFrame(rows, columns=["server", "metric", "reason", "alerts"]))


def _alerts_table(report: ReplayReport) -> str:
    rows = [
        (
            alert.highest_severity,
            iso(alert.started_seconds),
            "-" if alert.ended_seconds is None else iso(alert.ended_seconds),
            alert.sentence,
        )
        for alert in report.alerts[:SHOWN_ALERTS]
    ]
    note = f"<p>{len(rows)} of {len(report.alerts)}; all are in {ALERTS_FILE}.</p>"
    return note + _table(pd.DataFrame(rows, columns=["severity", "start", "end", "message"]))
