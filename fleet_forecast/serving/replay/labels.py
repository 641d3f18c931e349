"""Labels of the alerts of a replay, yes or no: the CSV that a person fills in, and the incidents file made of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.alert import Alert

LABEL = "is_incident"
COLUMNS = ("server_name", "metric", "reason", "severity", "started_at", "ended_at", LABEL, "sentence")
YES, NO = "yes", "no"
LABELLED = "labelled"  # type of the incidents


def write_alerts(path: Path, alerts: Iterable[Alert], end_seconds: float) -> None:
    """Write one row for each alert, with an empty label. end_seconds: of the replay, for alerts that still fired."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for alert in alerts:
        ended = end_seconds if alert.ended_seconds is None else alert.ended_seconds
        times = iso(alert.started_seconds), iso(ended)
        writer.writerow(
            [alert.server_name, alert.metric, alert.reason, alert.highest_severity, *times, "", alert.sentence]
        )
    replace_file(path, text.getvalue().encode())


def write_incidents(labels: Path, incidents: Path, notice: Callable[[str], object]) -> int:
    """Write the alerts that are labelled yes as an incidents file; returns their number.

    notice: called with a line on alerts without a label. Raises DataFileError naming row, field, value and remedy.
    """
    yes, unlabelled = [], 0
    for number, row in enumerate(_rows(labels), start=1):
        label = (row[LABEL] or "").strip().lower()
        if label not in (YES, NO, ""):
            raise DataFileError(f"{labels}: row {number}: {LABEL} is {row[LABEL]!r}; write {YES} or {NO}")
        unlabelled += label == ""
        if label == YES:
            yes.append((row["server_name"], row["started_at"], row["ended_at"], LABELLED))
    if not yes:
        raise DataFileError(f"{labels}: no row is labelled {YES}; fill the column {LABEL}")
    if unlabelled:
        notice(f"{labels}: {unlabelled:,} alerts have no label: not counted as incidents")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("server_name", "start", "end", "type"))
    writer.writerows(yes)
    replace_file(incidents, text.getvalue().encode())
    return len(yes)


def _rows(path: Path) -> list[dict[str, str]]:
    needed = ("server_name", "started_at", "ended_at", LABEL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataFileError(f"{path}: not readable as CSV ({problem}); give the alerts.csv of a replay") from None
    missing = [name for name in needed if not rows or name not in rows[0]]
    if missing:
        raise DataFileError(f"{path}: column {', '.join(missing)} is missing; give the alerts.csv of a replay")
    return rows
