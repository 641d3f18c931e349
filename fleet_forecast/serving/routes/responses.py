"""Responses that several routes return, and the OpenAPI descriptions of refusals."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request, Response
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.json_bytes import to_json
from fleet_forecast.serving.query_parameters import refuse_ignored_parameters
from fleet_forecast.serving.storage.errors import HistoryBusyError, HistoryUnavailableError, PartlyStoredError

JSON = "application/json"
LONGEST_NAME = 253  # characters that a message shows
UtcTime = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Starter = Annotated[bool, Field(description="whether this is the starter model, which was not trained on this fleet")]
Responses = dict[int | str, dict[str, Any]]


async def running_daemon(connection: HTTPConnection) -> Daemon:
    """The daemon that serves this request or WebSocket. Every route that reads data has it, so it checks the query."""
    if isinstance(connection, Request) and connection.scope["query_string"]:
        refuse_ignored_parameters(connection)
    daemon: Daemon = connection.app.state.daemon
    return daemon


RunningDaemon = Annotated[Daemon, Depends(running_daemon)]


class InvalidParameter(BaseModel):
    """A query parameter, or a field of the body, that cannot be used; `body` is all of it."""

    field: str
    value: Annotated[str | None, Field(description="missing for what is unknown or missing, and for objects")] = None
    reason: str


class Refusal(BaseModel):
    """The reason why a request is refused."""

    detail: str | list[InvalidParameter]


def refusal(description: str) -> dict[str, Any]:
    """OpenAPI description of a refusal."""
    return {"model": Refusal, "description": description}


INVALID_PARAMETER = refusal("a parameter is unknown, repeated, or has a wrong value")
ACCESS_REFUSALS: Responses = {  # and of unknown parameters: every route has these
    400: refusal("a header that access depends on is repeated"),
    401: refusal("no token, or a wrong one"),
    403: refusal("sent by a page of another origin"),
    421: refusal("unknown Host header"),
    422: INVALID_PARAMETER,
}
BODY_REFUSALS: Responses = {
    **ACCESS_REFUSALS,
    400: refusal("the body is not JSON, or has no list of records, or too many of them"),
    408: refusal("the body did not arrive in time"),
    413: refusal("the body is too large"),
    415: refusal("the content type is not application/json"),
}
NO_FORECAST = refusal("no such server, or it sent nothing for too long")
BUSY = refusal("busy, disk full or no model yet; try again after Retry-After seconds")


def json_response(document: Any, status: int = 200) -> Response:
    """JSON of a document with NumPy arrays."""
    return Response(to_json(document), status, media_type=JSON)


def retry_later(detail: str) -> Response:
    """503 with Retry-After: the same request may succeed in a second."""
    return Response(to_json({"detail": detail}), 503, headers={"Retry-After": "1"}, media_type=JSON)


def not_stored(problem: HistoryBusyError | HistoryUnavailableError) -> str:
    """Why samples are not acknowledged."""
    if isinstance(problem, PartlyStoredError):
        return f"not stored in whole: {problem}; send all of it again"
    return f"not stored: {problem}"


def unknown_server(name: str) -> Response:
    """404 for a name of which no sample was received."""
    return json_response(
        {"detail": f"no such server {name[:LONGEST_NAME]!r}: no sample of this name was received"}, 404
    )


def no_forecast(daemon: Daemon, name: str) -> Response:
    """The reason why a server has no forecast: 503 if it will have one soon, else 404."""
    server = daemon.store.servers.get(name)
    if server is None:
        return unknown_server(name)
    if daemon.forecasts.engine is None:
        return retry_later("no model is loaded; see /readyz")
    complete_step = daemon.forecasts.complete_step(daemon.store.step_seconds)
    if daemon.forecasts.sent_recently(server, complete_step):
        return retry_later("the first forecast of this server is being made")
    detail = "the server has been silent too long; it is forecast again with its next sample"
    return json_response({"detail": detail}, 404)
