"""Clients by their tokens: the rights, and the servers that they may write.

A tokens file has one table for each token:

    [clients.agents-berlin]
    sha256 = "9f86d081884c7d65..."      # of the token, or: token = "..."
    servers = ['ber-.*']                # patterns of whole names it may write; left out: all
    rights = ["write"]                  # read, write, correct, profile, shard, admin
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fleet_forecast.contract.toml_file import read_toml
from fleet_forecast.name_patterns import compile_whole_name
from server_profiles import NamePattern

SHORTEST_TOKEN = 16  # bytes


class Right(StrEnum):
    """What a token allows."""

    READ = "read"  # all requests that change nothing, POST /api/v1/forecast too
    WRITE = "write"  # samples of what is not measured yet
    CORRECT = "correct"  # samples that replace stored values
    PROFILE = "profile"  # to change the profile of a known server with its samples
    SHARD = "shard"  # requests between shards of a fleet
    ADMIN = "admin"  # to reload the model, to delete servers, to add and delete silences


@dataclass(frozen=True)
class Client:
    """The owner of a token. name: its table in the tokens file. servers: None allows all names."""

    name: str
    rights: frozenset[Right]
    servers: tuple[NamePattern, ...] | None = None

    def may_write(self, server_name: str) -> bool:
        """Whether samples of this server are accepted from the client."""
        return self.servers is None or any(pattern.match(server_name) for pattern in self.servers)


CLIENT = "fleet_client"  # key of an ASGI scope: the Client that sends the request
ANYONE = Client("", frozenset({Right.READ, Right.WRITE, Right.CORRECT, Right.PROFILE}))  # where no token is needed
# The holder of the shared token: adds samples, and changes nothing that is stored.
SHARED = Client("", frozenset({Right.READ, Right.WRITE}))
NEIGHBOUR = Client("another shard", frozenset({Right.SHARD, Right.WRITE}))
ADMINISTRATOR = Client("administrator", frozenset({Right.ADMIN}))


def digest_of(token: bytes) -> str:
    """The key of a token: a comparison of digests takes no time that depends on the token."""
    return hashlib.sha256(token).hexdigest()


def _whole_name(value: Any) -> Any:
    return compile_whole_name(value) if isinstance(value, str) else value


_Pattern = Annotated[Any, BeforeValidator(_whole_name)]  # a NamePattern


def _long_enough(value: Any) -> Any:
    if not isinstance(value, str) or len(value.encode()) < SHORTEST_TOKEN:  # the message does not show the token
        raise ValueError(f"token: use text of at least {SHORTEST_TOKEN} random bytes")
    return value


class _TokenTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    token: Annotated[str | None, BeforeValidator(_long_enough)] = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    servers: list[_Pattern] | None = None
    rights: list[Right]

    @model_validator(mode="after")
    def _one_of_two(self) -> _TokenTable:
        if (self.token is None) == (self.sha256 is None):
            raise ValueError("give token or sha256, one of the two")
        return self

    @property
    def digest(self) -> str:
        return self.sha256.lower() if self.sha256 else digest_of((self.token or "").encode())


class _TokensFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    clients: dict[str, _TokenTable]

    @model_validator(mode="after")
    def _different(self) -> _TokensFile:
        digests = [table.digest for table in self.clients.values()]
        if len(set(digests)) < len(digests):
            raise ValueError("two clients have the same token; give each its own")
        return self


def load_clients(path: Path) -> dict[str, Client]:
    """Clients by the digest of their token, from a tokens file. Raises TomlFileError."""
    tables = read_toml(path, _TokensFile, "tokens file").clients
    return {
        table.digest: Client(name, frozenset(table.rights), None if table.servers is None else tuple(table.servers))
        for name, table in tables.items()
    }
