"""Refuses query parameters that would be ignored: unknown ones, and repeated ones of which one value is used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from inspect import isclass
from typing import Any, get_args, get_origin, get_type_hints

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Query
from pydantic import BaseModel

SHOWN_CHARACTERS = 100


def refuse_ignored_parameters(request: Request) -> None:
    """Raise RequestValidationError for the first query parameter that the request's route would ignore."""
    known = _known_parameters(request.scope["endpoint"])
    for name in request.query_params:
        if name not in known:
            reason = f"unknown parameter; use {', '.join(known)}" if known else "unknown parameter; there is none here"
            raise wrong_parameter(name, reason)
        values = request.query_params.getlist(name)
        if len(values) > 1 and not known[name]:
            raise wrong_parameter(name, f"is given {len(values)} times and takes one value; give it once", values[1])


def wrong_parameter(name: str, reason: str, value: str | None = None) -> RequestValidationError:
    """The error of a parameter, which the application turns into 422 with this reason; it shows the value."""
    place = ("query", name[:SHOWN_CHARACTERS])
    return RequestValidationError([{"type": "refused", "loc": place, "msg": reason, "input": value}])


def wrong_body(reason: str, field: str | None = None, value: str | None = None) -> RequestValidationError:
    """The same of a field of the body, or of all of it."""
    place = ("body",) if field is None else ("body", field)
    return RequestValidationError([{"type": "refused", "loc": place, "msg": reason, "input": value}])


@functools.cache
def _known_parameters(endpoint: Callable[..., Any]) -> Mapping[str, bool]:
    """The parameters that the function of a route reads from the query, its own and those of query models.

    The value is whether the parameter may be repeated: whether it is a list.
    """
    known: dict[str, bool] = {}
    for name, annotation in get_type_hints(endpoint, include_extras=True).items():
        kind, *marks = get_args(annotation) or (annotation,)
        if any(isinstance(mark, Query) for mark in marks):
            is_model = isclass(kind) and issubclass(kind, BaseModel)
            fields = {each: field.annotation for each, field in kind.model_fields.items()} if is_model else {name: kind}
            known |= {each: _has_list(annotated) for each, annotated in fields.items()}
    return known


def _has_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(map(_has_list, get_args(annotation)))
