"""The text formats of /metrics: Prometheus 0.0.4 and OpenMetrics 1.0.0."""

from __future__ import annotations

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"


def header(name: str, kind: str, description: str) -> list[str]:
    """The lines before a family's samples."""
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]


def label_value(text: str) -> str:
    """A text as the value of a label, between quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header asks for OpenMetrics."""
    return "application/openmetrics-text" in accept
