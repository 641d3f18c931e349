"""A fleet file as a FleetDefinition, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import model_validator

from fleet_forecast.contract.calendar import DAYS_OF_WEEK
from fleet_forecast.contract.definitions import BUILT_IN_FLEET, FleetDefinition, MetricSpec
from fleet_forecast.contract.fleet.names import check_variables
from fleet_forecast.contract.fleet.tables import CALENDAR_KEYS, FleetTables, MetricTable, ProfileTable
from fleet_forecast.contract.toml_file import read_toml
from fleet_forecast.name_patterns import compile_pattern
from server_profiles import GENERAL_INCIDENTS, Baseline, ProfileRules, ProfileSpec, Rhythm

WHAT = "fleet file"  # in messages
_DIGITS = re.compile(r"\d*$")


class _FleetFile(FleetTables):
    """The tables, checked as a whole."""

    @model_validator(mode="after")
    def _usable(self) -> _FleetFile:
        fleet_of(self)
        return self


def read_fleet(path: Path) -> FleetDefinition:
    """The fleet of a file. Raises TomlFileError naming file, line, field, value and remedy."""
    return replace(fleet_of(read_toml(path, _FleetFile, WHAT)), source=path)


def fleet_of(tables: FleetTables) -> FleetDefinition:
    """The built-in fleet with the additions of the tables. Raises ValueError naming field, value and remedy."""
    profiles = _profiles(tables)
    metrics = _metrics(tables.metrics)
    check_variables([spec.name for spec in metrics])
    _check_otlp(metrics)
    known = [spec.name for spec in metrics]
    for profile, table in tables.profiles.items():
        for metric in table.baselines:
            if metric not in known:
                raise ValueError(
                    f"profiles.{profile}.baselines: unknown metric {metric!r}; use {', '.join(known)}, "
                    f"or add [metrics.{metric}]"
                )
    for server, pinned in tables.servers.items():
        if pinned not in profiles:
            raise ValueError(
                f"servers: {server!r} has the unknown profile {pinned!r}; use {', '.join(map(str, profiles))}, "
                f"or add [profiles.{pinned}]"
            )
    _check_baselines(metrics, profiles)
    return FleetDefinition(
        metrics=metrics,
        profiles=profiles,
        rules=_rules(tables, profiles),
        calendar=tables.calendar(),
        server_label=tables.prometheus.server_label,
        strip_port=tables.prometheus.strip_port,
        dialect=tables.prometheus.dialect,
        alerts=tables.alerts,
        names_calendar=not tables.model_fields_set.isdisjoint(CALENDAR_KEYS),
    )


def _profiles(tables: FleetTables) -> dict[str, ProfileSpec]:
    """Those of the file in its order, which is that of their patterns, then the other built-in ones."""
    built_in = BUILT_IN_FLEET.profiles
    listed = {name: _profile(name, table, built_in.get(name)) for name, table in tables.profiles.items()}
    return {**listed, **{name: spec for name, spec in built_in.items() if name not in listed}}


def _profile(name: str, table: ProfileTable, before: ProfileSpec | None) -> ProfileSpec:
    """A profile of the file; before: the built-in one of this name."""
    baselines = {metric: Baseline(each.mean, each.spread) for metric, each in table.baselines.items()}
    incidents = tuple(kind for kind, metric in GENERAL_INCIDENTS.items() if metric in baselines)
    own = before or ProfileSpec(name, (), f"{_DIGITS.sub('', name)}001", 0, {}, Rhythm("flat"), incidents)
    given: dict[str, Any] = {
        "description": table.description,
        "first_name": table.first_name,
        "default_servers": table.servers,
        "shared_demand": table.shared_demand,
        "rhythm": table.rhythm and table.rhythm.rhythm(),
        "name_patterns": table.fallback_patterns,
        "incidents": table.incidents,
    }
    return replace(
        own,
        baselines={**own.baselines, **baselines},
        added_patterns=table.patterns,
        **{field: value for field, value in given.items() if value is not None},
    )


def _metrics(tables: Mapping[str, MetricTable]) -> tuple[MetricSpec, ...]:
    metrics = {spec.name: spec for spec in BUILT_IN_FLEET.metrics}
    for name, table in tables.items():
        metrics[name] = _metric(name, table, metrics.get(name))
    return tuple(metrics.values())


def _metric(name: str, table: MetricTable, before: MetricSpec | None) -> MetricSpec:
    """A metric of the file; before: the built-in one of this name."""
    for key in ("unit", "kind"):
        value = getattr(table, key)
        if before is None and value is None:
            choice = "percent, rate or value" if key == "kind" else "text, such as % or messages"
            raise ValueError(f"metrics.{name}.{key} is missing; add {key} = ... ({choice})")
        if before is not None and value not in (None, getattr(before, key)):
            raise ValueError(
                f"metrics.{name}.{key} is {value!r}, that of the built-in metric {getattr(before, key)!r}; omit it, "
                "or define a metric of another name"
            )
    if before is None and table.kind == "percent" and table.unit != "%":
        raise ValueError(f"metrics.{name}.unit is {table.unit!r}; a metric of the kind percent has the unit '%'")
    own = before or MetricSpec(name, str(table.unit), table.kind or "rate", name)
    for bound in (table.threshold.above, table.threshold.below):
        if bound is not None and not own.lower <= bound <= own.upper:
            raise ValueError(
                f"metrics.{name}.threshold is {bound:g}, a value that the metric never has; "
                f"give one from {own.lower:,.0f} to {own.upper:,.0f} {own.unit}"
            )
    given: dict[str, Any] = {
        "description": table.description,
        "label": table.label,
        "query": table.query,
        "otlp": table.otlp,
        "above": table.threshold.above,
        "below": table.threshold.below,
    }
    return replace(own, **{field: value for field, value in given.items() if value is not None})


def _check_otlp(metrics: tuple[MetricSpec, ...]) -> None:
    names: dict[str, str] = {}
    for spec in metrics:
        if spec.otlp is None:
            continue
        if other := names.get(spec.otlp):
            raise ValueError(f"metrics.{spec.name}.otlp is {spec.otlp!r}, as of {other}; give each metric its own")
        names[spec.otlp] = spec.name


def _check_baselines(metrics: tuple[MetricSpec, ...], profiles: Mapping[str, ProfileSpec]) -> None:
    for name, spec in profiles.items():
        for metric in metrics:
            baseline = spec.baselines.get(metric.name)
            if baseline is None or metric.kind == "value" or 0 < baseline.mean < metric.upper:
                continue
            raise ValueError(
                f"profiles.{name}.baselines.{metric.name}: mean is {baseline.mean:g}; "
                f"give a mean above 0 and below {metric.upper:,.0f} {metric.unit}"
            )


def _rules(tables: FleetTables, profiles: Mapping[str, ProfileSpec]) -> ProfileRules:
    added = [(compile_pattern(text), name) for name, table in tables.profiles.items() for text in table.patterns]
    built_in = [(compile_pattern(text), name) for name, spec in profiles.items() for text in spec.name_patterns]
    pins = {server.lower(): profile for server, profile in tables.servers.items()}
    return ProfileRules((*added, *built_in), pins, len(added))


def fleet_document(fleet: FleetDefinition, built_in_queries: Mapping[str, str]) -> dict[str, Any]:
    """The whole fleet as a document of its file, defaults included; reading it gives an equal fleet.

    built_in_queries: of the metrics without a query of their own.
    """
    return {
        **fleet.calendar.as_document(),
        "prometheus": {
            "server_label": fleet.server_label,
            "strip_port": fleet.strip_port,
            "dialect": fleet.dialect,
        },
        "profiles": {str(name): _profile_document(spec) for name, spec in fleet.profiles.items()},
        "servers": {server: str(profile) for server, profile in fleet.rules.pins.items()},
        "metrics": {spec.name: _metric_document(spec, built_in_queries) for spec in fleet.metrics},
        "alerts": dict(fleet.alerts),
    }


def _profile_document(spec: ProfileSpec) -> dict[str, Any]:
    rhythm, window = spec.rhythm, spec.rhythm.maintenance
    shown: dict[str, Any] = {
        "description": spec.description,
        "patterns": list(spec.added_patterns),
        "fallback_patterns": list(spec.name_patterns),
        "first_name": spec.first_name,
        "servers": spec.default_servers,
        "shared_demand": spec.shared_demand,
        "incidents": list(spec.incidents),
        "baselines": {metric: list(map(float, baseline)) for metric, baseline in spec.baselines.items()},
        "rhythm": {
            "description": rhythm.description,
            "weekend": rhythm.weekend,
            "holiday": rhythm.holiday,
            "windows": [vars(each) for each in rhythm.windows],
        },
    }
    if window is not None:
        day = DAYS_OF_WEEK[window.day_of_week]
        shown["rhythm"]["maintenance"] = {"day": day, "start": window.start, "minutes": window.minutes}
    return shown


def _metric_document(spec: MetricSpec, built_in_queries: Mapping[str, str]) -> dict[str, Any]:
    bounds = {"above": spec.above, "below": spec.below}
    fields = {
        "unit": spec.unit,
        "kind": spec.kind,
        "description": spec.description,
        "label": spec.label,
        "otlp": spec.otlp,
        "query": spec.query or built_in_queries.get(spec.name),
        "threshold": {name: value for name, value in bounds.items() if value is not None} or None,
    }
    return {name: value for name, value in fields.items() if value is not None}
