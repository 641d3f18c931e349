"""The servers of an alert's profile at the same time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from fleet_forecast.serving.forecasts.snapshot import ServerForecast

Shows = Callable[[str, str, str], bool]  # server name, metric, reason -> whether it shows what an alert is about


class PeerGroup(NamedTuple):
    """The servers of one profile: all names, those that show the same, and the median of their present values."""

    names: tuple[str, ...]
    showing: frozenset[str]
    median: float | None


class PeerGroups:
    """Groups of one update of the alert book; each is made once, when an alert needs it."""

    def __init__(self, forecasts: Iterable[ServerForecast], shows: Shows) -> None:
        self._of_profile: dict[str, list[ServerForecast]] = defaultdict(list)
        for forecast in forecasts:
            self._of_profile[forecast.profile].append(forecast)
        self._shows = shows
        self._groups: dict[tuple[str, str, str], PeerGroup] = {}

    def of(self, profile: str, metric: str, reason: str) -> PeerGroup:
        """The group of a profile, for alerts of one reason on one metric."""
        key = profile, metric, reason
        if key not in self._groups:
            members = self._of_profile[profile]
            names = tuple(forecast.server_name for forecast in members)
            showing = frozenset(name for name in names if self._shows(name, metric, reason))
            values = [_current(forecast, metric) for forecast in members]
            measured = [value for value in values if value is not None]
            self._groups[key] = PeerGroup(names, showing, float(np.median(measured)) if measured else None)
        return self._groups[key]


def _current(forecast: ServerForecast, metric: str) -> float | None:
    metrics = forecast.model.metrics
    return forecast.current[metrics.index(metric)] if metric in metrics else None
