"""What the OpenAPI document says of bodies and answers that routes write as bytes: schemas and examples."""

from __future__ import annotations

from typing import Any

from fleet_forecast.contract.specs import METRIC_SPECS, METRICS, SERVER_NAME_PATTERN, STATES
from fleet_forecast.serving.ingest.validation import PROFILE_NAME
from server_profiles import ServerProfile

DESCRIPTION = (
    "Receives server metrics and forecasts each server's next hours as quantiles. "
    "All times are UTC; null means not measured."
)
_EXAMPLE_RECORD = {
    "timestamp": "2026-11-23T10:00:00Z",
    "server_name": "ppml0015",
    **dict(zip(METRICS, (78.0, 82.5, 45.2, 8.5, 5.1, 22.0), strict=True)),
}


def _json(description: str, schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {"application/json": content}}


def _object(required: tuple[str, ...], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_WHOLE = {"type": "integer"}
_OPTIONAL_TEXT = {"type": ["string", "null"]}
_DETAIL = _object(("detail",), detail={"type": ["string", "array"]})


def _error(description: str) -> dict[str, Any]:
    return _json(description, _DETAIL)


_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: _error("no or a wrong token"),
    421: _error("unknown Host header"),
}
_BODY_REFUSALS = {
    **_REFUSALS,
    400: _error("the body is not JSON, or has no list of records, or too many of them"),
    408: _error("the body did not arrive in time"),
    413: _error("the body is too large"),
    415: _error("the content type is not application/json"),
}
_BUSY = _error("busy, disk full or no model yet; try again after Retry-After seconds")


def _metric_schema(name: str) -> dict[str, Any]:
    spec = METRIC_SPECS[name]
    return {"type": ["number", "null"], "minimum": spec.lower, "maximum": spec.upper, "description": spec.unit}


_RECORD = _object(
    ("timestamp", "server_name"),
    timestamp={"type": "string", "format": "date-time"},
    server_name={"type": "string", "pattern": f"^{SERVER_NAME_PATTERN}$"},
    profile={
        "type": ["string", "null"],
        "pattern": f"^{PROFILE_NAME}$",
        "description": f"{', '.join(ServerProfile)}, or another that the model may know",
    },
    state={"type": ["string", "null"], "enum": [*map(str, STATES), None]},
    **{name: _metric_schema(name) for name in METRICS},
)
_RECORDS_SCHEMA = _object(("records",), records={"type": "array", "items": _RECORD, "maxItems": 10_000})
RECORDS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _RECORDS_SCHEMA, "example": {"records": [_EXAMPLE_RECORD]}}},
    }
}
_REJECTIONS = {
    "type": "array",
    "items": _object(("index", "field", "reason"), index=_WHOLE, field=_TEXT, value={}, reason=_TEXT),
}
_INGEST_ANSWER = _object(
    ("accepted", "rejected"), accepted=_WHOLE, rejected=_REJECTIONS, ignored_fields={"type": "array", "items": _TEXT}
)
INGEST: dict[int | str, dict[str, Any]] = {
    200: _json(
        "the good records are on disk; the others are listed",
        _INGEST_ANSWER,
        {
            "accepted": 1,
            "rejected": [{"index": 1, "field": "cpu_pct", "value": 180, "reason": "cpu_pct is a number from 0 to 100"}],
        },
    ),
    **_BODY_REFUSALS,
    503: _BUSY,
}

_FORECAST_SCHEMA = _object(
    ("server_name", "profile", "profile_rule", "model", "origin", "step_seconds", "steps", "metrics", "warnings"),
    server_name=_TEXT,
    profile=_TEXT,
    profile_rule=_OPTIONAL_TEXT,
    model=_TEXT,
    origin=_TEXT,
    made_at=_TEXT,
    age_seconds=_NUMBER,
    stale={"type": "boolean"},
    cold_start={"type": "boolean"},
    history_steps=_WHOLE,
    step_seconds=_WHOLE,
    steps={"type": "array", "items": _WHOLE},
    timestamps={"type": "array", "items": _TEXT},
    warnings={"type": "array", "items": _TEXT},
    metrics={"type": "object", "additionalProperties": {"type": "object"}},
)
_FORECAST_EXAMPLE = {
    "server_name": "ppml0015",
    "profile": "ml_compute",
    "profile_rule": r"pattern ppml\d+ (built-in)",
    "model": "tft_model_20261123T080000Z",
    "origin": "2026-11-23T10:00:00Z",
    "made_at": "2026-11-23T10:05:11Z",
    "age_seconds": 320.4,
    "stale": False,
    "cold_start": False,
    "history_steps": 288,
    "step_seconds": 300,
    "steps": [12],
    "timestamps": ["2026-11-23T11:00:00Z"],
    "warnings": [],
    "metrics": {"cpu_pct": {"unit": "%", "current": 78.0, "q0.1": [70.1], "q0.5": [77.9], "q0.9": [85.3]}},
}
_OF_BOTH = (  # what a forecast and its explanation say alike
    "server_name",
    "profile",
    "profile_rule",
    "model",
    "origin",
    "history_steps",
    "step_seconds",
    "steps",
    "warnings",
)
_INVALID = _error("a parameter is unknown or has a wrong value")
FORECAST: dict[int | str, dict[str, Any]] = {
    200: _json("the forecast", _FORECAST_SCHEMA, _FORECAST_EXAMPLE),
    **_REFUSALS,
    404: _error("no such server, or silent too long"),
    422: _INVALID,
    503: _BUSY,
}
_WEIGHT = _object(("variable", "label", "weight"), variable=_TEXT, label=_TEXT, weight=_NUMBER)
_WEIGHTS = {"type": "array", "items": _WEIGHT}
_ATTENTION = _object(
    ("bin_hours", "lag_hours", "weights", "horizon_weight"),
    bin_hours={**_NUMBER, "description": "each weight is that of so many hours of the context"},
    lag_hours={"type": "array", "items": _NUMBER, "description": "hours before the origin at which they begin"},
    weights={"type": "array", "items": _NUMBER, "description": "with horizon_weight they sum to 1"},
    horizon_weight={**_NUMBER, "description": "attention to earlier steps of the horizon itself"},
)
EXPLANATION: dict[int | str, dict[str, Any]] = {
    200: _json(
        "mean weights over the horizon's steps asked for; those of each group of variables sum to 1, heaviest first",
        _object(
            (*_OF_BOTH, "variables", "attention"),
            server_name=_TEXT,
            profile=_TEXT,
            profile_rule=_OPTIONAL_TEXT,
            model=_TEXT,
            origin=_TEXT,
            history_steps=_WHOLE,
            step_seconds=_WHOLE,
            steps={"type": "array", "items": _WHOLE},
            warnings={"type": "array", "items": _TEXT},
            variables=_object(("static", "encoder", "decoder"), static=_WEIGHTS, encoder=_WEIGHTS, decoder=_WEIGHTS),
            attention=_ATTENTION,
        ),
        {
            **{key: value for key, value in _FORECAST_EXAMPLE.items() if key in _OF_BOTH},
            "variables": {
                "static": [{"variable": "profile", "label": "profile", "weight": 1.0}],
                "encoder": [
                    {"variable": "cpu_pct_scaled", "label": "cpu_pct, value", "weight": 0.81},
                    {"variable": "half_hour", "label": "time of day", "weight": 0.19},
                ],
                "decoder": [
                    {
                        "variable": "cpu_pct_daily_mean",
                        "label": "cpu_pct, mean of earlier days at this time",
                        "weight": 1.0,
                    }
                ],
            },
            "attention": {"bin_hours": 1.0, "lag_hours": [0.0, 1.0], "weights": [0.5, 0.2], "horizon_weight": 0.3},
        },
    ),
    **_REFUSALS,
    404: _error("no such server, or silent too long"),
    409: _error("the model in use has no explanations"),
    422: _INVALID,
    503: _BUSY,
}
FORECASTS: dict[int | str, dict[str, Any]] = {
    200: _json(
        "one page of forecasts",
        _object(
            ("forecasts", "servers", "next"),
            model=_OPTIONAL_TEXT,
            origin=_OPTIONAL_TEXT,
            made_at=_OPTIONAL_TEXT,
            servers=_WHOLE,
            next=_OPTIONAL_TEXT,
            forecasts={"type": "array", "items": _FORECAST_SCHEMA},
        ),
    ),
    204: {"description": "a table was asked for and there is no forecast"},
    **_REFUSALS,
    422: _INVALID,
}
# By the Accept header, as a table like the batch's; the following page's `after` is in the header X-Next.
for _kind in ("application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"):
    FORECASTS[200]["content"][_kind] = {"schema": {"type": "string", "format": "binary"}}
FORECAST_OF_HISTORY: dict[int | str, dict[str, Any]] = {
    200: _json(
        "one forecast per server of the request",
        _object(
            ("model", "forecasts", "rejected"),
            model=_TEXT,
            rejected=_REJECTIONS,
            forecasts={"type": "array", "items": _FORECAST_SCHEMA},
        ),
    ),
    **_BODY_REFUSALS,
    422: _error("no record was accepted, or too many servers"),
    503: _BUSY,
}
NOT_READY: dict[int | str, dict[str, Any]] = {
    200: {"description": "a model is loaded and checked"},
    421: _REFUSALS[421],
    503: {"description": "no model yet, and why"},
}
STATUS: dict[int | str, dict[str, Any]] = {200: _json("the status", {"type": "object"}), **_REFUSALS}

_SERVER = _object(
    ("server_name", "profile", "profile_rule"),
    server_name=_TEXT,
    profile=_TEXT,
    profile_rule=_OPTIONAL_TEXT,
    last_measured_step=_OPTIONAL_TEXT,
    forecast_origin=_OPTIONAL_TEXT,
    stale={"type": ["boolean", "null"]},
)
SERVERS: dict[int | str, dict[str, Any]] = {
    200: _json(
        "one page", _object(("servers", "next"), servers={"type": "array", "items": _SERVER}, next=_OPTIONAL_TEXT)
    ),
    **_REFUSALS,
    422: _INVALID,
}
PROFILES: dict[int | str, dict[str, Any]] = {
    200: _json("the profiles", _object(("profiles",), profiles={"type": "array", "items": {"type": "object"}})),
    **_REFUSALS,
}
_VALUES = {"type": "array", "items": {"type": ["number", "null"]}}
HISTORY: dict[int | str, dict[str, Any]] = {
    200: _json(
        "one value per timestamp and metric, null where not measured",
        _object(
            ("server_name", "timestamps", "metrics"),
            server_name=_TEXT,
            step_seconds=_WHOLE,
            timestamps={"type": "array", "items": _TEXT},
            states={"type": "array", "items": _OPTIONAL_TEXT},
            metrics={"type": "object", "additionalProperties": _VALUES},
        ),
    ),
    **_REFUSALS,
    404: _error("no such server"),
    422: _INVALID,
    503: _error("the history cannot be read"),
}
MODEL: dict[int | str, dict[str, Any]] = {
    200: _json("the model, null before one is loaded", _object(("model",), model=_OPTIONAL_TEXT)),
    **_REFUSALS,
}
RELOAD: dict[int | str, dict[str, Any]] = {
    200: _json("the model was loaded and is in use", _object(("loaded", "model"), loaded={"type": "boolean"})),
    **_REFUSALS,
    403: _error("no admin token is set"),
    409: _json("the model was refused; the one before stays", _object(("loaded", "problem"), problem=_TEXT)),
    413: _BODY_REFUSALS[413],
    415: _BODY_REFUSALS[415],
}
METRICS_PAGE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus text, or OpenMetrics by the Accept header", "content": {"text/plain": {}}},
    **_REFUSALS,
}
_ALERT = _object(
    ("state", "server_name", "profile", "metric", "threshold", "probability", "sentence", "reason"),
    state={"enum": ["firing", "resolved"]},
    reason={"enum": ["breach", "departure"]},
    server_name=_TEXT,
    profile=_TEXT,
    metric=_TEXT,
    threshold=_NUMBER,
    probability=_NUMBER,
    current={"type": ["number", "null"]},
    sentence=_TEXT,
    **{f"{name}_at": _OPTIONAL_TEXT for name in ("started", "ended", "expected", "earliest", "latest")},
)
ALERTS: dict[int | str, dict[str, Any]] = {
    200: _json("firing alerts, most probable first", _object(("alerts",), alerts={"type": "array", "items": _ALERT})),
    **_REFUSALS,
    422: _INVALID,
}
RISKS: dict[int | str, dict[str, Any]] = {
    200: _json("most probable breaches", _object(("risks",), risks={"type": "array", "items": {"type": "object"}})),
    **_REFUSALS,
    422: _INVALID,
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "events cycle, alert and model, as they happen", "content": {"text/event-stream": {}}},
    **_REFUSALS,
    503: _error("too many event streams"),
}
