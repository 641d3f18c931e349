"""What a request must be before a route sees it: host, token, content type, size and pace.

Pure ASGI, around the whole application: refusing costs no parsing of the body, event streams pass through unbuffered.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from fleet_forecast.serving.dashboard import FILES
from fleet_forecast.serving.json_bytes import to_json
from fleet_forecast.serving.settings import LOOPBACK_HOSTS, Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOG = logging.getLogger(__name__)
# Probes carry no token and say nothing; the dashboard's files hold no data, its requests do and carry the token.
OPEN_PATHS = frozenset({"/healthz", "/readyz", *FILES})
ADMIN_PATHS = frozenset({"/api/v1/reload"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class _Refused(Exception):  # noqa: N818 - control flow within this module
    def __init__(self, status: int, detail: str) -> None:
        self.status, self.detail = status, detail


class RequestGuard:
    """Refuses what RELIABILITY's limits do not allow, with a 4xx and a reason."""

    def __init__(self, app: App, settings: Settings, token: bytes | None, admin_token: bytes | None) -> None:
        self._app, self._token, self._admin_token = app, token, admin_token
        self._any_host = "*" in settings.allowed_hosts
        self._hosts = {host.lower() for host in (*LOOPBACK_HOSTS, settings.host, *settings.allowed_hosts)}
        self._max_body_bytes = int(settings.max_body_mib * 1024 * 1024)
        self._seconds = settings.body_seconds
        self._waiting = _Waiting(int(settings.max_waiting_mib * 1024 * 1024))

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        answering = False

        async def send_in_time(message: Message) -> None:
            nonlocal answering
            answering = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_SECURITY_HEADERS]
            async with asyncio.timeout(self._seconds):  # a client that takes nothing is let go
                await send(message)

        try:
            headers = dict(scope["headers"])
            self._check(scope, headers)
            if scope["type"] == "websocket":
                await self._app(scope, receive, send_in_time)
                return
            body = _Body(receive, self._seconds, self._max_body_bytes, self._waiting)
            try:
                await self._app(scope, body, send_in_time)
            finally:
                body.release()
        except _Refused as refused:
            await _refuse(scope, send, refused)
        except asyncio.CancelledError:  # the daemon ends, and this request did not in time
            if answering or scope["type"] == "websocket":
                raise
            await _refuse(scope, send, _Refused(503, "the daemon is shutting down"))
        except ClientDisconnect:  # it broke off its upload: nobody is left to be answered
            pass
        except TimeoutError:
            LOG.warning("answer not taken", extra={"path": scope["path"], "seconds": self._seconds})

    def _check(self, scope: MutableMapping[str, Any], headers: dict[bytes, bytes]) -> None:
        host = _host_name(headers.get(b"host", b""))
        if not self._any_host and host not in self._hosts:
            raise _Refused(421, "unknown Host header; add the name with --allowed-hosts if this is the right server")
        path = scope["path"]
        if path in ADMIN_PATHS:
            self._check_token(headers, self._admin_token, "admin token")
        elif path not in OPEN_PATHS and self._token is not None:
            self._check_token(headers, self._token, "token")
        if scope["type"] == "http" and scope["method"] not in _READING:
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                raise _Refused(415, "send Content-Type: application/json")
            if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
                raise _Refused(415, "send the body as it is, without Content-Encoding")
        origin = headers.get(b"origin")
        foreign = origin is not None and _host_name(origin.partition(b"://")[2]) not in self._hosts
        if scope["type"] == "websocket" and foreign and not self._any_host:  # browsers let any page open a WebSocket
            raise _Refused(403, "a page of another origin")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._max_body_bytes:
            raise _Refused(413, f"the body is larger than {self._max_body_bytes} bytes; send smaller batches")

    def _check_token(self, headers: dict[bytes, bytes], token: bytes | None, name: str) -> None:
        if token is None:
            raise _Refused(403, f"this needs an {name} and none is set; start with --admin-token-file, or send SIGHUP")
        scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not secrets.compare_digest(sent.strip(), token):
            raise _Refused(401, f"send Authorization: Bearer with the {name}")


class _Waiting:
    """Bytes of all bodies that were received and whose requests are not answered yet."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.held_bytes = most_bytes, 0


class _Body:
    """Receives one body within its deadline and size, and within what all bodies may hold together.

    A body that finds no room is read to its end and dropped, so that its sender gets the answer and keeps
    the connection. After the body it waits for the disconnect, without limits.
    """

    def __init__(self, receive: Receive, seconds: float, most_bytes: int, waiting: _Waiting) -> None:
        self._receive, self._seconds, self._most_bytes, self._waiting = receive, seconds, most_bytes, waiting
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._received_bytes = self._held_bytes = 0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        message = await self._next()
        size = len(message.get("body", b""))
        if self._waiting.held_bytes + size > self._waiting.most_bytes and self._waiting.held_bytes > self._held_bytes:
            self.release()
            while not self._complete:
                await self._next()
            raise HTTPException(503, "too many bodies wait to be judged; try again", headers={"Retry-After": "1"})
        self._held_bytes += size
        self._waiting.held_bytes += size
        return message

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise _cut_off(408, f"the body did not arrive within {self._seconds:g} s") from None
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > self._most_bytes:
            raise _cut_off(413, f"the body is larger than {self._most_bytes} bytes; send smaller batches")
        self._complete = not message.get("more_body", False)
        return message

    def release(self) -> None:
        """The request is answered, or its body dropped."""
        self._waiting.held_bytes -= self._held_bytes
        self._held_bytes = 0


def _cut_off(status: int, detail: str) -> HTTPException:
    """The answer to a body that is not read to its end: the connection cannot be used again."""
    return HTTPException(status, detail, headers={"connection": "close"})


def _host_name(header: bytes) -> str:
    """Host without port, lower case; [::1]:8000 gives ::1."""
    host = header.decode("latin-1").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


async def _refuse(scope: MutableMapping[str, Any], send: Send, refused: _Refused) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refused.detail})
        return
    body = to_json({"detail": refused.detail})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of the body, if any, is not read
        *_SECURITY_HEADERS,
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
