"""When alerts fire: thresholds by metric, profile and server, probability levels and streaks.

Thresholds depend on the profile, because 87 % of memory is a database's normal day. A TOML file overrides the defaults
for profiles and servers; docs/alerts.md shows one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fleet_forecast.contract.specs import METRIC_SPECS, METRICS
from fleet_forecast.contract.toml_file import read_toml
from server_profiles import PROFILES, Baseline, ServerProfile

PERCENT_SPREADS, RATE_SPREADS = 4.5, 16.0
PERCENT_RANGE = (90.0, 99.5)  # of default thresholds
Thresholds = Mapping[str, float | None]  # per metric; None: no alert


def default_thresholds(profile: ServerProfile) -> dict[str, float | None]:
    """Thresholds above what a healthy server of the profile reaches in bursts at its daily peak.

    Percentages: mean + 4.5 standard deviations of the baseline on the log-odds scale, clipped to 90 and 99.5. Others:
    mean + 16 standard deviations. A metric without a baseline has no default threshold.
    benchmarks/alerts.py measures the quality of the thresholds.
    """
    baselines = PROFILES[profile].baselines
    return {metric: _default_threshold(metric, baselines[metric]) for metric in METRICS if metric in baselines}


def _default_threshold(metric: str, baseline: Baseline) -> float:
    if not METRIC_SPECS[metric].is_percent:
        return baseline.mean + RATE_SPREADS * baseline.spread
    share = baseline.mean / 100
    log_odds = math.log(share / (1 - share)) + PERCENT_SPREADS * baseline.spread / 100 / (share * (1 - share))
    lower, upper = PERCENT_RANGE
    return round(min(upper, max(lower, 100 / (1 + math.exp(-log_odds)))), 1)


def _none_for_false(value: Any) -> Any:
    return None if value is False else value


FiniteNumber = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Threshold = Annotated[FiniteNumber | None, BeforeValidator(_none_for_false)]  # in TOML, false for None
Probability = Annotated[float, Field(gt=0, lt=1, strict=True)]
Streak = Annotated[int, Field(ge=1, strict=True)]


class AlertRules(BaseModel):
    """The rules, and the file that overrides them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fire_probability: Probability = Field(default=0.5, description="an alert fires at this probability or above")
    fire_forecasts: Streak = Field(default=2, description="in so many forecasts in a row")
    resolve_probability: Probability = Field(default=0.25, description="an alert ends below this probability")
    resolve_forecasts: Streak = Field(default=3, description="in so many forecasts in a row")
    lookahead_seconds: Streak = Field(default=14_400, description="later exceedances raise no alert")
    departures: bool = Field(default=True, strict=True, description="whether anomalies raise alerts")
    profiles: dict[str, dict[str, Threshold]] = Field(default={}, description="thresholds by profile and metric")
    servers: dict[str, dict[str, Threshold]] = Field(default={}, description="thresholds by server and metric")

    @field_validator("profiles")
    @classmethod
    def _known_profiles(cls, profiles: dict[str, dict[str, Threshold]]) -> dict[str, dict[str, Threshold]]:
        for profile in profiles:
            if profile not in set(ServerProfile):
                raise ValueError(f"unknown profile {profile!r}; use {', '.join(ServerProfile)}")
        return profiles

    @field_validator("profiles", "servers")
    @classmethod
    def _known_metrics(cls, tables: dict[str, dict[str, Threshold]]) -> dict[str, dict[str, Threshold]]:
        for name, thresholds in tables.items():
            for metric in thresholds:
                if metric not in METRICS:
                    raise ValueError(f"{name}: unknown metric {metric!r}; use {', '.join(METRICS)}")
        return tables

    @model_validator(mode="after")
    def _levels_in_order(self) -> AlertRules:
        if self.resolve_probability >= self.fire_probability:
            levels = f"resolve_probability is {self.resolve_probability:g}, fire_probability {self.fire_probability:g}"
            raise ValueError(f"{levels}; resolve_probability must be below fire_probability")
        return self

    @cached_property
    def _by_profile(self) -> Mapping[str, Thresholds]:
        return {str(p): {**default_thresholds(p), **self.profiles.get(str(p), {})} for p in ServerProfile}

    def thresholds_of(self, server_name: str, profile: str) -> Thresholds:
        """Thresholds of one server, by metric; a profile that is not built in has those of generic."""
        of_profile = self._by_profile.get(profile, self._by_profile[ServerProfile.GENERIC])
        return {**of_profile, **self.servers.get(server_name, {})}


def load_alert_rules(path: Path) -> AlertRules:
    """Rules of a TOML file. Raises TomlFileError."""
    return read_toml(path, AlertRules, "alert rules")
