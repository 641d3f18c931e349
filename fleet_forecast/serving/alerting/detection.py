"""The interface of detectors: a probability for each server and metric, and the message of an alert on it.

A new detector is a class with the attributes and methods of `Detector`, and an entry in DETECTORS of book.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from fleet_forecast.serving.alerting.alert import Alert, AlertKey
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.alerting.severity import CurvePoint
from fleet_forecast.serving.forecasts.snapshot import ServerForecast


class Detection(NamedTuple):
    """Result of one detector for one metric of one server.

    probability: that an alert is right, 0 to 1. evidence: returns the text of the message after "SERVER (PROFILE):
    METRIC is at VALUE"; it is called with the forecast and this result, only for alerts that fire.
    """

    server_name: str
    metric: str
    probability: float
    evidence: Callable[[ServerForecast, Detection], str]

    @property
    def key(self) -> AlertKey:
        """The alert it is for."""
        return self.server_name, self.metric


class Detector(Protocol):
    """Detects one kind of problem.

    reason: value of Alert.reason. resolved_text: text of the message after "SERVER (PROFILE): METRIC", when it ends.
    curve: measured false alarms by level, from which the levels of the severities are chosen; empty: the rules'
    probabilities are the levels. rules: replaced between two calls when they are read again.
    """

    reason: str
    resolved_text: str
    rules: AlertRules

    @property
    def curve(self) -> Sequence[CurvePoint]:
        """Read at each update: it may change with the model."""
        ...

    def detect(self, forecasts: Sequence[ServerForecast], firing: Mapping[AlertKey, Alert], /) -> Iterable[Detection]:
        """Results for new forecasts of one model; each server's origins come in order.

        A metric without a result is one that the detector cannot assess now: an alert of its reason is kept.
        firing: the alerts that fire, to be read only.
        """
        ...

    def keep_only(self, server_names: Iterable[str]) -> None:
        """Discard the state of all other servers."""
        ...
