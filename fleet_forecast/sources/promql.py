"""Whether a query can be one of its dialect."""

from __future__ import annotations

from promql_parser import parse

from fleet_forecast.contract.definitions import FleetDefinition
from fleet_forecast.contract.toml_file import TomlFileError
from fleet_forecast.sources.label_matchers import tokens
from fleet_forecast.sources.prometheus import MIN_WINDOW_SECONDS, WINDOW

CLOSING = {"(": ")", "[": "]", "{": "}"}
QUOTES = "\"'`"


def check_queries(fleet: FleetDefinition) -> None:
    """Raises TomlFileError with the first query of the fleet file that is not of its dialect, and why.

    PromQL is parsed. No parser of MetricsQL is installed: its brackets and quotes are checked, as in every dialect.
    """
    for metric, query in fleet.queries.items():
        whole = query.replace(WINDOW, f"{MIN_WINDOW_SECONDS}s")
        problem = _open_bracket(whole) or (_not_promql(whole) if fleet.dialect == "promql" else "")
        if query and problem:  # an empty one: the metric is not pulled
            raise TomlFileError(f"{fleet.source}: metrics.{metric}.query is {query!r}: {problem}")


def _not_promql(query: str) -> str:
    try:
        parse(query)
    except ValueError as problem:
        reason = " ".join(str(problem).split())
        remedy = "correct it; if the database is VictoriaMetrics, write [prometheus] dialect = 'metricsql'"
        return f"it is not PromQL ({reason}); {remedy}"
    return ""


def _open_bracket(query: str) -> str:
    """The first bracket or quote without its partner, with the remedy; empty if there is none."""
    expected: list[str] = []
    for kind, text in tokens(query):
        if kind == "other" and text in CLOSING:
            expected.append(CLOSING[text])
        elif kind == "other" and text in QUOTES:
            return f"the quote {text} is not closed; close it"
        elif kind == "other" and text in CLOSING.values() and (not expected or expected.pop() != text):
            return f"the bracket {text} closes none; remove it, or open it before"
    return f"the bracket {expected[-1]} is missing; add it" if expected else ""
