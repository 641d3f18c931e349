"""Forecasts of a history sent with a request; nothing is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.features.peers import Peers
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import served_metrics
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.server_forecasts import ServersToForecast, forecast_servers
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.storage.samples import Sample
from fleet_forecast.step_means import step_means
from server_profiles import ProfileRules, profile_of

PeersOf = Callable[[Engine, Sequence[str], Sequence[str], np.ndarray], Peers | None]
MAX_SPAN_DAYS = 366
MS_PER_DAY = 86_400_000


class HistorySpanError(ValueError):
    """The newest samples of a request's servers are too far apart to be forecast together."""


def check_span(samples: Sequence[Sample]) -> None:
    """Raise HistorySpanError if the servers' newest samples are more than MAX_SPAN_DAYS apart.

    The engine computes the calendar from the first origin to the last one.
    """
    newest: dict[str, int] = {}
    for sample in samples:
        newest[sample.server_name] = max(sample.timestamp_ms, newest.get(sample.server_name, sample.timestamp_ms))
    first, last = min(newest.items(), key=_time_of), max(newest.items(), key=_time_of)
    if last[1] - first[1] > MAX_SPAN_DAYS * MS_PER_DAY:
        ends = f"{first[0]!r} ends at {iso(first[1] / 1000)}, {last[0]!r} at {iso(last[1] / 1000)}"
        raise HistorySpanError(
            f"timestamp: the servers' newest samples are more than {MAX_SPAN_DAYS} days apart ({ends}); "
            "send servers of different times in separate requests"
        )


def _time_of(server: tuple[str, int]) -> int:
    return server[1]


def forecast_samples(
    engine: Engine,
    samples: list[Sample],
    rules: ProfileRules,
    peers_of: PeersOf | None = None,
    metrics: Sequence[str] = METRICS,
) -> list[ServerForecast | None]:
    """Forecast each server of some samples from these and its peers, in the order of the names.

    peers_of: the peers by model, names, profiles and last steps (none). metrics: the order of the samples' values. The
    origin of a server is the step of its newest sample. None in place of a forecast that is not finite.
    """
    step_seconds = engine.config.step_seconds
    histories = [_ServerHistory(own, step_seconds) for own in _by_server(samples)]
    origins = np.array([history.last_step for history in histories])
    longest = max(history.last_step - history.first_step + 1 for history in histories)
    steps = min(engine.config.history_steps, longest)
    targets, served = engine.config.targets, served_metrics(engine.config)
    window = np.full((len(histories), steps, len(targets)), np.nan, dtype=np.float32)
    columns = [metrics.index(metric) for metric in served]
    window[:, :, [targets.index(metric) for metric in served]] = [h.means(steps)[:, columns] for h in histories]
    names = [history.name for history in histories]
    profiles = [profile_of(history.name, history.newest_profile, rules) for history in histories]
    peers = None if peers_of is None else peers_of(engine, names, [profile for profile, _ in profiles], origins)
    return forecast_servers(engine, ServersToForecast(names, profiles, window, origins * step_seconds, peers))


class _ServerHistory:
    """The samples of one server, at most one of each time."""

    def __init__(self, samples: list[Sample], step_seconds: int) -> None:
        self.name = samples[0].server_name
        self._samples = samples
        self._steps = np.array([sample.timestamp_ms // (step_seconds * 1000) for sample in samples])
        self.first_step, self.last_step = int(self._steps.min()), int(self._steps.max())

    @property
    def newest_profile(self) -> str | None:
        """The profile of the newest sample that has one."""
        newest_first = sorted(self._samples, key=lambda sample: -sample.timestamp_ms)
        return next((sample.profile for sample in newest_first if sample.profile is not None), None)

    def means(self, steps: int) -> np.ndarray:
        """float32 [steps, metric]: the step means of the newest `steps` steps, NaN = not measured."""
        values = np.array([sample.values for sample in self._samples], dtype=np.float64)  # None becomes NaN
        column = self._steps - (self.last_step - steps + 1)
        inside = column >= 0
        return step_means(column[inside], values[inside], steps)


def _by_server(samples: list[Sample]) -> list[list[Sample]]:
    """Lists of samples by server, in the order of the names.

    Samples of one server and time are merged as the store merges them: the last value sent of each metric counts.
    """
    merged: dict[tuple[str, int], Sample] = {}
    for sample in samples:
        before = merged.get((sample.server_name, sample.timestamp_ms), sample)
        values = tuple(old if new is None else new for new, old in zip(sample.values, before.values, strict=True))
        merged[sample.server_name, sample.timestamp_ms] = sample._replace(
            values=values, profile=sample.profile or before.profile
        )
    by_server: dict[str, list[Sample]] = {}
    for sample in merged.values():
        by_server.setdefault(sample.server_name, []).append(sample)
    return [by_server[name] for name in sorted(by_server)]
