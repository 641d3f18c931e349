"""Settings of the daemon: one frozen model, filled from a TOML file and from flags.

Every field is a key of the file and a flag of tft_inference.py (--max-servers for max_servers). Its unit is in its name
and its effect in its description.
"""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    Strict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from fleet_forecast.contract.fleet.flag import FLEET_HELP, MOVED, add_moved_flags, moved_advice
from fleet_forecast.contract.specs import METRICS
from fleet_forecast.contract.times import check_zone
from fleet_forecast.contract.toml_file import TomlFileError, first_problem, read_toml
from fleet_forecast.flags import add_flag
from fleet_forecast.shard import Shard
from fleet_forecast.sources.address import HIDDEN, is_address, origin_of, parse_header, without_secrets

TOKEN_VARIABLE = "FLEET_FORECAST_TOKEN"  # noqa: S105 - the name of the variable, not its value
MIB = 1024 * 1024
ADDRESSES = (
    "prometheus",
    "alertmanager",
    "webhook",
    "public_url",
)  # may contain a password or secret path
SHARD_PLACE = "{shard}"  # in a template of the shards' addresses
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


class SettingsError(ValueError):
    """A setting is unknown or has a wrong value; the message names it and the remedy."""


def _integral(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("is not a path")
    return value


def _address(value: str) -> str:
    if not is_address(value):
        raise ValueError("is not an address; write http://host:port")
    return value


def _shard(value: str) -> str:
    Shard.of_text(value)
    return value


def _peer_address(value: str) -> str:
    return _address(value.replace(SHARD_PLACE, "1")) and value


def _label_name(value: str) -> str:
    if not value:
        raise ValueError("is not a name of a label; give one, such as instance")
    return value


Whole = Annotated[int, Strict(), BeforeValidator(_integral)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Switch = Annotated[bool, Strict()]
HostName = Annotated[str, AfterValidator(lambda host: host.strip("[]"))]  # IPv6 as one writes it in addresses
Header = Annotated[str, AfterValidator(lambda text: ": ".join(parse_header(text)))]
Zone = Annotated[str, AfterValidator(check_zone)]
FilePath = Annotated[Path, BeforeValidator(_not_empty)]
Address = Annotated[str, AfterValidator(_address)]
LabelName = Annotated[str, AfterValidator(_label_name)]
ShardText = Annotated[str, AfterValidator(_shard)]
PeerAddress = Annotated[str, AfterValidator(_peer_address)]


class Settings(BaseModel):
    """All settings of the daemon."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: FilePath = Field(
        default=Path("models/current"), description="model directory; a changed link is loaded without a restart"
    )
    model_seconds: Number = Field(default=60.0, ge=1.0, description="time for checking a model, and for loading it")
    model_mib: Number = Field(
        default=1024.0, ge=1.0, description="memory that the check of a model may take, beyond that of the libraries"
    )
    history: FilePath = Field(
        default=Path("history/fleet.sqlite"), description="file in which received samples are stored"
    )
    fleet: FilePath | None = Field(default=None, description=FLEET_HELP)

    input_timezone: Zone | None = Field(
        default=None, description="time zone of times without one (none: they are refused)"
    )

    prometheus: Address | None = Field(
        default=None, description="address of a Prometheus to pull the fleet from, http://host:9090"
    )
    prometheus_token_file: FilePath | None = Field(default=None, description="file with the token for that Prometheus")
    prometheus_headers: tuple[Header, ...] = Field(
        default=(), description="headers of each query to that Prometheus, such as 'X-Scope-OrgID: tenant'"
    )

    connections: FilePath | None = Field(
        default=None,
        description="TOML file with the Prometheus servers to pull from, and the database to write forecasts to",
    )

    server_label: LabelName = Field(
        default="instance",
        description="label with the server's name in the series of Prometheus remote write; a port is cut off",
    )

    alertmanager: Address | None = Field(
        default=None, description="address of an Alertmanager to send alerts to, http://host:9093"
    )
    webhook: Address | None = Field(
        default=None, description="address that receives a JSON body when alerts begin or end"
    )
    public_url: Address | None = Field(
        default=None, description="address of the dashboard for the links in alerts, https://forecasts.example"
    )
    shadow: Switch = Field(default=False, description="record alerts and deliver none")
    alert_seconds: Number = Field(
        default=60.0, ge=0.1, description="interval at which firing alerts are sent to the Alertmanager"
    )

    host: HostName = Field(
        default="127.0.0.1", description="address to listen on; needs a token, or --insecure, if others can reach it"
    )
    port: Whole = Field(default=8000, ge=0, le=65_535, description="port to listen on")
    tls_certificate: FilePath | None = Field(
        default=None, description="file with the certificate chain (PEM): the daemon serves HTTPS; needs --tls-key"
    )
    tls_key: FilePath | None = Field(default=None, description="file with the private key of the certificate (PEM)")
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="further names clients may use in the Host header; * allows any"
    )
    token_file: FilePath | None = Field(
        default=None, description=f"file with the token clients must send (or variable {TOKEN_VARIABLE})"
    )
    admin_token_file: FilePath | None = Field(
        default=None,
        description="file with the token for administration: reload, silences, deletion of servers",
    )
    tokens: FilePath | None = Field(
        default=None, description="TOML file with further tokens, their rights and the servers they may write"
    )
    insecure: Switch = Field(
        default=False, description="allow an address that other machines can reach without a token"
    )

    shard: ShardText | None = Field(
        default=None,
        description="which part of the fleet this daemon has, 2/8 for the second of eight (none: all of it)",
    )
    shard_peers: tuple[PeerAddress, ...] = Field(
        default=(),
        description="addresses of all shards in the order of their numbers, or one with {shard} in place of the "
        "number; without them a server's peers are those of its own shard",
    )
    shard_token_file: FilePath | None = Field(
        default=None, description="file with the token that shards send each other"
    )
    shard_ca_file: FilePath | None = Field(
        default=None, description="certificates (PEM) to trust for other shards instead of the system's"
    )
    shard_seconds: Number = Field(
        default=5.0, ge=0.1, description="time that a cycle, or a forwarded request, waits for other shards"
    )
    forward: Switch = Field(
        default=False, description="forward records of other shards to them (default: they are rejected)"
    )

    retention_hours: Number = Field(
        default=192.0, ge=1.0, description="received samples are kept this long; older ones are rejected"
    )
    future_minutes: Number = Field(default=10.0, ge=0.0, description="samples further ahead than this are rejected")
    max_servers: Whole = Field(default=20_000, ge=1, description="servers beyond this number are rejected")
    max_records: Whole = Field(default=10_000, ge=1, description="records in one request")
    max_body_mib: Number = Field(
        default=8.0, ge=0.001, description="size of one request's body, before and after decompression"
    )
    max_counters: Whole = Field(
        default=400_000,
        ge=1,
        description="cumulative counters of OTLP whose last value is kept; beyond this those of the server that has "
        "been silent longest are dropped, and its next interval is not measured",
    )
    max_waiting_records: Whole = Field(
        default=50_000, ge=1, description="records accepted but not yet on disk; beyond this requests get 503"
    )
    max_waiting_mib: Number = Field(
        default=32.0, ge=0.001, description="bodies received but not yet validated; beyond this requests get 503"
    )
    max_unsent_mib: Number = Field(
        default=64.0, ge=0.001, description="large responses that clients have not read; beyond this the oldest is cut"
    )
    max_connections: Whole = Field(
        default=1_000,
        ge=1,
        description="open connections, fewer if the limit of open files is low; a further one closes the oldest "
        "incomplete one",
    )
    max_connections_per_address: Whole = Field(default=500, ge=1, description="open connections of one client address")
    header_seconds: Number = Field(default=10.0, ge=0.1, description="deadline for the headers of a request")
    body_seconds: Number = Field(
        default=30.0, ge=0.1, description="deadline for the body of a request, and for the client to read the response"
    )
    shutdown_seconds: Number = Field(default=8.0, ge=0.1, description="time for open requests to end after SIGTERM")

    device: Literal["cpu", "cuda", "auto"] = Field(default="cpu", description="where the model runs: cpu, cuda or auto")
    threads: Whole = Field(
        default=0, ge=0, description="processor threads of one forecast, at a lower priority; 0: one per core"
    )
    grace_seconds: Number = Field(default=10.0, ge=0.0, description="a step counts as complete this long after its end")
    stale_steps: Whole = Field(
        default=3, ge=1, description="a server without a sample for this many steps is marked stale and not forecast"
    )
    drop_steps: Whole = Field(
        default=12,
        ge=1,
        description="a server without a sample for this many steps has no forecast; it stays listed, as silent",
    )
    chunk_servers: Whole = Field(
        default=180, ge=1, description="servers forecast at once; other work runs between two chunks"
    )
    recheck_seconds: Number = Field(
        default=5.0, ge=0.05, description="interval of the check for new servers and late samples"
    )

    @property
    def max_body_bytes(self) -> int:
        """max_body_mib in bytes."""
        return int(self.max_body_mib * MIB)

    @property
    def model_is_chosen(self) -> bool:
        """Whether a flag or the file names the model; then the starter model does not replace a missing one."""
        return "model" in self.model_fields_set

    def beside_history(self, ending: str) -> Path:
        """A file of the daemon's state, in the folder of the history."""
        return self.history.with_name(self.history.name + ending)

    @property
    def own_shard(self) -> Shard | None:
        """The part of the fleet that the daemon has; None: all of it."""
        return None if self.shard is None else Shard.of_text(self.shard)

    @property
    def addresses_of_shards(self) -> dict[int, str]:
        """Addresses of all shards by number, this one too; empty where there are none."""
        own, given = self.own_shard, self.shard_peers
        if own is None or not given:
            return {}
        numbers = range(1, own.count + 1)
        if SHARD_PLACE in given[0]:
            return {number: given[0].replace(SHARD_PLACE, str(number)) for number in numbers}
        return dict(zip(numbers, given, strict=True))

    @property
    def max_samples(self) -> int:
        """Samples in one request of remote write, data points in one of OTLP: as many as max_records can hold."""
        return self.max_records * len(METRICS)

    @model_validator(mode="before")
    @classmethod
    def _with_underscores(cls, values: Any) -> Any:
        """Keys of the file may be spelled like flags; those that moved to the fleet file are refused."""
        if not isinstance(values, dict):
            return values
        found = {key.replace("-", "_"): value for key, value in values.items()}
        for name in MOVED:
            if name in found:
                raise ValueError(f"{name} {found[name]}: {moved_advice(name, Path(str(found[name])))}")
        return found

    @field_validator("*", mode="wrap")
    @classmethod
    def _worded(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return handler(value)
        except ValidationError as problem:
            name = str(info.field_name)
            shown = repr(_shown_address(name, value)) if name in (*ADDRESSES, "shard_peers") else repr(value)
            raise ValueError(f"{name}: {shown} {_reason(problem, cls.model_fields[name])}") from None

    @field_serializer(*ADDRESSES, when_used="json")
    def _without_secrets(self, value: str | None, info: FieldSerializationInfo) -> str | None:
        """Settings are printed without the passwords of their addresses."""
        return None if value is None else _shown_address(info.field_name, value)

    @field_serializer("shard_peers", when_used="json")
    def _peers_without_secrets(self, addresses: tuple[str, ...]) -> list[str]:
        return [without_secrets(address) for address in addresses]

    @field_serializer("prometheus_headers", when_used="json")
    def _names_only(self, headers: tuple[str, ...]) -> list[str]:
        return [f"{parse_header(header)[0]}: {HIDDEN}" for header in headers]


def _shown_address(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_shown_address(name, each) for each in value]
    if not isinstance(value, str):
        return value
    return origin_of(value) if name == "webhook" else without_secrets(value)


_EXPECTED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list of texts",
}


def _reason(problem: ValidationError, setting: FieldInfo) -> str:
    """Why a value was refused, and the remedy, as the end of a sentence that begins with the value."""
    first = problem.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "literal_error":
        return "is unknown; use " + first["ctx"]["expected"].replace("'", "")
    if first["type"] == "less_than_equal":
        return f"is above {first['ctx']['le']}"
    if first["type"] in _EXPECTED:
        return f"is not {_EXPECTED[first['type']]}"
    least = next(bound.ge for bound in setting.metadata if hasattr(bound, "ge"))
    return f"is not a finite number of at least {least}"


def add_flags(group: argparse._ActionsContainer) -> None:
    """Add one flag for each setting. A flag that is not given is None, so that the value of the file is used."""
    for name, setting in Settings.model_fields.items():
        default = setting.default
        shown = "" if default is None or default is False or default == () else f" (default {default})"
        help_text = f"{setting.description}{shown}".replace("%", "%%")
        add_flag(group, "--" + name.replace("_", "-"), default=None, help=help_text, **_argument(name, default))

    add_moved_flags(group, *MOVED)


def _argument(name: str, default: Any) -> dict[str, Any]:
    """How argparse reads the setting."""
    if isinstance(default, bool):
        return {"action": "store_true"}
    if isinstance(default, tuple):
        return {"nargs": "*", "metavar": {"prometheus_headers": "HEADER", "shard_peers": "URL"}.get(name, "NAME")}
    kind = type(default) if isinstance(default, int | float) else str
    return {"type": kind, "metavar": _metavar(name)}


def _metavar(name: str) -> str:
    if name in ADDRESSES:
        return "URL"
    if name.startswith("max_") or name == "threads":
        return "N"
    if name == "model":
        return "DIR"
    if name == "shard":
        return "K/N"
    files = ("history", "tokens", "fleet", "connections", "tls_certificate", "tls_key")
    return "FILE" if name in files else name.rpartition("_")[2].upper()


def load_settings(path: Path | None, flags: Mapping[str, Any]) -> Settings:
    """Settings from a TOML file, if there is one, replaced by the flags that were given (values other than None).

    Raises SettingsError naming the setting, the value and the remedy.
    """
    try:
        values = {} if path is None else read_toml(path, Settings, "settings file").model_dump(exclude_unset=True)
        values |= {name: flags[name] for name in Settings.model_fields if flags.get(name) is not None}
        settings = Settings(**values)
    except TomlFileError as problem:
        raise SettingsError(str(problem)) from None
    except ValidationError as problem:
        raise SettingsError(first_problem(problem, Settings)) from None
    if settings.drop_steps < settings.stale_steps:
        reason = f"{settings.drop_steps} is less than stale_steps ({settings.stale_steps})"
        raise SettingsError(f"drop_steps: {reason}; give at least as many")
    for name in ("prometheus_token_file", "prometheus_headers"):
        if getattr(settings, name) and settings.prometheus is None:
            raise SettingsError(f"{name}: applies to the setting prometheus only; add prometheus, or leave it out")
    _check_shards(settings)
    return settings


def _check_shards(settings: Settings) -> None:
    """Raise SettingsError if the settings of shards contradict each other."""
    own, given = settings.own_shard, settings.shard_peers
    if own is None:
        for name in ("shard_peers", "shard_token_file", "shard_ca_file", "forward"):
            if getattr(settings, name):
                raise SettingsError(f"{name}: applies to a fleet in shards only; add shard, such as 2/8")
        return
    if settings.forward and not given:
        raise SettingsError("forward: the addresses of the other shards are missing; add shard_peers")
    is_template = len(given) == 1 and SHARD_PLACE in given[0]
    if given and not is_template and (len(given) != own.count or any(SHARD_PLACE in each for each in given)):
        raise SettingsError(
            f"shard_peers: {len(given)} addresses for {own.count} shards; give all in the order of their numbers, "
            f"or one with {SHARD_PLACE} in place of the number"
        )


def check_history_file(settings: Settings) -> None:
    """Raise SettingsError if the path of the history is that of a folder."""
    if settings.history.is_dir():
        folder = settings.history
        raise SettingsError(
            f"history: {folder} is a folder; give the path of a file in it, such as {folder / 'fleet.sqlite'}"
        )


def check_certificate(settings: Settings) -> None:
    """Raise SettingsError if only one of certificate and key is given, or if they cannot be used together."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        missing, given = ("tls_certificate", "tls_key") if certificate is None else ("tls_key", "tls_certificate")
        raise SettingsError(f"{missing}: is missing; {given} is given, and HTTPS needs both")
    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as problem:
            raise SettingsError(f"{name}: {path} cannot be read ({problem.strerror}); let the daemon read it") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as problem:
        reason = getattr(problem, "reason", None) or problem
        remedy = "give a certificate chain and its private key in PEM, the key without a password"
        raise SettingsError(
            f"tls_certificate: {certificate} and {key} are not a usable pair ({reason}); {remedy}"
        ) from None
