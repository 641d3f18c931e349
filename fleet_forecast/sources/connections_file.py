"""The connections file: which Prometheus servers the fleet is pulled from, and where its forecasts are written.

[prometheus.eu]                          # any number of servers, each with a name of your own
url = "https://prometheus-eu:9090"
user = "fleet"
password_file = "/etc/fleet-forecast/prometheus-eu"
matchers = 'cluster="eu-1"'

[forecasts]
url = "http://victoria-metrics:8428/api/v1/write"
horizons = ["1h", "8h"]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from fleet_forecast.contract.forecast_spec import SCORED_LEVELS
from fleet_forecast.contract.toml_file import first_problem, read_toml
from fleet_forecast.name_patterns import compile_whole_name
from fleet_forecast.sources.address import parse_header
from fleet_forecast.sources.connection import Connection, CredentialError, read_access
from fleet_forecast.sources.label_matchers import check_matchers
from fleet_forecast.sources.prometheus import (
    MIN_WINDOW_SECONDS,
    PrometheusClient,
    PrometheusServer,
    QuerySet,
    known_metric,
)

ONLY_SERVER = "prometheus"  # name of a server that a flag gives


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,50}", text):
        raise ValueError(f"prometheus.{text} is not a name; use 1 to 50 letters, digits, '.', '_' and '-'")
    return text


def _table(value: object) -> object:
    """A key of [prometheus] itself is a table without its name."""
    if isinstance(value, Mapping):
        return value
    raise PydanticCustomError("table", "should be in a table with a name of your own, as in [prometheus.eu]")


def _horizon(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,5}[smhd]", text):
        raise ValueError(f"horizons: {text!r} is not a duration; write 15m, 1h or 8h")
    return text


def _pattern(text: str) -> str:
    compile_whole_name(text)
    return text


class PrometheusTable(Connection):
    """One Prometheus, or a database with its interface, to pull from."""

    queries: Path | None = Field(default=None, description="query file (default: the queries of the fleet)")
    matchers: Annotated[str, AfterValidator(check_matchers)] | None = Field(
        default=None, description="label matchers added to every selector of the queries"
    )
    window_seconds: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=MIN_WINDOW_SECONDS, description="shortest $window: two scrapes at least"
    )


class ForecastsTable(Connection):
    """A database that takes samples from the future by Prometheus remote write, and what is written to it."""

    horizons: Annotated[tuple[Annotated[str, AfterValidator(_horizon)], ...], Field(min_length=1)] | None = Field(
        default=None, description="such as 15m and 8h (default: those of /metrics)"
    )
    quantiles: Annotated[tuple[float, ...], Field(min_length=1)] = Field(
        default=SCORED_LEVELS, description="levels of the model"
    )
    metrics: Annotated[tuple[Annotated[str, AfterValidator(known_metric)], ...], Field(min_length=1)] | None = Field(
        default=None, description="names of metrics (default: all)"
    )
    servers: Annotated[str, AfterValidator(_pattern)] = Field(
        default=".*", description="pattern of whole names of servers"
    )


class ConnectionsFile(BaseModel):
    """The tables of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prometheus: Mapping[Annotated[str, AfterValidator(_name)], Annotated[PrometheusTable, BeforeValidator(_table)]] = (
        Field(default={})
    )
    forecasts: ForecastsTable | None = None


def load_connections(path: Path) -> ConnectionsFile:
    """The content of a connections file. Raises TomlFileError."""
    return read_toml(path, ConnectionsFile, "connections file")


def load_query_set(path: Path) -> QuerySet:
    """Queries of a TOML file with the fields of QuerySet: [queries] metric = 'PromQL'. Raises TomlFileError."""
    return read_toml(path, QuerySet, "query file")


def only_server(url: str, token_file: Path | None, headers: Sequence[str]) -> Mapping[str, PrometheusTable]:
    """The one Prometheus that flags give; headers: "NAME: VALUE". Raises ValueError."""
    fields = {"url": url, "token_file": token_file, "headers": dict(map(parse_header, headers))}
    try:
        return {ONLY_SERVER: PrometheusTable.model_validate(fields)}
    except ValidationError as problem:
        raise ValueError(first_problem(problem, PrometheusTable)) from None


def prometheus_servers(
    tables: Mapping[str, PrometheusTable], queries: QuerySet, environment: Mapping[str, str]
) -> tuple[PrometheusServer, ...]:
    """The servers in the order of the file, their files read and their queries checked.

    queries: of servers without a query file. Raises CredentialError, TomlFileError and LabelMatcherError.
    """
    return tuple(_server(name, table, queries, environment) for name, table in tables.items())


def _server(name: str, table: PrometheusTable, queries: QuerySet, environment: Mapping[str, str]) -> PrometheusServer:
    try:
        access = read_access(table, environment)
    except CredentialError as problem:
        raise CredentialError(f"prometheus {name}: {problem}") from None
    own = queries if table.queries is None else load_query_set(table.queries)
    server = PrometheusServer(name, PrometheusClient(access), own, table.matchers or "", table.window_seconds)
    for metric in own.queries:
        server.query(metric, MIN_WINDOW_SECONDS)
    return server
