"""Checks of a request before any route: host, token, content type, size and time of the body.

Pure ASGI around the whole application: a refused body is not parsed, and event streams are not buffered.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from fleet_forecast.serving.dashboard import FILES
from fleet_forecast.serving.http.bounded_body import BoundedBody, Message, Receive, WaitingBodies
from fleet_forecast.serving.json_bytes import to_json
from fleet_forecast.serving.settings import LOOPBACK_HOSTS, Settings

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = dict[bytes, bytes]

LOG = logging.getLogger(__name__)
MIB = 1024 * 1024
POLICY_VIOLATION = 1008  # close code of WebSockets
# Probes need no token and contain no data. Neither do the dashboard's files; the page's requests send the token.
OPEN_PATHS = frozenset({"/healthz", "/readyz", *FILES})
ADMIN_PATHS = frozenset({"/api/v1/reload"})
_METHODS_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        self.status, self.detail = status, detail


class RequestGuard:
    """Refuses requests that a check does not allow, with a status of 4xx and the reason."""

    def __init__(self, app: App, settings: Settings, token: bytes | None, admin_token: bytes | None) -> None:
        self._app, self._token, self._admin_token = app, token, admin_token
        self._any_host = "*" in settings.allowed_hosts
        self._hosts = {host.lower() for host in (*LOOPBACK_HOSTS, settings.host, *settings.allowed_hosts)}
        self._max_body_bytes = int(settings.max_body_mib * MIB)
        self._seconds = settings.body_seconds
        self._waiting = WaitingBodies(int(settings.max_waiting_mib * MIB))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        response = _TimedSend(send, self._seconds)
        try:
            self._check(scope, dict(scope["headers"]))
            await self._answer(scope, receive, response)
        except _RefusedError as refused:
            await _refuse(scope, send, refused)
        except asyncio.CancelledError:  # the daemon ends before the request does
            if response.started or scope["type"] == "websocket":
                raise
            await _refuse(scope, send, _RefusedError(503, "the daemon is shutting down"))
        except ClientDisconnect:  # the client aborted its upload and reads no response
            pass
        except TimeoutError:
            LOG.warning("answer not taken", extra={"path": scope["path"], "seconds": self._seconds})

    async def _answer(self, scope: Scope, receive: Receive, response: _TimedSend) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, receive, response)
            return
        body = BoundedBody(receive, self._seconds, self._max_body_bytes, self._waiting)
        try:
            await self._app(scope, body, response)
        finally:
            body.release()

    def _check(self, scope: Scope, headers: Headers) -> None:
        if not self._any_host and _host_name(headers.get(b"host", b"")) not in self._hosts:
            detail = "unknown Host header; add the name with --allowed-hosts if this is the right server"
            raise _RefusedError(421, detail)
        self._check_access(scope["path"], headers)
        if scope["type"] == "http" and scope["method"] not in _METHODS_WITHOUT_BODY:
            _check_content(headers)
        if scope["type"] == "websocket":
            self._check_origin(headers)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._max_body_bytes:
            detail = f"the body is larger than {self._max_body_bytes} bytes; send smaller batches"
            raise _RefusedError(413, detail)

    def _check_access(self, path: str, headers: Headers) -> None:
        if path in ADMIN_PATHS:
            _check_token(headers, self._admin_token, "admin token")
        elif path not in OPEN_PATHS and self._token is not None:
            _check_token(headers, self._token, "token")

    def _check_origin(self, headers: Headers) -> None:
        """Browsers let a page of any origin open a WebSocket."""
        origin = headers.get(b"origin")
        foreign = origin is not None and _host_name(origin.partition(b"://")[2]) not in self._hosts
        if foreign and not self._any_host:
            raise _RefusedError(403, "a page of another origin")


class _TimedSend:
    """An ASGI `send` that adds the security headers and raises TimeoutError when the client does not read."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_SECURITY_HEADERS]
        async with asyncio.timeout(self._seconds):
            await self._send(message)


def _check_token(headers: Headers, token: bytes | None, name: str) -> None:
    if token is None:
        detail = f"this needs an {name} and none is set; start with --admin-token-file, or send SIGHUP"
        raise _RefusedError(403, detail)
    scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not secrets.compare_digest(sent.strip(), token):
        raise _RefusedError(401, f"send Authorization: Bearer with the {name}")


def _check_content(headers: Headers) -> None:
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != b"application/json":
        raise _RefusedError(415, "send Content-Type: application/json")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise _RefusedError(415, "send the body as it is, without Content-Encoding")


def _host_name(header: bytes) -> str:
    """Host without port, lower case; [::1]:8000 gives ::1."""
    host = header.decode("latin-1").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


async def _refuse(scope: Scope, send: Send, refused: _RefusedError) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": refused.detail})
        return
    body = to_json({"detail": refused.detail})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of the body is not read
        *_SECURITY_HEADERS,
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
