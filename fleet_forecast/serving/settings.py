"""Settings of the daemon: one frozen record, filled from a TOML file and from flags.

Every field is a key of the file and a flag of tft_inference.py (``--max-servers`` for ``max_servers``), with the unit
in its name and its effect in its help. Unknown keys are refused.
"""

# ruff: noqa: RUF009 - _setting is dataclasses.field with the help beside the default

from __future__ import annotations

import argparse
import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from fleet_forecast.flags import add_flag
from fleet_forecast.sources.address import is_address

TOKEN_VARIABLE = "FLEET_FORECAST_TOKEN"  # noqa: S105 - the name of the variable, not its value
SHORTEST_TOKEN = 16  # bytes
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


class SettingsError(ValueError):
    """A setting is unknown or has a wrong value; the message names it and the remedy."""


def _setting(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class Settings:
    """All settings of the daemon; units are in the names."""

    model: Path = _setting(Path("models/current"), "model directory; a changed link is loaded without a restart")
    history: Path = _setting(Path("history/fleet.sqlite"), "file of the durable history of received samples")
    profiles: Path | None = _setting(None, "TOML file with further name patterns and pinned servers")

    prometheus: str | None = _setting(None, "address of a Prometheus to pull the fleet from, http://host:9090")
    prometheus_queries: Path | None = _setting(None, "TOML file with PromQL per metric (default: node_exporter's)")
    prometheus_token_file: Path | None = _setting(None, "file with the token for that Prometheus")

    alert_rules: Path | None = _setting(None, "TOML file with thresholds and levels of alerts")
    alertmanager: str | None = _setting(None, "address of an Alertmanager to send alerts to, http://host:9093")
    webhook: str | None = _setting(None, "address that gets a JSON body when alerts begin or end")
    alert_seconds: float = _setting(60.0, "firing alerts are sent to the Alertmanager this often")

    host: str = _setting("127.0.0.1", "address to listen on; one beyond this machine needs a token, or --insecure")
    port: int = _setting(8000, "port to listen on")
    allowed_hosts: tuple[str, ...] = _setting((), "further names clients may use in the Host header; * allows any")
    token_file: Path | None = _setting(None, f"file with the token clients must send (or variable {TOKEN_VARIABLE})")
    admin_token_file: Path | None = _setting(
        None, "file with the token for POST /api/v1/reload; without it: SIGHUP only"
    )
    insecure: bool = _setting(False, "allow an address beyond this machine without a token")

    retention_hours: float = _setting(192.0, "received samples are kept this long; older ones are rejected")
    future_minutes: float = _setting(10.0, "samples further ahead than this are rejected")
    max_servers: int = _setting(20_000, "servers beyond this number are rejected")
    max_records: int = _setting(10_000, "records in one request")
    max_body_mib: float = _setting(8.0, "size of one request's body")
    max_waiting_records: int = _setting(50_000, "records accepted but not yet on disk; beyond this the answer is 503")
    max_waiting_mib: float = _setting(32.0, "bodies received and not yet judged; beyond this the answer is 503")
    max_connections: int = _setting(1_000, "open connections; further ones are closed")
    header_seconds: float = _setting(10.0, "a request's headers must have arrived within this")
    body_seconds: float = _setting(30.0, "a request's body must have arrived within this, an answer been taken")
    shutdown_seconds: float = _setting(8.0, "time for open requests to end after SIGTERM")

    device: str = _setting("cpu", "where the model runs: cpu, cuda or auto")
    threads: int = _setting(0, "processor threads of one forecast, which give way to requests; 0: one a core")
    grace_seconds: float = _setting(10.0, "a step counts as complete this long after its end")
    stale_steps: int = _setting(3, "a server without a sample for so many steps is stale: marked, not forecast")
    drop_steps: int = _setting(12, "a server without a sample for so many steps leaves the fleet's view")
    chunk_servers: int = _setting(180, "servers forecast at once; other work gets its turn between chunks")
    recheck_seconds: float = _setting(5.0, "new servers and late samples are looked for this often")


def add_flags(parser: argparse._ActionsContainer) -> None:
    """Add one flag per setting; a flag not given stays unset, so that the file's value holds."""
    for setting in dataclasses.fields(Settings):
        shown = " ".join(setting.default) if isinstance(setting.default, tuple) else setting.default
        description = setting.metadata["help"].replace("%", "%%")
        described = description if shown in (None, "") or shown is False else f"{description} (default {shown})"
        flag = "--" + setting.name.replace("_", "-")
        if setting.type == "bool":
            add_flag(parser, flag, action="store_true", default=None, help=described)
        elif setting.type == "tuple[str, ...]":
            add_flag(parser, flag, nargs="*", default=None, metavar="NAME", help=described)
        else:
            kind = {"int": int, "float": float}.get(str(setting.type), str)
            add_flag(parser, flag, type=kind, default=None, metavar=_metavar(setting), help=described)


def _metavar(setting: dataclasses.Field[Any]) -> str:
    if str(setting.type).startswith("Path"):
        return "DIR" if setting.name == "model" else "FILE"
    if setting.name in ("prometheus", "alertmanager", "webhook"):
        return "URL"
    return "N" if setting.name.startswith("max_") or setting.name == "threads" else setting.name.split("_")[-1].upper()


def load_settings(path: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings from a TOML file (if any), overruled by the flags that were given (values not None).

    Raises SettingsError naming the key, the value and the remedy.
    """
    values: dict[str, Any] = {} if path is None else _read(path)
    known = {setting.name: setting for setting in dataclasses.fields(Settings)}
    for key in values:
        if key not in known:
            raise SettingsError(f"{path}: unknown key {key!r}; known keys: {', '.join(sorted(known))}")
    values |= {key: value for key, value in flags.items() if key in known and value is not None}
    settings = Settings(**{key: _converted(known[key], value) for key, value in values.items()})
    _check(settings)
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise SettingsError(f"settings file {path}: {problem.strerror}; give the path of a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingsError(f"settings file {path} is not TOML: {problem}") from None
    return {key.replace("-", "_"): value for key, value in document.items()}


def _converted(setting: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the field's type; TOML knows no paths and writes 2 for 2.0."""
    kind = str(setting.type)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and number and value == int(value):
        return int(value)
    if kind == "float" and number:
        return float(value)
    if kind.startswith("str") and isinstance(value, str):
        return value
    if kind.startswith("Path") and isinstance(value, str | Path) and str(value):
        return Path(value)
    if kind.startswith("tuple") and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(value)
    wanted = {
        "bool": "true or false",
        "int": "a whole number",
        "float": "a number",
        "str": "text",
        "str | None": "text",
    }
    expected = wanted.get(kind, "a list of texts" if kind.startswith("tuple") else "a path")
    raise SettingsError(f"{setting.name}: {value!r} is not {expected}")


_AT_LEAST = {
    "port": 0,
    "retention_hours": 1.0,
    "future_minutes": 0.0,
    "max_servers": 1,
    "max_records": 1,
    "max_body_mib": 0.001,
    "max_waiting_records": 1,
    "max_waiting_mib": 0.001,
    "max_connections": 1,
    "header_seconds": 0.1,
    "body_seconds": 0.1,
    "shutdown_seconds": 0.1,
    "threads": 0,
    "grace_seconds": 0.0,
    "stale_steps": 1,
    "drop_steps": 1,
    "chunk_servers": 1,
    "recheck_seconds": 0.05,
    "alert_seconds": 0.1,
}


def _check(settings: Settings) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(settings, name)
        if not least <= value < float("inf"):
            raise SettingsError(f"{name}: {value} is not a finite number of at least {least}")
    if settings.port > 65_535:
        raise SettingsError(f"port: {settings.port} is above 65535")
    if settings.drop_steps < settings.stale_steps:
        raise SettingsError(f"drop_steps: {settings.drop_steps} is less than stale_steps ({settings.stale_steps})")
    for name in ("prometheus", "alertmanager", "webhook"):
        address = getattr(settings, name)
        if address is not None and not is_address(address):
            raise SettingsError(f"{name}: {address!r} is no address; write http://host:port")
    if settings.device not in ("cpu", "cuda", "auto"):
        raise SettingsError(f"device: {settings.device!r} is unknown; use cpu, cuda or auto")


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
        raise SettingsError(f"token file {path}: {problem.strerror}") from None
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


def require_token_beyond_loopback(settings: Settings, token: bytes | None) -> None:
    """Raise SettingsError where the daemon would be open to other machines without a token."""
    if token is not None or settings.insecure or _is_loopback(settings.host):
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
