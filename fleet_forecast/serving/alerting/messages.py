"""Texts of alerts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from fleet_forecast.contract.forecast_spec import MEDIAN_LEVEL
from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.alerting.alert import Alert
from fleet_forecast.serving.alerting.bounds import Limit
from fleet_forecast.serving.alerting.exceedance import CrossingTimes, nearest_level
from fleet_forecast.serving.alerting.peers import PeerGroup
from fleet_forecast.serving.forecasts.snapshot import ServerForecast

NAMED_PEERS = 2
DETECTOR_OFF_TEXT = "is no longer evaluated by the detector of this alert"


def label_of(metric: str) -> str:
    """The metric in messages; one without a label has its name."""
    spec = METRIC_SPECS.get(metric)
    return metric if spec is None else spec.label or metric


def with_unit(value: float, metric: str) -> str:
    """A value with the metric's unit; without one for a metric that the contract does not list."""
    spec = METRIC_SPECS.get(metric)
    return _rounded(value) if spec is None else f"{_rounded(value)} {spec.unit}"


def _rounded(value: float) -> str:
    """Whole numbers; two digits of a smaller value, so that a bound of 0.1 is not shown as 0."""
    return f"{value:.2g}" if 0 < abs(value) < 1 else f"{value:.0f}"


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


def breach_evidence(origin_seconds: int, metric: str, limit: Limit, probability: float, times: CrossingTimes) -> str:
    """Evidence of a threshold that will be crossed."""
    crosses = "falls below" if limit.is_lower else "exceeds"
    text = f" and {crosses} {with_unit(limit.value, metric)} with a probability of {100 * probability:.0f} %"
    for words, seconds in (
        ("expected at", times.expected_seconds),
        ("at the earliest", times.earliest_seconds),
        ("almost surely by", times.latest_seconds),
    ):
        if seconds is not None:
            text += f", {words} {iso(origin_seconds + seconds)}"
    return text + "."


def forecast_basis(forecast: ServerForecast, metric: str, limit: Limit) -> str:
    """Why a breach is expected: the course of the median, and the history and peers on which it rests."""
    model = forecast.model
    median = forecast.quantiles[model.metrics.index(metric), nearest_level(model.quantiles, MEDIAN_LEVEL)]
    step = int(median.argmin() if limit.is_lower else median.argmax())
    at = iso(forecast.origin_seconds + (step + 1) * model.step_seconds)
    hours = forecast.history_steps * model.step_seconds / 3_600
    kind = "lowest" if limit.is_lower else "highest"
    return (
        f"The forecast's median is {kind} at {at}, {with_unit(float(median[step]), metric)}; it is based on "
        f"{hours:.0f} h of own history and {forecast.peers.count} peers."
    )


def context_text(started_seconds: float, peers: str) -> str:
    """The end of each message: since when, and what the peers show."""
    return f" Alert since {iso(started_seconds)}.{peers}"


def peers_text(forecast: ServerForecast, metric: str, group: PeerGroup) -> str:
    """Which servers of the profile do not show the same, and where they are; empty without peers."""
    name = forecast.server_name
    others = len(group.names) - 1
    showing = len(group.showing - {name})
    if others < 1:
        return ""
    kind = f"{others} other {forecast.profile} server{'s' if others > 1 else ''}"
    if showing == others:
        return f" All {kind} show the same." if others > 1 else f" The {kind} shows the same."
    calm = (each for each in group.names if each != name and each not in group.showing)
    examples = ", ".join(islice(calm, NAMED_PEERS)) + (", ..." if others - showing > NAMED_PEERS else "")
    verb = "does" if others - showing == 1 else "do"
    text = f" {others - showing} of {kind} {verb} not show it ({examples})"
    median = "" if group.median is None else f"; the profile's median is {with_unit(group.median, metric)}"
    return f"{text}{median}."


def anomaly_evidence(metric: str, past_band: Sequence[float] | None, others: Iterable[str], probability: float) -> str:
    """Evidence of a deviation from the past forecast.

    past_band: the quantiles 0.1 and 0.9 forecast an hour ago, None if there are none. others: further metrics that
    deviate.
    """
    text = ""
    if past_band is not None:
        low, high = past_band
        text += f" where {_rounded(low)} to {with_unit(high, metric)} was forecast an hour ago"
    labels = [label_of(other) for other in others]
    if labels:
        text += f", {' and '.join(labels)} depart{'s' if len(labels) == 1 else ''} with it"
    return text + f"; with a probability of {100 * probability:.0f} % the server is in trouble."
