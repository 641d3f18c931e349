"""The tokens that requests must send; read again on SIGHUP."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.serving.clients import (
    ADMINISTRATOR,
    NEIGHBOUR,
    SHARED,
    SHORTEST_TOKEN,
    Client,
    Right,
    digest_of,
    load_clients,
)
from fleet_forecast.serving.settings import TOKEN_VARIABLE, Settings, SettingsError

LOG = logging.getLogger(__name__)


class AccessTokens:
    """The clients' token, the administrator's, the shards' and those of the tokens file; None or empty: none."""

    def __init__(
        self,
        client: bytes | None = None,
        admin: bytes | None = None,
        clients: Mapping[str, Client] | None = None,
        shard: bytes | None = None,
    ) -> None:
        self.client, self.admin, self.shard = client, admin, shard
        self._clients = dict(clients or {})

    @property
    def needed(self) -> bool:
        """Whether requests need a token."""
        return self.client is not None or bool(self._clients)

    @property
    def may_administer(self) -> bool:
        """Whether there is a token that allows administration."""
        return self.admin is not None or any(Right.ADMIN in client.rights for client in self._clients.values())

    @property
    def may_be_shard(self) -> bool:
        """Whether there is a token for requests between shards."""
        return self.shard is not None or any(Right.SHARD in client.rights for client in self._clients.values())

    def owner(self, token: bytes, right: Right) -> Client | None:
        """The client with this token, or None. The tokens of administrator and shards have their rights only."""
        special = {Right.ADMIN: (self.admin, ADMINISTRATOR), Right.SHARD: (self.shard, NEIGHBOUR)}
        single, found = special.get(right, (self.client, SHARED))
        if single is not None and secrets.compare_digest(token, single):
            return found
        return self._clients.get(digest_of(token))

    def reload(self, settings: Settings) -> None:
        """Read the files again. If a file cannot be used, its old tokens stay in use and the reason is logged."""
        try:
            client = read_token(settings.token_file) or token_from(os.environ)
            admin = read_token(settings.admin_token_file)
            shard = read_token(settings.shard_token_file)
            clients = load_clients(settings.tokens) if settings.tokens else {}
            require_token_beyond_loopback(settings, client, bool(clients))
        except (SettingsError, TomlFileError) as problem:
            LOG.error("tokens refused", extra={"reason": str(problem)})
            return
        changed = (client, admin, shard, clients) != (self.client, self.admin, self.shard, self._clients)
        self.client, self.admin, self.shard, self._clients = client, admin, shard, clients
        LOG.info("tokens read", extra={"changed": changed})


def read_token(path: Path | None) -> bytes | None:
    """The token in a file, without surrounding white space; None where there is no file.

    Raises SettingsError if the file cannot be read or holds no usable token.
    """
    if path is None:
        return None
    try:
        token = path.read_bytes()
    except PermissionError:
        reader = f"user {os.geteuid()}"
        raise SettingsError(f"token file {path}: may not be read by {reader}; let that user read it") from None
    except OSError as problem:
        raise SettingsError(f"token file {path}: {problem.strerror}; correct the path or its permissions") from None
    return _usable(token, f"token file {path}")


def token_from(environment: Mapping[str, str]) -> bytes | None:
    """The token clients must send, from the variable; None where it is not set or empty. Raises SettingsError."""
    token = environment.get(TOKEN_VARIABLE, "")
    return _usable(token.encode(), f"variable {TOKEN_VARIABLE}") if token.strip() else None


def _usable(token: bytes, where: str) -> bytes:
    token = token.strip()
    if len(token) < SHORTEST_TOKEN:
        raise SettingsError(f"{where}: the token has {len(token)} bytes; use at least {SHORTEST_TOKEN} random ones")
    return token


def require_token_beyond_loopback(settings: Settings, token: bytes | None, has_tokens_file: bool = False) -> None:
    """Raise SettingsError where the daemon would be open to other machines without a token."""
    if token is not None or has_tokens_file or settings.insecure or _is_loopback(settings.host):
        return
    raise SettingsError(
        f"host: {settings.host} can be reached from other machines and there is no token; give --token-file FILE "
        f"(or the variable {TOKEN_VARIABLE}), or --insecure if you accept that anyone may read and write"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
