"""Forecasts of a history sent with a request; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fleet_forecast.contract.profile_rules import profile_of
from fleet_forecast.contract.specs import METRICS
from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.forecasts.snapshot import ServerForecast, forecast_servers
from fleet_forecast.serving.storage.samples import Sample
from server_profiles import ProfileRules


def forecast_samples(engine: Engine, samples: list[Sample], rules: ProfileRules) -> list[ServerForecast | None]:
    """Forecast each server of some samples from these alone; a server's origin is the step of its newest sample."""
    step_seconds, length = engine.config.step_seconds, engine.config.history_steps
    columns = [METRICS.index(metric) for metric in engine.config.targets]
    by_server: dict[str, list[Sample]] = {}
    for sample in _one_a_time(samples):
        by_server.setdefault(sample.server_name, []).append(sample)
    names = sorted(by_server)
    origin_steps = np.array([max(s.timestamp_ms for s in by_server[name]) // (step_seconds * 1000) for name in names])
    first_steps = [min(s.timestamp_ms for s in by_server[name]) // (step_seconds * 1000) for name in names]
    length = min(length, max(int(origin) - first + 1 for origin, first in zip(origin_steps, first_steps, strict=True)))
    history = np.full((len(names), length, len(columns)), np.nan, dtype=np.float32)
    profiles = []
    for row, name in enumerate(names):
        own = by_server[name]
        history[row] = _step_means(own, int(origin_steps[row]), length, step_seconds)[:, columns]
        sent = next((s.profile for s in sorted(own, key=lambda s: -s.timestamp_ms) if s.profile is not None), None)
        profiles.append(profile_of(name, sent, rules))
    return forecast_servers(engine, names, profiles, history, origin_steps * step_seconds)


def _one_a_time(samples: list[Sample]) -> Iterable[Sample]:
    """Samples of one server and time as one, as the history keeps them: of each metric the last value that was sent."""
    merged: dict[tuple[str, int], Sample] = {}
    for sample in samples:
        before = merged.get((sample.server_name, sample.timestamp_ms), sample)
        values = tuple(old if new is None else new for new, old in zip(sample.values, before.values, strict=True))
        merged[sample.server_name, sample.timestamp_ms] = sample._replace(
            values=values, profile=sample.profile or before.profile
        )
    return merged.values()


def _step_means(samples: list[Sample], origin_step: int, length: int, step_seconds: int) -> np.ndarray:
    """float64 [length, METRICS]: means of one server's samples on the steps up to `origin_step`."""
    values = np.array([sample.values for sample in samples], dtype=np.float64)  # None becomes NaN
    column = np.array([s.timestamp_ms // (step_seconds * 1000) for s in samples]) - (origin_step - length + 1)
    inside = column >= 0
    values, column = values[inside], column[inside]
    measured = ~np.isnan(values)
    total, count = np.zeros((length, len(METRICS))), np.zeros((length, len(METRICS)))
    np.add.at(total, column, np.where(measured, values, 0.0))
    np.add.at(count, column, measured)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
