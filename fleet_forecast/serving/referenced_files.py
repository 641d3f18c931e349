"""The content of the files that the settings name, and the parts of the fleet file that the daemon needs."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.serving.access_tokens import read_token, require_token_beyond_loopback, token_from
from fleet_forecast.serving.alerting.rules import AlertRules, alert_rules_of
from fleet_forecast.serving.clients import Client, load_clients
from fleet_forecast.serving.settings import Settings, SettingsError, check_certificate, check_history_file
from fleet_forecast.sources.connection import Access, Connection, CredentialError, read_access
from fleet_forecast.sources.connections_file import (
    ConnectionsFile,
    ForecastsTable,
    load_connections,
    only_server,
    prometheus_servers,
)
from fleet_forecast.sources.prometheus import PrometheusServer, query_set_of
from server_profiles import BUILT_IN_RULES, ProfileRules


class ForecastTarget(NamedTuple):
    """The forecasts to write, and the connection to the database."""

    table: ForecastsTable
    access: Access


@dataclass(frozen=True)
class ReferencedFiles:
    """Rules and tokens; the defaults are those of settings that name no file."""

    profile_rules: ProfileRules = BUILT_IN_RULES
    alert_rules: AlertRules = field(default_factory=AlertRules)
    token: bytes | None = None
    admin_token: bytes | None = None
    shard_token: bytes | None = None
    clients: Mapping[str, Client] = field(default_factory=dict)  # by the digest of their token
    prometheus: tuple[PrometheusServer, ...] = ()  # to pull the fleet from
    forecasts: ForecastTarget | None = None  # where forecasts are written
    shard_certificates: ssl.SSLContext | None = None  # to trust in other shards, None: the usual ones


def read_referenced_files(settings: Settings, environment: Mapping[str, str]) -> ReferencedFiles:
    """Read and check the files that the settings name, apart from the model; the fleet file is in use already.

    environment: variables of the process, which may contain the token and passwords. Raises what the readers of the
    files raise, and SettingsError if the daemon would serve other machines without a token.
    """
    fleet = fleet_in_use()
    connections = load_connections(settings.connections) if settings.connections else ConnectionsFile()
    files = ReferencedFiles(
        profile_rules=fleet.rules,
        alert_rules=alert_rules_of(fleet),
        token=read_token(settings.token_file) or token_from(environment),
        admin_token=read_token(settings.admin_token_file),
        shard_token=read_token(settings.shard_token_file),
        clients=load_clients(settings.tokens) if settings.tokens else {},
        prometheus=_prometheus(settings, connections, environment),
        forecasts=_forecast_target(connections, environment),
        shard_certificates=_shard_certificates(settings.shard_ca_file),
    )
    require_token_beyond_loopback(settings, files.token, bool(files.clients))
    check_certificate(settings)
    check_history_file(settings)
    return files


def _prometheus(
    settings: Settings, connections: ConnectionsFile, environment: Mapping[str, str]
) -> tuple[PrometheusServer, ...]:
    """The servers to pull from: those of the connections file, or the one of the settings. Raises SettingsError."""
    tables = connections.prometheus
    try:
        if settings.prometheus is not None:
            if tables:
                raise ValueError(f"prometheus: {settings.connections} has [prometheus.NAME] too; leave out one of them")
            tables = only_server(settings.prometheus, settings.prometheus_token_file, settings.prometheus_headers)
        return prometheus_servers(tables, query_set_of(fleet_in_use()), environment)
    except ValueError as problem:
        raise SettingsError(str(problem)) from None


def _forecast_target(connections: ConnectionsFile, environment: Mapping[str, str]) -> ForecastTarget | None:
    """Where forecasts are written; None without [forecasts] in the connections file."""
    table = connections.forecasts
    if table is None:
        return None
    try:
        return ForecastTarget(table, read_access(table, environment))
    except CredentialError as problem:
        raise SettingsError(f"forecasts: {problem}") from None


def _shard_certificates(path: Path | None) -> ssl.SSLContext | None:
    if path is None:
        return None
    try:
        return read_access(Connection(url="https://shard", ca_file=path), {}).certificates
    except CredentialError as problem:
        raise SettingsError(f"shard_{problem}") from None
