"""The content of the files that the settings name, and what the daemon needs of the fleet file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleet_forecast.contract.definitions import fleet_in_use
from fleet_forecast.serving.alerting.rules import AlertRules, alert_rules_of
from fleet_forecast.serving.clients import Client, load_clients
from fleet_forecast.serving.settings import (
    Settings,
    check_certificate,
    check_history_file,
    read_token,
    require_token_beyond_loopback,
    token_from,
)
from fleet_forecast.sources.address import parse_header
from fleet_forecast.sources.prometheus import NODE_EXPORTER, PrometheusClient, QuerySet, query_set_of
from server_profiles import BUILT_IN_RULES, ProfileRules


@dataclass(frozen=True)
class ReferencedFiles:
    """Rules and tokens; the defaults are those of settings that name no file."""

    profile_rules: ProfileRules = BUILT_IN_RULES
    alert_rules: AlertRules = field(default_factory=AlertRules)
    token: bytes | None = None
    admin_token: bytes | None = None
    clients: Mapping[str, Client] = field(default_factory=dict)  # by the digest of their token
    prometheus_token: bytes | None = None
    queries: QuerySet = NODE_EXPORTER


def read_referenced_files(settings: Settings, environment: Mapping[str, str]) -> ReferencedFiles:
    """Read and check the files that the settings name, apart from the model; the fleet file is in use already.

    environment: variables of the process, which may contain the token. Raises what the readers of the files raise, and
    SettingsError if the daemon would serve other machines without a token.
    """
    fleet = fleet_in_use()
    files = ReferencedFiles(
        profile_rules=fleet.rules,
        alert_rules=alert_rules_of(fleet),
        token=read_token(settings.token_file) or token_from(environment),
        admin_token=read_token(settings.admin_token_file),
        clients=load_clients(settings.tokens) if settings.tokens else {},
        prometheus_token=read_token(settings.prometheus_token_file),
        queries=query_set_of(fleet),
    )
    require_token_beyond_loopback(settings, files.token, bool(files.clients))
    check_certificate(settings)
    check_history_file(settings)
    return files


def prometheus_source(settings: Settings, files: ReferencedFiles) -> tuple[PrometheusClient, QuerySet] | None:
    """The Prometheus to pull from and its queries; None if the settings name none."""
    if settings.prometheus is None:
        return None
    token = files.prometheus_token.decode("latin-1") if files.prometheus_token else None
    headers = dict(map(parse_header, settings.prometheus_headers))
    return PrometheusClient(settings.prometheus, token, headers), files.queries
