"""Known incidents: from the column `incident` of the training data and from the user's file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fleet_forecast.contract.reading import CheckedMetrics, LabelledRow
from fleet_forecast.intervals.incidents_file import IncidentRecord, read_incidents

LARGEST_GAP_STEPS = 3  # between labelled rows of one incident


def known_incidents(
    data: CheckedMetrics, step_seconds: int, incidents_file: Path | None, notice: Callable[[str], object]
) -> list[IncidentRecord]:
    """All incidents, sorted by server and start, within the time of the data.

    Raises DataFileError naming the row of the file that cannot be used.
    """
    found = set(periods(data.incident_rows(), step_seconds))
    if incidents_file is not None:
        found.update(read_incidents(incidents_file, data.servers, notice))
    first, last = (float(time.astype("datetime64[s]").astype("int64")) for time in (data.first, data.last))
    return sorted(record for record in found if record.start_seconds >= first and record.end_seconds <= last)


def periods(rows: Iterable[LabelledRow], step_seconds: int) -> list[IncidentRecord]:
    """Rows of one server and label without a large gap as one incident, from the first to the end of the last row."""
    found: list[IncidentRecord] = []
    for row in sorted(rows):
        last = found[-1] if found else None
        end = row.seconds + step_seconds
        if (
            last is not None
            and (last.server_name, last.type) == (row.server_name, row.label)
            and row.seconds - last.end_seconds < LARGEST_GAP_STEPS * step_seconds
        ):
            found[-1] = last._replace(end_seconds=end)
        else:
            found.append(IncidentRecord(row.server_name, row.seconds, end, row.label))
    return found
