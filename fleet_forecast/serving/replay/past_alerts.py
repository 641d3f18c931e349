"""Runs the daemon's alert book over replayed cycles, and records alerts, firing servers and probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.alerting.alert import Alert, AlertKey
from fleet_forecast.serving.alerting.book import AlertBook, detectors_of
from fleet_forecast.serving.alerting.detection import Detection, Detector
from fleet_forecast.serving.alerting.rules import AlertRules
from fleet_forecast.serving.alerting.severity import SEVERITIES, CurvePoint
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.replay.cycles import replay_cycles

DROP_STEPS = 12  # without a sample: the default of the daemon's setting drop_steps


@dataclass(frozen=True)
class PastAlerts:
    """The results of the alert book.

    seconds: [step] when each step was complete and its alerts were evaluated. alerts: in the order of their start,
    with the message they began with; ended_seconds None: it still fired at the end. firing: by severity, boolean
    [server, step], whether any alert of at least this severity fired, without silenced ones. probabilities: by reason,
    float32 [server, step, metric], NaN without a result. curve_levels: by reason, of the detectors with a measured
    curve.
    """

    seconds: np.ndarray
    alerts: tuple[Alert, ...]
    firing: Mapping[str, np.ndarray]
    probabilities: Mapping[str, np.ndarray]
    curve_levels: Mapping[str, Sequence[float]]


class _Recorded:
    """A detector whose probabilities are recorded: float32 [server, step, metric]."""

    def __init__(self, detector: Detector, rows: Mapping[str, int], columns: Mapping[str, int], steps: int) -> None:
        self.reason, self.resolved_text, self.rules = detector.reason, detector.resolved_text, detector.rules
        self.probabilities = np.full((len(rows), steps, len(columns)), np.nan, dtype=np.float32)
        self.step = 0  # position of the running cycle
        self._detector, self._rows, self._columns = detector, rows, columns

    @property
    def curve(self) -> Sequence[CurvePoint]:
        """The reason of the detector."""
        return self._detector.curve

    def detect(self, forecasts: Sequence[ServerForecast], firing: Mapping[AlertKey, Alert], /) -> Iterator[Detection]:
        """The detector's results."""
        for detection in self._detector.detect(forecasts, firing):
            place = self._rows[detection.server_name], self.step, self._columns[detection.metric]
            self.probabilities[place] = detection.probability
            yield detection

    def keep_only(self, server_names: Iterable[str]) -> None:
        """Call the detector's."""
        self._detector.keep_only(server_names)


def past_alerts(engine: Engine, grid: FleetGrid, steps: range, rules: AlertRules) -> PastAlerts:
    """Replay the steps of a grid with the daemon's code.

    Servers that were not measured for DROP_STEPS leave, as in the daemon; then their alerts end.
    """
    rows = {name: row for row, name in enumerate(grid.servers)}
    columns = {metric: column for column, metric in enumerate(grid.metrics)}
    detectors = [_Recorded(each, rows, columns, len(steps)) for each in detectors_of(rules)]
    book = AlertBook(rules, detectors)
    seconds = _complete_seconds(grid, steps)
    silenced = _silenced(grid, rules, seconds)
    firing = {severity: np.zeros((len(rows), len(steps)), dtype=bool) for severity in SEVERITIES}
    begun: dict[AlertKey, Alert] = {}
    alerts: list[Alert] = []
    last_step = np.full(len(rows), -1)
    for position, (_, forecasts) in enumerate(replay_cycles(engine, grid, steps)):
        for detector in detectors:
            detector.step = position
        now = float(seconds[position])
        changed = book.update(forecasts, now)
        last_step[[rows[forecast.server_name] for forecast in forecasts]] = position
        gone = np.flatnonzero((last_step >= 0) & (last_step == position - DROP_STEPS))
        if len(gone):
            kept = np.flatnonzero((last_step >= 0) & (last_step > position - DROP_STEPS))
            changed += book.keep_only([grid.servers[row] for row in kept], now)
        alerts += _ended(changed, begun)
        for alert in book.firing.values():
            for severity in SEVERITIES[SEVERITIES.index(alert.severity) :]:
                firing[severity][rows[alert.server_name], position] = True
    alerts += [_with_first_message(alert, begun) for alert in book.firing.values()]
    alerts.sort(key=lambda alert: (alert.started_seconds, alert.key))
    return PastAlerts(
        seconds,
        tuple(alerts),
        {severity: on & ~silenced for severity, on in firing.items()},
        {detector.reason: detector.probabilities for detector in detectors},
        {detector.reason: [point.level for point in detector.curve] for detector in detectors if detector.curve},
    )


def _complete_seconds(grid: FleetGrid, steps: range) -> np.ndarray:
    """When each step is complete: float [step], seconds since 1970."""
    starts = grid.timestamps()[steps.start : steps.stop].astype("datetime64[s]").astype(np.int64)
    return starts.astype(np.float64) + grid.step_seconds


def _silenced(grid: FleetGrid, rules: AlertRules, seconds: np.ndarray) -> np.ndarray:
    """Whether a silence of the rules covers a server: boolean [server, step]."""
    covered = np.zeros((len(grid.servers), len(seconds)), dtype=bool)
    for silence in rules.silences:
        rows = [silence.concerns(*server) for server in zip(grid.servers, grid.profiles, strict=True)]
        covered[rows] |= silence.covers(seconds)
    return covered


def _ended(changed: Iterable[Alert], begun: dict[AlertKey, Alert]) -> Iterator[Alert]:
    """The alerts that ended, with their first message; remembers those that began."""
    for alert in changed:
        if alert.ended_seconds is None:
            begun.setdefault(alert.key, alert)
        else:
            yield _with_first_message(alert, begun)
            begun.pop(alert.key, None)


def _with_first_message(alert: Alert, begun: Mapping[AlertKey, Alert]) -> Alert:
    first = begun[alert.key]
    return replace(alert, sentence=first.sentence, probability=first.probability, current=first.current)
