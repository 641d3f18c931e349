"""When alerts fire: thresholds by metric, profile and server, levels of the severities, streaks; silences and labels.

Thresholds depend on the profile, because 87 % of memory is a database's normal day. The table [alerts] of the fleet
file overrides the defaults for profiles and servers; docs/alerts.md shows one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fleet_forecast.contract.definitions import METRIC_SPECS, METRICS, PROFILES, FleetDefinition, MetricSpec
from fleet_forecast.contract.toml_file import check_table
from fleet_forecast.intervals.silences import Silence
from fleet_forecast.serving.alerting.bounds import NO_BOUNDS, Bounds
from server_profiles import Baseline, ServerProfile

PERCENT_SPREADS, RATE_SPREADS = 4.5, 16.0
PERCENT_RANGE = (90.0, 99.5)  # of default thresholds
OWN_LABELS = ("alertname", "server", "profile", "metric", "severity", "reason")  # of an alert in the Alertmanager
WATCH_SHARE = 0.6  # of fire_probability: the default of watch_probability
Thresholds = Mapping[str, Bounds]  # by metric; Bounds without limits: muted by a rule; missing: no bound is known


def default_thresholds(profile: str) -> dict[str, float]:
    """Thresholds above what a healthy server of the profile reaches in bursts at its daily peak.

    Percentages: mean + 4.5 standard deviations of the baseline on the log-odds scale, clipped to 90 and 99.5. Others:
    mean + 16 standard deviations. A metric without a baseline, or that may be negative, has no default threshold.
    benchmarks/alerts.py measures the quality of the thresholds.
    """
    baselines = PROFILES[profile].baselines
    return {
        name: _default_threshold(spec, baselines[name])
        for name, spec in METRIC_SPECS.items()
        if name in baselines and spec.kind != "value"
    }


def _default_threshold(spec: MetricSpec, baseline: Baseline) -> float:
    if not spec.is_percent:
        return baseline.mean + RATE_SPREADS * baseline.spread
    share = baseline.mean / 100
    log_odds = math.log(share / (1 - share)) + PERCENT_SPREADS * baseline.spread / 100 / (share * (1 - share))
    lower, upper = PERCENT_RANGE
    return round(min(upper, max(lower, 100 / (1 + math.exp(-log_odds)))), 1)


def default_bounds(profile: str) -> dict[str, Bounds]:
    """The default thresholds of a profile, with the thresholds of the fleet file's metrics in their place."""
    bounds = {metric: Bounds(above=value) for metric, value in default_thresholds(profile).items()}
    for metric, spec in METRIC_SPECS.items():
        given = {"above": spec.above, "below": spec.below}
        if named := {name: value for name, value in given.items() if value is not None}:
            bounds[metric] = bounds.get(metric, NO_BOUNDS)._replace(**named)
    return bounds


def _named_bounds(value: Any) -> Any:
    """The bounds that a rule names: a number is the upper one, false removes both."""
    if value is False or value is None:
        return {"above": None, "below": None}
    return value if isinstance(value, dict) else {"above": value}


def _none_for_false(value: Any) -> Any:
    return None if value is False else value


FiniteNumber = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Bound = Annotated[FiniteNumber | None, BeforeValidator(_none_for_false)]  # in TOML, false for None


class BoundsRule(BaseModel):
    """The bounds of one metric that a rule names; the others stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    above: Bound = None
    below: Bound = None

    @model_validator(mode="after")
    def _in_order(self) -> BoundsRule:
        if self.above is not None and self.below is not None and self.below >= self.above:
            raise ValueError(f"below is {self.below:g}, above {self.above:g}; below must be less than above")
        return self

    def applied_to(self, bounds: Bounds) -> Bounds:
        """The bounds with those named here."""
        return bounds._replace(**{name: getattr(self, name) for name in self.model_fields_set})


Threshold = Annotated[BoundsRule, BeforeValidator(_named_bounds)]
Probability = Annotated[float, Field(gt=0, lt=1, strict=True)]
Streak = Annotated[int, Field(ge=1, strict=True)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
LabelName = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]


class AlertRules(BaseModel):
    """The rules; each is a key of the table [alerts]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fire_probability: Probability = Field(default=0.5, description="an alert fires at this probability or above")
    fire_forecasts: Streak = Field(default=2, description="in so many forecasts in a row")
    resolve_probability: Probability = Field(default=0.25, description="an alert ends below this probability")
    resolve_forecasts: Streak = Field(default=3, description="in so many forecasts in a row")
    watch_probability: Probability | None = Field(
        default=None, description="a watch fires at this probability; default: 0.6 of fire_probability"
    )
    page_false_alarms_per_server_month: Rate = Field(
        default=0.2, description="budget of false pages, for detectors with a measured curve"
    )
    watch_false_alarms_per_server_month: Rate = Field(
        default=2.0, description="budget of false watches, for detectors with a measured curve"
    )
    lookahead_seconds: Streak = Field(default=14_400, description="later exceedances raise no alert")
    departures: bool = Field(default=True, strict=True, description="whether anomalies raise alerts")
    shadow: bool = Field(default=False, strict=True, description="true: alerts are recorded, none is delivered")
    labels: dict[LabelName, str] = Field(default={}, description="further labels of all alerts in the Alertmanager")
    label_names: dict[str, tuple[LabelName, ...]] = Field(
        default={}, description="names under which a label is sent to the Alertmanager, by its own name"
    )
    silences: tuple[Silence, ...] = Field(default=(), description="when alerts are recorded, not delivered")
    profiles: dict[str, dict[str, Threshold]] = Field(default={}, description="thresholds by profile and metric")
    servers: dict[str, dict[str, Threshold]] = Field(default={}, description="thresholds by server and metric")

    @field_validator("profiles")
    @classmethod
    def _known_profiles(cls, profiles: dict[str, dict[str, Threshold]]) -> dict[str, dict[str, Threshold]]:
        for profile in profiles:
            if profile not in PROFILES:
                raise ValueError(f"unknown profile {profile!r}; use {', '.join(map(str, PROFILES))}")
        return profiles

    @field_validator("profiles", "servers")
    @classmethod
    def _known_metrics(cls, tables: dict[str, dict[str, Threshold]]) -> dict[str, dict[str, Threshold]]:
        for name, thresholds in tables.items():
            for metric, rule in thresholds.items():
                if metric not in METRICS:
                    raise ValueError(f"{name}: unknown metric {metric!r}; use {', '.join(METRICS)}")
                spec = METRIC_SPECS[metric]
                for bound in (rule.above, rule.below):
                    if bound is not None and not spec.lower <= bound <= spec.upper:
                        reason = f"is outside {spec.range_text} and is never crossed; false removes a threshold"
                        raise ValueError(f"{name}: {metric} {bound:g} {reason}")
        return tables

    @field_validator("label_names")
    @classmethod
    def _own_labels(cls, names: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name in names:
            if name not in OWN_LABELS:
                raise ValueError(f"label_names: unknown label {name!r}; use {', '.join(OWN_LABELS)}")
        return names

    @model_validator(mode="after")
    def _levels_in_order(self) -> AlertRules:
        if self.resolve_probability >= self.fire_probability:
            levels = f"resolve_probability is {self.resolve_probability:g}, fire_probability {self.fire_probability:g}"
            raise ValueError(f"{levels}; resolve_probability must be below fire_probability")
        if self.watch_probability is not None and self.watch_probability > self.fire_probability:
            levels = f"watch_probability is {self.watch_probability:g}, fire_probability {self.fire_probability:g}"
            raise ValueError(f"{levels}; watch_probability must not be above fire_probability")
        if self.watch_false_alarms_per_server_month < self.page_false_alarms_per_server_month:
            raise ValueError(
                f"watch_false_alarms_per_server_month is {self.watch_false_alarms_per_server_month:g}, that of pages "
                f"{self.page_false_alarms_per_server_month:g}; the budget of watches must not be the smaller one"
            )
        return self

    @model_validator(mode="after")
    def _different_labels(self) -> AlertRules:
        sent = [name for own in OWN_LABELS for name in self.sent_names(own)] + list(self.labels)
        for name in sent:
            if sent.count(name) > 1:
                raise ValueError(f"label {name!r} is given twice in labels or label_names; give each label once")
        return self

    def sent_names(self, label: str) -> tuple[str, ...]:
        """The names under which one of OWN_LABELS is sent to the Alertmanager."""
        return self.label_names.get(label, (label,))

    @property
    def watch_level(self) -> float:
        """The probability at which a watch of a detector without a measured curve fires."""
        return WATCH_SHARE * self.fire_probability if self.watch_probability is None else self.watch_probability

    @cached_property
    def _by_profile(self) -> Mapping[str, Thresholds]:
        return {
            str(profile): _with_rules(default_bounds(profile), self.profiles.get(str(profile), {}))
            for profile in PROFILES
        }

    @cached_property
    def _of_unknown_profile(self) -> Thresholds:
        """Those of generic without its defaults for rates: how large a rate is usual depends on the servers."""
        generic = ServerProfile.GENERIC
        percentages = {name: each for name, each in default_bounds(generic).items() if METRIC_SPECS[name].is_percent}
        return _with_rules(percentages, self.profiles.get(str(generic), {}))

    def thresholds_of(self, server_name: str, profile: str) -> Thresholds:
        """Bounds of one server, by metric; of a profile that the fleet does not have, see _of_unknown_profile."""
        of_profile = self._by_profile.get(profile, self._of_unknown_profile)
        own = self.servers.get(server_name)
        return of_profile if own is None else _with_rules(of_profile, own)

    def bounds_of(self, server_name: str, profile: str, metric: str) -> Bounds:
        """Bounds of one metric of a server."""
        return self.thresholds_of(server_name, profile).get(metric, NO_BOUNDS)

    def is_muted(self, server_name: str, profile: str, metric: str) -> bool:
        """Whether a rule removes every bound of a metric of a server: then no alert of any reason is on it."""
        bounds = self.thresholds_of(server_name, profile).get(metric)
        return bounds is not None and not bounds.limits


def _with_rules(thresholds: Thresholds, rules: Mapping[str, BoundsRule]) -> Thresholds:
    changed = {metric: rule.applied_to(thresholds.get(metric, NO_BOUNDS)) for metric, rule in rules.items()}
    return {**thresholds, **changed}


def alert_rules_of(fleet: FleetDefinition) -> AlertRules:
    """The rules in the table [alerts] of the fleet file. Raises TomlFileError."""
    return AlertRules() if fleet.source is None else check_table(fleet.alerts, AlertRules, fleet.source, "alerts")
