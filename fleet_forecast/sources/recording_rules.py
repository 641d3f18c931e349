"""Recording rules that compute the contract's metrics in a Prometheus, as the series that it writes to the daemon.

The expressions are the queries that the daemon pulls with.
"""

from __future__ import annotations

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.sources.prometheus import WINDOW, QuerySet

INTERVAL = "1m"
RULE_WINDOW = "2m"  # rate() needs two samples within the window; scrapes are 15 s to 1 min apart


def series_name(metric: str) -> str:
    """The name of a metric's series."""
    return f"fleet:{metric}"


def recording_rules(queries: QuerySet) -> str:
    """The rules of all metrics that have a query, as YAML of a rule file."""
    lines = ["groups:", "  - name: fleet-metrics", f"    interval: {INTERVAL}", "    rules:"]
    for metric in METRICS:
        if metric in queries.queries:
            expression = queries.queries[metric].replace(WINDOW, RULE_WINDOW)
            lines += [f"      - record: {series_name(metric)}", "        expr: >-", f"          {expression}"]
    return "\n".join(lines) + "\n"
