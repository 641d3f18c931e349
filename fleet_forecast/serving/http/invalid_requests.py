"""The details of a request that is refused with 422: field, value, and the reason with the remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from fleet_forecast.contract.toml_file import keys_at
from fleet_forecast.serving.query_parameters import SHOWN_CHARACTERS

_SENTENCES = {
    "missing": "is missing; add it",
    "model_attributes_type": 'is not a JSON object; write {{"name": value, ...}}',
    "dict_type": 'is not a JSON object; write {{"name": value, ...}}',
    "model_type": 'is not a JSON object; write {{"name": value, ...}}',
    "json_invalid": "is not JSON ({error}); correct it",
    "value_error": "{error}",
    "string_type": "is not text; write it in quotes",
}


def problems_of(error: RequestValidationError, body: type[BaseModel] | None) -> list[dict[str, str]]:
    """Field, value and reason of each problem. body: the model of the request's body, None without one."""
    return [{"field": _field_of(p), **_value_of(p), "reason": _reason_of(p, body)} for p in error.errors()]


def _field_of(problem: Mapping[str, Any]) -> str:
    """The parameter, without the place in its list; or the place in the body, `body` for all of it."""
    where, *names = problem["loc"]
    if where != "body":
        return str(names[0])
    return where if problem["type"] == "json_invalid" else ".".join(map(str, names)) or where


def _value_of(problem: Mapping[str, Any]) -> dict[str, str]:
    """The beginning of a value, which may not be valid Unicode; nothing of an unknown or missing one, or an object."""
    value = problem.get("input")
    if isinstance(value, bool | int | float):
        return {"value": str(value).lower()[:SHOWN_CHARACTERS]}
    return {"value": value[:SHOWN_CHARACTERS].encode(errors="replace").decode()} if isinstance(value, str) else {}


def _reason_of(problem: Mapping[str, Any], body: type[BaseModel] | None) -> str:
    kind, message = problem.get("type", ""), str(problem["msg"])
    if kind == "extra_forbidden" and body is not None:
        return f"unknown field; use {', '.join(keys_at(body, problem['loc'][1:]))}"
    if kind in _SENTENCES:
        return _SENTENCES[kind].format(error=problem.get("ctx", {}).get("error", message))
    return re.sub(r"^\w+ should ", "it should ", message.partition(", unable to")[0])
