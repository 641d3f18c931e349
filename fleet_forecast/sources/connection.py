"""The connection to another service: address, credentials and certificates, as fields of a TOML table.

Secrets are in files or in variables of the environment. They are read once, and never occur in a message or a `repr`.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fleet_forecast.sources.address import is_address, parse_header, without_secrets


class CredentialError(ValueError):
    """A credential or certificate cannot be used; the message names the field, its place and the remedy."""


def _address(text: str) -> str:
    if not is_address(text):
        raise ValueError(f"url is {without_secrets(text)!r}, not an address; write http://host:port")
    return text


def _header_name(text: str) -> str:
    return parse_header(f"{text}: x")[0]


def _header_value(text: str) -> str:
    return parse_header(f"x: {text}")[1]


_HeaderName = Annotated[str, AfterValidator(_header_name)]


class Connection(BaseModel):
    """Address, credentials and certificates. Raises ValueError for fields that contradict each other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(_address)] = Field(description="address, http://host:port")
    user: str | None = Field(default=None, description="name for basic authentication")
    password_file: Path | None = Field(default=None, description="file with the password")
    password_variable: str | None = Field(default=None, description="variable of the environment with the password")
    token_file: Path | None = Field(default=None, description="file with a bearer token")
    headers: Mapping[_HeaderName, Annotated[str, AfterValidator(_header_value)]] = Field(
        default={}, description="further headers of each request"
    )
    header_files: Mapping[_HeaderName, Path] = Field(default={}, description="the same, each value in a file")
    ca_file: Path | None = Field(default=None, description="certificates (PEM) to trust instead of the usual ones")
    certificate_file: Path | None = Field(default=None, description="client certificate (PEM)")
    key_file: Path | None = Field(default=None, description="key of the client certificate (PEM, no password)")

    @model_validator(mode="after")
    def _consistent(self) -> Connection:
        passwords = [name for name in ("password_file", "password_variable") if getattr(self, name) is not None]
        if len(passwords) > 1:
            raise ValueError("password_file and password_variable are given; leave out one of them")
        if (self.user is None) != (not passwords):
            missing, given = ("password_file", "user") if self.user is not None else ("user", passwords[0])
            raise ValueError(f"{missing} is missing; {given} is given, and basic authentication needs both")
        in_url = [] if not httpx.URL(self.url).userinfo else ["a user in url"]
        ways = in_url + [name for name in ("user", "token_file") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are given; a request has one of them")
        for missing, given in (("key_file", "certificate_file"), ("certificate_file", "key_file")):
            if getattr(self, missing) is None and getattr(self, given) is not None:
                raise ValueError(f"{missing} is missing; {given} is given, and a client certificate needs both")
        return self


@dataclass(frozen=True)
class Access:
    """A connection whose files were read. url: may contain user and password. address: the same for messages."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificates: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """The URL without user, password and query."""
        return without_secrets(self.url).rstrip("/")


def read_access(connection: Connection, environment: Mapping[str, str]) -> Access:
    """Read the files and variables that a connection names. Raises CredentialError."""
    headers = dict(connection.headers)
    headers |= {name: _secret(path, f"header_files.{name}") for name, path in connection.header_files.items()}
    if connection.user is not None:
        pair = f"{connection.user}:{_password(connection, environment)}".encode()
        headers["authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    if connection.token_file is not None:
        headers["authorization"] = f"Bearer {_secret(connection.token_file, 'token_file')}"
    return Access(connection.url, MappingProxyType(headers), _certificates(connection))


def _password(connection: Connection, environment: Mapping[str, str]) -> str:
    if connection.password_file is not None:
        return _secret(connection.password_file, "password_file")
    name = str(connection.password_variable)
    if not environment.get(name):
        raise CredentialError(f"password_variable: {name} is not set in the environment; set it, or use password_file")
    return environment[name]


def _secret(path: Path, name: str) -> str:
    """The text of a file without the white space around it."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise CredentialError(f"{name}: {path} is not UTF-8 text; write the value alone into it") from None
    except OSError as problem:
        reason = f"{name}: {path} cannot be read ({problem.strerror})"
        raise CredentialError(f"{reason}; correct the path or its permissions") from None
    if not text or not text.isprintable():
        raise CredentialError(f"{name}: {path} has {'no' if not text else 'more than one'} line; write the value alone")
    return text


def _certificates(connection: Connection) -> ssl.SSLContext | None:
    """The context of a connection with certificates of its own; None: the usual one."""
    ca, certificate, key = connection.ca_file, connection.certificate_file, connection.key_file
    if ca is None and certificate is None:
        return None
    try:
        context = httpx.create_ssl_context() if ca is None else ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as problem:
        raise CredentialError(f"ca_file: {ca} {_reason(problem)}; give certificates in PEM") from None
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ssl.SSLError, ValueError) as problem:
            pair = f"certificate_file: {certificate} and {key} {_reason(problem)}"
            raise CredentialError(
                f"{pair}; give a certificate and its key in PEM, the key without a password"
            ) from None
    return context


def _reason(problem: Exception) -> str:
    if isinstance(problem, ssl.SSLError) or not isinstance(problem, OSError):
        return f"cannot be used ({getattr(problem, 'reason', None) or problem})"
    return f"cannot be read ({problem.strerror})"
