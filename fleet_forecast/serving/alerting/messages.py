"""Texts of alerts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.alert import Alert
from fleet_forecast.serving.alerting.exceedance import CrossingTimes
from fleet_forecast.serving.forecasts.snapshot import ServerForecast

DETECTOR_OFF_TEXT = "is no longer evaluated by the detector of this alert"


def label_of(metric: str) -> str:
    """The metric in messages; one without a label has its name."""
    spec = METRIC_SPECS.get(metric)
    return metric if spec is None else spec.label or metric


def with_unit(value: float, metric: str) -> str:
    """A value with the metric's unit; without one for a metric that the contract does not list."""
    spec = METRIC_SPECS.get(metric)
    return f"{value:.0f}" if spec is None else f"{value:.0f} {spec.unit}"


def firing_text(forecast: ServerForecast, metric: str, evidence: str) -> str:
    """The message of an alert that fires: the server, the metric's present value, and the detector's evidence."""
    current = forecast.current[forecast.model.metrics.index(metric)]
    value = "was not measured lately" if current is None else f"is at {with_unit(current, metric)}"
    return f"{forecast.server_name} ({forecast.profile}): {label_of(metric)} {value}{evidence}"


def resolved_text(alert: Alert, ended: str) -> str:
    """The message of an alert that ended; `ended` is the detector's text."""
    return f"{alert.server_name} ({alert.profile}): {label_of(alert.metric)} {ended}."


def silent_text(alert: Alert) -> str:
    """The message of an alert whose server left the snapshot."""
    return f"{alert.server_name} ({alert.profile}) fell silent; the alert on {label_of(alert.metric)} ends."


def breach_evidence(
    origin_seconds: int, metric: str, threshold: float, probability: float, times: CrossingTimes
) -> str:
    """Evidence of a threshold that will be exceeded."""
    text = f" and exceeds {with_unit(threshold, metric)} with a probability of {100 * probability:.0f} %"
    for words, seconds in (
        ("expected at", times.expected_seconds),
        ("at the earliest", times.earliest_seconds),
        ("almost surely by", times.latest_seconds),
    ):
        if seconds is not None:
            text += f", {words} {iso(origin_seconds + seconds)}"
    return text + "."


def anomaly_evidence(metric: str, past_band: Sequence[float] | None, others: Iterable[str], probability: float) -> str:
    """Evidence of a deviation from the past forecast.

    past_band: the quantiles 0.1 and 0.9 forecast an hour ago, None if there are none. others: further metrics that
    deviate.
    """
    text = ""
    if past_band is not None:
        low, high = past_band
        text += f" where {low:.0f} to {with_unit(high, metric)} was forecast an hour ago"
    labels = [label_of(other) for other in others]
    if labels:
        text += f", {' and '.join(labels)} depart{'s' if len(labels) == 1 else ''} with it"
    return text + f"; with a probability of {100 * probability:.0f} % the server is in trouble."
