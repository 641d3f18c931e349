"""metrics_metadata.json: origin and extent of the metrics in the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.specs import CONTRACT_VERSION, METADATA_FILE, is_supported_version


class DataFileError(ValueError):
    """A file or folder cannot be read as metrics at all; the message names it and the remedy."""


class Metadata(BaseModel):
    """Content of metrics_metadata.json."""

    model_config = ConfigDict(frozen=True, strict=True)

    generator_version: str
    seed: int | None = Field(description="None if the data is measured")
    start: str = Field(description="ISO 8601 with zone")
    hours: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    step_seconds: Annotated[int, Field(gt=0)]
    timezone: str = Field(description="business time zone of the fleet")
    fleet: dict[str, int] = Field(description="servers by profile")
    rows: int
    state_counts: dict[str, int] = {}
    incident_counts: dict[str, int] = {}
    incidents: list[dict[str, Any]] = []
    contract_version: str = CONTRACT_VERSION
    calendar: dict[str, Any] | None = Field(default=None, description="business calendar as in fleet.toml")

    @model_validator(mode="after")
    def _usable_calendar(self) -> Metadata:
        self.business_calendar()
        return self

    def business_calendar(self) -> BusinessCalendar:
        """The calendar of the fleet; data of earlier versions has the time zone alone. Raises ValueError."""
        try:
            return BusinessCalendar.of_record(self.model_dump())
        except (KeyError, TypeError, AttributeError) as problem:
            raise ValueError(f"calendar is not as in fleet.toml ({problem!r}); generate the data again") from None


def read_metadata(folder: Path) -> Metadata:
    """Read metrics_metadata.json of a folder; fields that are not the contract's are ignored.

    Raises DataFileError if it is missing, damaged, of another major contract version, or lacks a field.
    """
    path = Path(folder) / METADATA_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataFileError(f"{path}: no such file; metrics_generator.py writes it with the metrics") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise DataFileError(
            f"{path}: not readable as JSON ({problem}); remove it, or generate the data again"
        ) from None
    if not isinstance(document, dict):
        raise DataFileError(f"{path}: not a JSON object; remove it, or generate the data again")
    version = document.get("contract_version")
    if not is_supported_version(version):
        raise DataFileError(
            f"{path}: contract_version is {version!r}, this program reads {CONTRACT_VERSION}; generate the data again"
        )
    try:
        return Metadata.model_validate(document)
    except ValidationError as problem:
        raise DataFileError(f"{path}: {_field_problem(problem, document)}") from None


def _field_problem(error: ValidationError, document: dict[str, Any]) -> str:
    """The first field that cannot be used, its value and the remedy."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return f"{name} is missing; add it, or generate the data again"
    value = document[name]
    if first["type"] in ("greater_than", "finite_number"):
        return f"{name} is {value!r}, must be above 0; generate the data again"
    kind = Metadata.model_fields[name].annotation
    words = getattr(kind, "__name__", str(kind)).replace(" | ", " or ").replace("None", "null")
    return f"{name} is {value!r}, which is not {words}; generate the data again"


def write_metadata(folder: Path, metadata: Metadata) -> Path:
    """Replace metrics_metadata.json as a whole; returns its path. Raises OSError if the folder cannot be written."""
    path = Path(folder) / METADATA_FILE
    replace_file(path, metadata_text(metadata).encode())
    return path


def metadata_text(metadata: Metadata) -> str:
    """Content of metrics_metadata.json."""
    return json.dumps(metadata.model_dump(), indent=2, allow_nan=False) + "\n"
