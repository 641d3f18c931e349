"""The data contract: version, columns, states, names of the files. The metrics are those of the fleet in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from fleet_forecast.contract.definitions import COLUMNS, METRIC_SPECS, METRICS, MetricSpec
from server_profiles import ServerProfile

__all__ = ["COLUMNS", "METRICS", "METRIC_SPECS", "MetricSpec"]

CONTRACT_VERSION = "1.1.0"
METRICS_FILE = "server_metrics.parquet"
METRICS_FOLDER = "server_metrics"  # instead of METRICS_FILE: a folder of part files
METADATA_FILE = "metrics_metadata.json"
ROW_GROUP_ROWS = 262_144  # of the parquet files that are written

LONGEST_SERVER_NAME = 253  # characters, as of a full domain name
SERVER_NAME_WORDS = (
    f"1 to {LONGEST_SERVER_NAME} printable characters, no space at the beginning or end, not `.` or `..`"
)
FIRST_TIMESTAMP = np.datetime64("1970-01-01T00:00:00", "s")
END_OF_TIMESTAMPS = np.datetime64("2200-01-01T00:00:00", "s")

STATES = (
    "healthy",
    "heavy_load",
    "morning_spike",
    "critical_issue",
    "idle",
    "maintenance",
    "recovery",
    "offline",
)


@dataclass(frozen=True)
class ColumnSpec:
    """One column that is not a metric."""

    name: str
    content: str
    required: bool
    description: str


COLUMN_SPECS: Mapping[str, ColumnSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            ColumnSpec(
                "timestamp",
                "UTC time, text in ISO 8601 with its zone (`2026-11-23T10:00:00Z`), or a number since 1970 in seconds, "
                "milliseconds, microseconds or nanoseconds",
                True,
                "time of the measurement; 1970 to 2199, unique for each server",
            ),
            ColumnSpec(
                "server_name",
                f"text, {SERVER_NAME_WORDS}; whole numbers are read as text",
                True,
                "name of the server, host name or full domain name",
            ),
            ColumnSpec(
                "profile",
                "text or null",
                False,
                "purpose of the server: " + ", ".join(f"`{p}`" for p in ServerProfile) + "; one for each server",
            ),
            ColumnSpec("state", "text or null", False, "one of " + ", ".join(f"`{s}`" for s in STATES)),
            ColumnSpec("incident", "text or null", False, "label of the incident that the row belongs to"),
        )
    }
)
REQUIRED = tuple(spec.name for spec in COLUMN_SPECS.values() if spec.required)

TEXT_COLUMNS = ("server_name", "profile", "state", "incident")


def arrow_schema(metrics: Sequence[str] = METRICS) -> pa.Schema:
    """Arrow schema of a metrics file, for writers."""
    label = pa.dictionary(pa.int32(), pa.string())
    types = {
        "timestamp": pa.timestamp("ns", tz="UTC"),
        **dict.fromkeys(TEXT_COLUMNS, label),
        **dict.fromkeys(METRICS, pa.float32()),
    }
    names = [name for name in COLUMNS if name not in METRICS or name in metrics]
    return pa.schema([pa.field(name, types[name], nullable=name not in REQUIRED) for name in names])


def document_tables() -> str:
    """The tables of DATA_CONTRACT.md, in Markdown."""
    lines = ["| column | content | required | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{spec.name}` | {spec.content} | {'yes' if spec.required else 'no'} | {spec.description} |"
        for spec in COLUMN_SPECS.values()
    ]
    lines += ["", "| metric | unit | range | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{spec.name}` | {spec.unit} | {spec.range_text} | {spec.description} |" for spec in METRIC_SPECS.values()
    ]
    return "\n".join(lines)


def is_supported_version(version: object) -> bool:
    """Whether data of this contract version can be read: the major version is the same."""
    return isinstance(version, str) and version.partition(".")[0] == CONTRACT_VERSION.partition(".")[0]
