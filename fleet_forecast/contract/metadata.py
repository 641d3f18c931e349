"""metrics_metadata.json: what is known of the metrics beside it, read by field and written atomically."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet_forecast.contract.specs import CONTRACT_VERSION, METADATA_FILE


class DataFileError(ValueError):
    """A file or folder cannot be read as metrics at all; the message names it and the remedy."""


@dataclass(frozen=True)
class Metadata:
    """What stands in metrics_metadata.json beside the metrics."""

    generator_version: str
    seed: int | None  # None where the data is measured, not simulated
    start: str  # ISO 8601 with zone
    hours: float
    step_seconds: int
    timezone: str  # business time zone of the fleet
    fleet: dict[str, int]  # servers by profile
    rows: int
    state_counts: dict[str, int] = field(default_factory=dict)
    incident_counts: dict[str, int] = field(default_factory=dict)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    contract_version: str = CONTRACT_VERSION


def read_metadata(folder: Path) -> Metadata:
    """Read metrics_metadata.json of a folder.

    Raises DataFileError if it is missing, damaged, of another contract version, or lacks a field.
    """
    path = Path(folder) / METADATA_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataFileError(f"{path}: no such file; metrics_generator.py writes it beside the metrics") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise DataFileError(
            f"{path}: not readable as JSON ({problem}); remove it, or generate the data again"
        ) from None
    if not isinstance(document, dict):
        raise DataFileError(f"{path}: not a JSON object; remove it, or generate the data again")
    version = document.get("contract_version")
    if not isinstance(version, str) or version.partition(".")[0] != CONTRACT_VERSION.partition(".")[0]:
        raise DataFileError(
            f"{path}: contract_version is {version!r}, this program reads {CONTRACT_VERSION}; generate the data again"
        )
    values = {}
    for spec in dataclasses.fields(Metadata):
        if spec.name in document:
            values[spec.name] = _checked_metadata(path, spec.name, document[spec.name])
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise DataFileError(f"{path}: {spec.name} is missing; add it, or generate the data again")
    return Metadata(**values)


_METADATA_TYPES: Mapping[str, tuple[type, ...]] = {
    "contract_version": (str,),
    "generator_version": (str,),
    "seed": (int, type(None)),
    "start": (str,),
    "hours": (int, float),
    "step_seconds": (int,),
    "timezone": (str,),
    "fleet": (dict,),
    "rows": (int,),
    "state_counts": (dict,),
    "incident_counts": (dict,),
    "incidents": (list,),
}


def _checked_metadata(path: Path, name: str, value: Any) -> Any:
    expected: Any = _METADATA_TYPES[name]
    if isinstance(value, bool) or not isinstance(value, expected):
        words = " or ".join("null" if kind is type(None) else kind.__name__ for kind in expected)
        raise DataFileError(f"{path}: {name} is {value!r}, which is no {words}; generate the data again")
    if name in ("hours", "step_seconds") and not (math.isfinite(value) and value > 0):
        raise DataFileError(f"{path}: {name} is {value!r}, must be above 0; generate the data again")
    return value


def write_metadata(folder: Path, metadata: Metadata) -> Path:
    """Write metrics_metadata.json so that a reader sees the old or the new one, never half of one; returns its path."""
    path = Path(folder) / METADATA_FILE
    text = json.dumps(dataclasses.asdict(metadata), indent=2, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(prefix=f".{METADATA_FILE}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
