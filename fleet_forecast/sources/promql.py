"""Whether a query is PromQL."""

from __future__ import annotations

from promql_parser import parse

from fleet_forecast.contract.definitions import FleetDefinition
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.sources.prometheus import MIN_WINDOW_SECONDS, WINDOW


def check_queries(fleet: FleetDefinition) -> None:
    """Raises TomlFileError with the first query of the fleet file that is not PromQL, and why."""
    for metric, query in fleet.queries.items():
        try:
            if query:  # an empty one: the metric is not pulled
                parse(query.replace(WINDOW, f"{MIN_WINDOW_SECONDS}s"))
        except ValueError as problem:
            reason = " ".join(str(problem).split())
            raise TomlFileError(
                f"{fleet.source}: metrics.{metric}.query is not PromQL ({reason}); correct it. A dialect such as "
                "MetricsQL is used nevertheless: try it with --probe"
            ) from None
