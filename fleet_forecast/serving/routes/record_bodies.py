"""Request bodies with records: reading, and the models that document them.

Records are validated by ingest.validation, a plain loop that is faster than the models. A test holds the models to it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from fleet_forecast.contract.labels import is_server_name
from fleet_forecast.contract.specs import LONGEST_SERVER_NAME, METRIC_SPECS, SERVER_NAME_WORDS, STATES, MetricSpec
from fleet_forecast.contract.times import number_unit
from fleet_forecast.serving.ingest.bodies import MEDIA_TYPES, ReceivedBody
from fleet_forecast.serving.ingest.validation import PROFILE_NAME, CheckedBatch
from fleet_forecast.serving.routes.responses import JSON
from fleet_forecast.serving.settings import Settings
from server_profiles import ServerProfile

MAX_IGNORED_FIELDS = MAX_NOTICES = 100  # named in one response
_STATE_NAMES = tuple(map(str, STATES))
_EXAMPLE = {"timestamp": "2026-11-23T10:00:00Z", "server_name": "ppml0015", "cpu_pct": 78.0, "mem_pct": 82.5}


def _server_name(name: str) -> str:
    if not is_server_name(name):
        raise ValueError(f"a name is {SERVER_NAME_WORDS}")
    return name


def _no_other_number(value: Any) -> Any:
    if isinstance(value, int | float) and (isinstance(value, bool) or number_unit(value) is None):
        raise ValueError("no time since 1970")
    return value


_Time = Annotated[datetime | int | float, BeforeValidator(_no_other_number)]


class _Labels(BaseModel):
    """One sample of one server. Null and a missing metric both mean: not measured.

    A value outside its range is left out; a record without another value is rejected.
    """

    timestamp: Annotated[_Time, Field(description="with its zone, or a number since 1970, whose size gives its unit")]
    server_name: Annotated[
        str, Field(max_length=LONGEST_SERVER_NAME, description=SERVER_NAME_WORDS), AfterValidator(_server_name)
    ]
    profile: Annotated[
        str | None,
        Field(
            pattern=f"^{PROFILE_NAME.pattern}$",
            description=f"{', '.join(ServerProfile)}, or one of the fleet file, or another",
        ),
    ] = None
    state: Literal[_STATE_NAMES] | None = None  # type: ignore[valid-type]


def _metric_field(spec: MetricSpec) -> Any:
    bounds = Field(ge=spec.lower, le=spec.upper, description=f"{spec.description}, {spec.unit}")
    return Annotated[float | None, bounds], None


def record_model() -> type[BaseModel]:
    """One sample with the metrics of the fleet."""
    fields = {name: _metric_field(spec) for name, spec in METRIC_SPECS.items()}
    found: type[BaseModel] = create_model("Record", __base__=_Labels, **fields)
    return found


class Rejection(BaseModel):
    """A record, or a cell of one, that was not accepted."""

    index: Annotated[int, Field(description="place of the record in the request, from 0")]
    field: str
    value: Annotated[Any, Field(description="the rejected value, shortened")] = None
    reason: str


class BatchNotes(BaseModel):
    """Parts of the records in a request that were not used."""

    rejected: list[Rejection]
    left_out: Annotated[list[Rejection], Field(description="cells of accepted records, counted as not measured")] = []
    ignored_fields: Annotated[list[str], Field(description="fields that the data contract does not have")] = []
    notices: Annotated[list[str], Field(description="what was not used of accepted records")] = []


class IngestResponse(BatchNotes):
    """The result of storing samples."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "accepted": 1,
                    "rejected": [
                        {"index": 1, "field": "cpu_pct", "value": 180, "reason": "cpu_pct is a number from 0 to 100"}
                    ],
                }
            ]
        }
    )

    accepted: Annotated[int, Field(description="records stored, on disk")]


def body_schema() -> dict[str, Any]:
    """The component RECORDS of the OpenAPI document."""
    records = {
        "type": "array",
        "items": record_model().model_json_schema(),
        "maxItems": Settings().max_records,
        "description": "at most max_records of the settings",
    }
    wrapped = {"type": "object", "required": ["records"], "properties": {"records": records}}
    return {"anyOf": [wrapped, records, records["items"]]}


RECORDS = "Records"  # depends on the fleet, so the application adds it to its OpenAPI document
RECORDS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "also compressed, with Content-Encoding gzip or zstd",
        "content": {
            JSON: {"schema": {"$ref": f"#/components/schemas/{RECORDS}"}, "example": {"records": [_EXAMPLE]}},
            **{
                media_type: {"schema": {"type": "string", "description": "one record per line"}}
                for media_type in MEDIA_TYPES[1:]
            },
        },
    }
}


async def read_body(request: Request, settings: Settings) -> ReceivedBody:
    """The whole body as it was sent; the middleware bounds its size and time."""
    content = b"".join([chunk async for chunk in request.stream()])
    encoding = request.headers.get("content-encoding", "").strip().lower()
    return ReceivedBody(content, encoding, settings.max_body_bytes)


def batch_notes(batch: CheckedBatch) -> dict[str, Any]:
    """BatchNotes as a document for to_json."""
    notes: dict[str, Any] = {"rejected": [rejection._asdict() for rejection in batch.rejected]}
    if batch.left_out:
        notes["left_out"] = [cell._asdict() for cell in batch.left_out]
    if batch.ignored_fields:
        notes["ignored_fields"] = sorted(batch.ignored_fields)[:MAX_IGNORED_FIELDS]
    if batch.notices:
        notes["notices"] = batch.notices[:MAX_NOTICES]
    return notes
