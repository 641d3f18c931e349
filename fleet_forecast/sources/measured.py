"""Measured metrics as files of the data contract: pulled from Prometheus and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fleet_forecast import __version__
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.metadata import Metadata, write_metadata
from fleet_forecast.contract.publishing import publish, working_folder
from fleet_forecast.contract.specs import METRICS, METRICS_FILE, ROW_GROUP_ROWS, arrow_schema
from fleet_forecast.iso_time import iso
from fleet_forecast.sources.fleet_pull import LeftOut, pull_fleet
from fleet_forecast.sources.prometheus import Progress, PrometheusError, PrometheusServer, TimeRange
from server_profiles import ProfileRules, infer_profile_from_name


@dataclass(frozen=True)
class PullRequest:
    """Time range [start, end) and profile rules of a pull; calendar: the fleet's business calendar."""

    start: datetime
    end: datetime
    step_seconds: int
    calendar: BusinessCalendar
    rules: ProfileRules


class Written(NamedTuple):
    """The result of a pull; path: of the metrics. left_out: servers that were not written, and why."""

    rows: int
    servers: int
    path: Path
    left_out: Sequence[LeftOut]


def pull_to_folder(
    servers: Sequence[PrometheusServer], request: PullRequest, folder: Path, progress: Progress
) -> Written:
    """Pull the metrics of a fleet and write them with their metadata.

    Raises PrometheusError (also if there are no values), OSError if the folder cannot be written.
    """
    wanted = TimeRange(request.start, request.end)
    frame, _, left_out = pull_fleet(servers, wanted, request.step_seconds, progress)
    if frame.empty and left_out:
        raise PrometheusError(f"every server is left out: {'; '.join(each.reason for each in left_out[:3])}")
    if frame.empty:
        addresses = ", ".join(server.client.address for server in servers)
        raise PrometheusError(
            f"{addresses} has no values from {iso(request.start)} to {iso(request.end)} for any query; check the "
            "time range, that node_exporter is scraped, or give your own queries in fleet.toml"
        )
    profiles = {name: infer_profile_from_name(name, request.rules) for name in frame["server_name"].unique()}
    metadata = Metadata(
        generator_version=__version__,
        seed=None,
        start=iso(request.start),
        hours=(request.end - request.start).total_seconds() / 3600,
        step_seconds=request.step_seconds,
        timezone=request.calendar.timezone,
        calendar=request.calendar.as_document(),
        fleet={str(profile): count for profile, count in sorted(Counter(profiles.values()).items())},
        rows=len(frame),
    )
    path = write_measured(frame.assign(profile=frame["server_name"].map(profiles)), folder, metadata)
    return Written(len(frame), len(profiles), path, left_out)


def write_measured(frame: pd.DataFrame, folder: Path, metadata: Metadata) -> Path:
    """Write measured rows (timestamp, server_name, profile, some metrics) and metadata; returns the metrics' path.

    Raises OSError if the folder cannot be written.
    """
    schema = arrow_schema([name for name in METRICS if name in frame.columns])
    complete = frame.assign(**{name: None for name in schema.names if name not in frame.columns})
    table = pa.Table.from_pandas(complete[schema.names], preserve_index=False).cast(schema)
    with working_folder(folder) as temporary:
        pq.write_table(table, temporary / METRICS_FILE, row_group_size=ROW_GROUP_ROWS)
        write_metadata(temporary, metadata)
        return publish(temporary, folder)
