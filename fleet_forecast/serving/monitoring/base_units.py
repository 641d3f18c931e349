"""Names and values of metrics in the base units that Prometheus recommends: ratios, bytes, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from fleet_forecast.contract.definitions import METRIC_SPECS, MetricSpec, per_fleet


class BaseUnit(NamedTuple):
    """Name of a metric in base units, and the factor from the contract's unit."""

    name: str
    factor: float


class UnitRule(NamedTuple):
    """How metrics of one unit are renamed: `suffix` of the contract's name becomes `base_suffix`."""

    suffix: str
    base_suffix: str
    factor: float


UNIT_RULES: Mapping[str, UnitRule] = MappingProxyType(
    {
        "%": UnitRule("_pct", "_ratio", 0.01),
        "MB/s": UnitRule("_mb_s", "_bytes_per_second", 1e6),
        "MB": UnitRule("_mb", "_bytes", 1e6),
        "ms": UnitRule("_ms", "_seconds", 1e-3),
        "s": UnitRule("_s", "_seconds", 1.0),
        "count": UnitRule("", "", 1.0),
        "1/s": UnitRule("_per_s", "_per_second", 1.0),
    }
)


def base_unit(spec: MetricSpec) -> BaseUnit:
    """The metric in base units; one of a unit that UNIT_RULES does not list keeps its name and values."""
    rule = UNIT_RULES.get(spec.unit)
    if rule is None:
        return BaseUnit(spec.name, 1.0)
    return BaseUnit(spec.name.removesuffix(rule.suffix) + rule.base_suffix, rule.factor)


@per_fleet
def exposed_as(metric: str) -> BaseUnit:
    """A metric in base units; one that the fleet does not have keeps its name and values."""
    spec = METRIC_SPECS.get(metric)
    return BaseUnit(metric, 1.0) if spec is None else base_unit(spec)
