"""Checks whether a request is allowed: its Host header, the page that sent it, its token."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from fleet_forecast.serving.access_tokens import AccessTokens
from fleet_forecast.serving.clients import ANYONE, CLIENT, Client, Right
from fleet_forecast.serving.dashboard import FILES
from fleet_forecast.serving.settings import LOOPBACK_HOSTS, Settings
from fleet_forecast.shard import owner_of

Scope = MutableMapping[str, Any]
Headers = dict[bytes, bytes]

# Orchestrators ask for the probes by the address of a pod, with any Host or none.
PROBES = frozenset({"/healthz", "/readyz", "/-/healthy", "/-/ready"})
# Probes need no token and contain no data. Neither do the dashboard's files; the page's requests send the token.
OPEN_PATHS = frozenset({*PROBES, *FILES})
ADMIN_PATHS = frozenset({"/api/v1/reload", "/-/reload"})
ADMIN_POST_PATHS = frozenset({"/api/v1/silences"})  # reading them needs the right to read
SHARD_PATHS = "/api/v1/shard/"
SERVER_PATHS = "/api/v1/servers/"  # and the name
# A server of another shard gives 421. To a proxy that sends this header, the next one names the right shard.
ROUTED = (b"x-fleet-route", b"nginx")
NGINX_REDIRECT = b"x-accel-redirect"
DELETE_PATHS = (SERVER_PATHS, "/api/v1/silences/")  # before the name of what is deleted
WRITE_PATHS = frozenset({"/api/v1/metrics", "/feed/data", "/api/v1/write", "/v1/metrics"})
_ONCE = frozenset({b"host", b"origin", b"authorization", b"content-type", b"content-length"})


class RefusedError(Exception):
    """A request is refused with a status and a reason; headers: further ones of the response."""

    def __init__(self, status: int, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.status, self.detail, self.headers = status, detail, headers


class WrongTokenError(RefusedError):
    """The request has a token, but not the right one."""


class AccessRules:
    """The checks of a request's headers that do not depend on its route's content; each raises RefusedError."""

    def __init__(self, settings: Settings, tokens: AccessTokens) -> None:
        self._tokens = tokens
        self._any_host = "*" in settings.allowed_hosts
        self._named_hosts = {host.lower().strip("[]") for host in settings.allowed_hosts}
        self._hosts = {*LOOPBACK_HOSTS, settings.host.lower(), *self._named_hosts}
        self._shard = settings.own_shard
        if self._shard is not None and (address := settings.addresses_of_shards.get(self._shard.number)):
            self._hosts.add(urlsplit(address).hostname or "")

    def check(self, scope: Scope) -> Headers:
        """The headers by name, of a request that passes."""
        headers = _headers(scope["headers"])
        if (
            not self._any_host
            and scope["path"] not in PROBES
            and _host_name(headers.get(b"host", b"")) not in self._hosts
        ):
            detail = "unknown Host header; add the name with --allowed-hosts if this is the right server"
            raise RefusedError(421, detail)
        self._check_origin(scope, headers)
        if scope["path"] not in OPEN_PATHS:
            scope[CLIENT] = self._client(scope, headers)
            self._check_shard(scope["path"], headers)
        return headers

    def _check_shard(self, path: str, headers: Headers) -> None:
        """Refuse requests for one server of another shard: each server is answered by exactly one."""
        name = path.removeprefix(SERVER_PATHS).partition("/")[0]
        if self._shard is None or not path.startswith(SERVER_PATHS) or not name or self._shard.has(name):
            return
        owner = owner_of(name, self._shard.count)
        location = NGINX_REDIRECT, f"@shard{owner}".encode()
        detail = (
            f"a server of shard {owner}/{self._shard.count}, this is shard {self._shard}; send the request to that one"
        )
        raise RefusedError(421, detail, [location] if headers.get(ROUTED[0]) == ROUTED[1] else ())

    def _client(self, scope: Scope, headers: Headers) -> Client:
        """Who sends the request."""
        tokens, right = self._tokens, needed_right(scope)
        if right is Right.ADMIN and not tokens.may_administer:
            remedy = "start with --admin-token-file" + (", or send SIGHUP" if scope["path"] in ADMIN_PATHS else "")
            raise RefusedError(403, f"this needs an admin token and none is set; {remedy}")
        if right is Right.SHARD and tokens.needed and not tokens.may_be_shard:
            raise RefusedError(403, "this needs the token of shards and none is set; start with --shard-token-file")
        if right is not Right.ADMIN and not tokens.needed and not (right is Right.SHARD and tokens.may_be_shard):
            return ANYONE
        name = {Right.ADMIN: "admin token", Right.SHARD: "token of shards"}.get(right, "token")
        authorization = headers.get(b"authorization")
        scheme, _, sent = (authorization or b"").partition(b" ")
        client = tokens.owner(sent.strip(), right) if scheme.lower() == b"bearer" else None
        if client is None:
            kind = RefusedError if authorization is None else WrongTokenError
            raise kind(401, f"send Authorization: Bearer with the {name}")
        if right not in client.rights:
            raise RefusedError(403, f"the token of {client.name} has no right {right}; add it in the tokens file")
        return client

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        """Refuse requests from pages of other origins, reads as well: without a token in use, a page could time them.

        Browsers send Sec-Fetch-Site to trustworthy addresses and Origin with WebSockets and most requests of scripts.
        A link to a page of the daemon is allowed.
        """
        site = headers.get(b"sec-fetch-site")
        if site in (b"cross-site", b"same-site") and not _is_link(scope, headers):
            raise RefusedError(403, "a page of another origin")
        origin = headers.get(b"origin")
        if origin is None or self._any_host:
            return
        authority = origin.partition(b"://")[2].lower()
        # Behind a proxy the Host header may be another one than the page's.
        if authority != headers.get(b"host", b"").lower() and _host_name(authority) not in self._named_hosts:
            raise RefusedError(403, "a page of another origin")


def _headers(pairs: list[tuple[bytes, bytes]]) -> Headers:
    """The headers by name; 400 where one that the checks read is repeated, since the last could hide the first."""
    headers = dict(pairs)
    if len(headers) < len(pairs):
        names = [name for name, _ in pairs if name in _ONCE]
        if len(names) > len(set(names)):
            repeated = next(name for name in names if names.count(name) > 1).decode()
            raise RefusedError(400, f"{repeated} is sent twice; send one")
    return headers


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Whether a person followed a link or entered the address: the browser shows the response as a page of its own."""
    navigation = headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest") == b"document"
    return navigation and scope["type"] == "http" and scope["method"] == "GET"


def needed_right(scope: Scope) -> Right:
    """What a request needs. POST /api/v1/forecast changes nothing and needs the right to read."""
    path, method = scope["path"], scope.get("method", "GET")
    if path in ADMIN_PATHS or (method == "POST" and path in ADMIN_POST_PATHS):
        return Right.ADMIN
    if method == "DELETE" and path.startswith(DELETE_PATHS):
        return Right.ADMIN
    if path.startswith(SHARD_PATHS):
        return Right.SHARD
    return Right.WRITE if path in WRITE_PATHS and method == "POST" else Right.READ


def _host_name(header: bytes) -> str:
    """Host without port, lower case; [::1]:8000 gives ::1."""
    host = header.decode("latin-1").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
