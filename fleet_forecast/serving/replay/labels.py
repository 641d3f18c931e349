"""Yes or no to each alert of a replay: the CSV that a person fills in, and the incidents file made of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.alert import Alert

ANSWER = "is_incident"
COLUMNS = ("server_name", "metric", "reason", "severity", "started_at", "ended_at", ANSWER, "sentence")
YES, NO = "yes", "no"
LABELLED = "labelled"  # type of the incidents


def write_alerts(path: Path, alerts: Iterable[Alert], end_seconds: float) -> None:
    """Write one row for each alert, with an empty answer. end_seconds: of the replay, for alerts that still fired."""
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


def write_incidents(answers: Path, incidents: Path, notice: Callable[[str], object]) -> int:
    """Write the alerts that were answered with yes as an incidents file; returns their number.

    notice: called with a line on alerts without an answer. Raises DataFileError naming row, field, value and remedy.
    """
    yes, unanswered = [], 0
    for number, row in enumerate(_rows(answers), start=1):
        answer = (row[ANSWER] or "").strip().lower()
        if answer not in (YES, NO, ""):
            raise DataFileError(f"{answers}: row {number}: {ANSWER} is {row[ANSWER]!r}; write {YES} or {NO}")
        unanswered += answer == ""
        if answer == YES:
            yes.append((row["server_name"], row["started_at"], row["ended_at"], LABELLED))
    if not yes:
        raise DataFileError(f"{answers}: no row is answered with {YES}; fill the column {ANSWER}")
    if unanswered:
        notice(f"{answers}: {unanswered:,} alerts have no answer: not counted as incidents")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("server_name", "start", "end", "type"))
    writer.writerows(yes)
    replace_file(incidents, text.getvalue().encode())
    return len(yes)


def _rows(path: Path) -> list[dict[str, str]]:
    needed = ("server_name", "started_at", "ended_at", ANSWER)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataFileError(f"{path}: not readable as CSV ({problem}); give the alerts.csv of a replay") from None
    missing = [name for name in needed if not rows or name not in rows[0]]
    if missing:
        raise DataFileError(f"{path}: column {', '.join(missing)} is missing; give the alerts.csv of a replay")
    return rows
