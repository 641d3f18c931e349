"""Refuses query parameters that a route does not have: a misspelt filter would return everything."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import isclass
from typing import Any, get_args, get_type_hints

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Query
from pydantic import BaseModel

SHOWN_CHARACTERS = 100


def refuse_unknown_parameters(request: Request) -> None:
    """Raise RequestValidationError with the first query parameter that the request's route does not have."""
    known = _known_parameters(request.scope["endpoint"])
    for name in request.query_params:
        if name not in known:
            reason = f"unknown parameter; use {', '.join(known)}" if known else "unknown parameter; there is none here"
            raise RequestValidationError([{"loc": ("query", name[:SHOWN_CHARACTERS]), "msg": reason}])


@functools.cache
def _known_parameters(endpoint: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters that the function of a route reads from the query: its own and those of query models."""
    known: list[str] = []
    for name, annotation in get_type_hints(endpoint, include_extras=True).items():
        kind, *marks = get_args(annotation) or (annotation,)
        if any(isinstance(mark, Query) for mark in marks):
            known += kind.model_fields if isclass(kind) and issubclass(kind, BaseModel) else (name,)
    return tuple(known)
