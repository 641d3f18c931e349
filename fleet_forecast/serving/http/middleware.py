"""Checks of a request before any route: host, token, content type, size and time of the body.

Pure ASGI around the whole application: a refused body is not parsed, and event streams are not buffered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fleet_forecast.serving.access_tokens import AccessTokens
from fleet_forecast.serving.clients import Right
from fleet_forecast.serving.http.access import AccessRules, Headers, RefusedError, Scope, WrongTokenError, needed_right
from fleet_forecast.serving.http.bounded_body import BoundedBody, Message, Receive, WaitingBodies
from fleet_forecast.serving.http.unsent_responses import PIECE_BYTES, Send, UnsentResponses
from fleet_forecast.serving.ingest.bodies import ENCODINGS, MEDIA_TYPES, SNAPPY
from fleet_forecast.serving.json_bytes import to_json
from fleet_forecast.serving.monitoring.http_counters import HttpCounters
from fleet_forecast.serving.settings import MIB, Settings
from fleet_forecast.serving.shards.neighbours import SHARD_HEADER

Pairs = Sequence[tuple[bytes, bytes]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger(__name__)
POLICY_VIOLATION = 1008  # close code of WebSockets
LOGGED_PATH = 200  # characters
PROTOBUF = "application/x-protobuf"
STREAMS = ("/api/v1/events",)  # paths of responses without an end


class _BodyKind(NamedTuple):
    """Media types and content encodings that a route takes, and the remedy for other encodings."""

    media_types: tuple[str, ...]
    encodings: tuple[str, ...]
    remedy: str


_PACKED_OR_NOT = (
    ("identity", *ENCODINGS),
    f"send the body as it is, or with Content-Encoding: {' or '.join(ENCODINGS)}",
)
_RECORDS = _BodyKind(MEDIA_TYPES, *_PACKED_OR_NOT)
_BODY_KINDS = {
    "/api/v1/write": _BodyKind((PROTOBUF,), (SNAPPY,), f"send Content-Encoding: {SNAPPY}"),
    "/v1/metrics": _BodyKind((PROTOBUF, MEDIA_TYPES[0]), *_PACKED_OR_NOT),
}
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class RequestGuard:
    """Refuses requests that a check does not allow, with a status of 4xx and the reason."""

    def __init__(self, app: App, settings: Settings, tokens: AccessTokens, counters: HttpCounters) -> None:
        self._app, self._counters = app, counters
        self._access = AccessRules(settings, tokens)
        self._max_body_bytes = settings.max_body_bytes
        self._seconds = settings.body_seconds
        self._waiting = WaitingBodies(int(settings.max_waiting_mib * MIB))
        self._unsent = UnsentResponses(int(settings.max_unsent_mib * MIB))
        shard = () if settings.shard is None else ((SHARD_HEADER.encode(), settings.shard.encode()),)
        self._headers = (*_SECURITY_HEADERS, *shard)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        response = _TimedSend(send, self._seconds, self._unsent, self._headers)
        try:
            self._check(scope)
            await self._respond(scope, receive, response)
        except RefusedError as refused:
            self._count(scope, refused)
            await _refuse(scope, send, refused)
        except asyncio.CancelledError:  # the daemon ends before the request does
            if response.started or scope["type"] == "websocket":
                raise
            await _refuse(scope, send, RefusedError(503, "the daemon is shutting down"))
        except ClientDisconnect:  # the client aborted its upload; nobody reads a response
            pass
        except TimeoutError:
            self._counters.closed["unread"] += 1
            LOG.warning("response not read", extra={"path": scope["path"][:LOGGED_PATH], "seconds": self._seconds})

    async def _respond(self, scope: Scope, receive: Receive, response: _TimedSend) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, receive, response)
            return
        if scope["method"] == "HEAD" and scope["path"] not in STREAMS:  # the server sends no body
            scope = {**scope, "method": "GET"}
        client = _client(scope)
        body = BoundedBody(receive, self._seconds, self._max_body_bytes, self._waiting, client)

        async def receive_body() -> Message:
            try:
                return await body()
            except HTTPException:
                if response.started:  # no status can be sent any more, so the stream ends
                    return {"type": "http.disconnect"}
                raise

        try:
            await self._app(scope, receive_body, response)
        finally:
            body.release()

    def _check(self, scope: Scope) -> None:
        headers = self._access.check(scope)
        if scope["type"] == "http" and _may_have_body(scope):
            _check_content(scope, headers)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._max_body_bytes:
            detail = f"the body is larger than {self._max_body_bytes} bytes; send smaller batches"
            raise RefusedError(413, detail)

    def _count(self, scope: Scope, refused: RefusedError) -> None:
        self._counters.refused[str(refused.status)] += 1
        if isinstance(refused, WrongTokenError):
            self._counters.wrong_tokens += 1
            LOG.warning("wrong token", extra={"client": _client(scope), "path": scope["path"][:LOGGED_PATH]})


class _TimedSend:
    """An ASGI `send` that adds headers and raises TimeoutError when the client does not read."""

    def __init__(self, send: Send, seconds: float, unsent: UnsentResponses, headers: Pairs) -> None:
        self._send, self._seconds, self._unsent, self._headers = send, seconds, unsent, headers
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        if message["type"] == "http.response.start":
            own = list(message.get("headers", ()))
            names = {name.lower() for name, _ in own}  # the dashboard's library is cached
            message["headers"] = own + [header for header in self._headers if header[0] not in names]
        elif len(message.get("body", b"")) > PIECE_BYTES:
            await self._unsent.send(self._send, message, self._seconds)
            return
        async with asyncio.timeout(self._seconds):
            await self._send(message)


def _client(scope: Scope) -> str:
    """The address that the request came from."""
    client = scope.get("client")
    return client[0] if client else ""


def _may_have_body(scope: Scope) -> bool:
    """Whether a route could read the body: the other methods have no route, and are answered with 405."""
    return scope["method"] == "POST" or needed_right(scope) is Right.ADMIN


def _check_content(scope: Scope, headers: Headers) -> None:
    # Forms can send no admin token, so requests that need one may omit the type of a body that they do not have.
    if needed_right(scope) is Right.ADMIN and not _has_body(headers) and b"content-type" not in headers:
        return
    accepted = _BODY_KINDS.get(scope["path"], _RECORDS)
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
    if media_type not in accepted.media_types:
        raise RefusedError(415, f"send Content-Type: {' or '.join(accepted.media_types)}")
    if headers.get(b"content-encoding", b"identity").strip().lower().decode("latin-1") not in accepted.encodings:
        raise RefusedError(415, accepted.remedy)


def _has_body(headers: Headers) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


async def _refuse(scope: Scope, send: Send, refused: RefusedError) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": refused.detail})
        return
    body = to_json({"detail": refused.detail})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of the body is not read
        *_SECURITY_HEADERS,
        *refused.headers,
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
