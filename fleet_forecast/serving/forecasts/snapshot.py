"""Forecasts of servers and the snapshot of a fleet that the last cycle left."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from types import MappingProxyType

import numpy as np

from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.histogram import Histogram


@dataclass(frozen=True)
class ModelView:
    """What the numbers of a forecast mean: the model's name, metrics, quantiles and step."""

    model_id: str
    metrics: tuple[str, ...]
    quantiles: tuple[float, ...]
    step_seconds: int

    @classmethod
    def of(cls, engine: Engine) -> ModelView:
        """The view of a loaded model."""
        config = engine.config
        return cls(engine.model_id, tuple(config.targets), tuple(config.quantiles), config.step_seconds)


@dataclass(frozen=True)
class ServerForecast:
    """Forecast of one server.

    origin_seconds: UTC time of the last step used; quantiles: float32 [metric, quantile, horizon step].
    history_steps: measured steps the model was given; rule: what gave the profile, None where nothing matched.
    """

    server_name: str
    model: ModelView
    origin_seconds: int
    made_at_seconds: float
    profile: str
    rule: str | None
    history_steps: int
    quantiles: np.ndarray
    warnings: tuple[str, ...]
    current: tuple[float | None, ...]  # step mean at the origin, per metric of the model

    @property
    def horizon_steps(self) -> int:
        """Length of the forecast."""
        return int(self.quantiles.shape[2])


@dataclass(frozen=True)
class FleetSnapshot:
    """What the last cycle left: forecasts by server name. Replaced as a whole, never changed.

    What is counted over the fleet is counted once, when first asked for.
    """

    forecasts: Mapping[str, ServerForecast] = field(default_factory=lambda: MappingProxyType({}))
    origin_seconds: int | None = None  # last complete step the snapshot knows
    made_at_seconds: float | None = None
    model: ModelView | None = None

    @cached_property
    def origins(self) -> Counter[tuple[int, int]]:
        """Servers by the origin of their forecast and its model's step, in seconds."""
        return Counter((forecast.origin_seconds, forecast.model.step_seconds) for forecast in self.forecasts.values())

    @cached_property
    def profiles(self) -> Counter[str]:
        """Servers by profile."""
        return Counter(forecast.profile for forecast in self.forecasts.values())

    @cached_property
    def unmatched(self) -> list[str]:
        """Names that no rule matches, in their order."""
        return sorted(name for name, forecast in self.forecasts.items() if forecast.rule is None)


@dataclass
class CycleFigures:
    """Counts and durations of the cycles since the start."""

    cycles: int = 0
    skipped: int = 0  # steps that passed while a cycle was still running
    failed: int = 0
    kept_for_bad_output: int = 0  # forecasts not replaced because the new one was not finite
    last_seconds: float = 0.0  # of the last cycle that had something to forecast, and how much
    last_servers: int = 0
    durations: Histogram = field(default_factory=Histogram)  # of the whole fleet's cycles


def _shortest(value: np.float32) -> float | None:
    """A single-precision number as it was sent: 31.32, not 31.31999969; None if it was not measured."""
    return None if math.isnan(value) else float(str(value))


def forecast_servers(
    engine: Engine,
    names: Sequence[str],
    profiles: Sequence[tuple[str, str | None]],
    history: np.ndarray,
    origin_seconds: np.ndarray,
) -> list[ServerForecast | None]:
    """Forecast servers; None stands for one whose forecast was not finite.

    profiles: (profile, rule) per server. history: float32 [server, step, metric of the model], NaN = not measured, the
    last step is the origin. origin_seconds: int64 [server].
    """
    model = ModelView.of(engine)
    chosen = [profile for profile, _ in profiles]
    quantiles = engine.forecast(history, chosen, origin_seconds.astype("datetime64[s]"))
    arranged = np.ascontiguousarray(quantiles.transpose(0, 2, 3, 1))  # (server, metric, quantile, step)
    finite = np.isfinite(arranged).all(axis=(1, 2, 3))
    measured_steps = reduce(np.logical_or, np.moveaxis(~np.isnan(history), 2, 0)).sum(axis=1)
    unknown = set(engine.unknown_profiles(chosen))
    made_at = time.time()
    forecasts: list[ServerForecast | None] = []
    for row, (name, (profile, rule)) in enumerate(zip(names, profiles, strict=True)):
        if not finite[row]:
            forecasts.append(None)
            continue
        last = history[row, -1] if history.shape[1] else np.full(len(model.metrics), np.nan)
        forecasts.append(
            ServerForecast(
                server_name=name,
                model=model,
                origin_seconds=int(origin_seconds[row]),
                made_at_seconds=made_at,
                profile=profile,
                rule=rule,
                history_steps=int(measured_steps[row]),
                quantiles=arranged[row],
                warnings=_warnings(name, profile, rule, profile in unknown, int(measured_steps[row])),
                current=tuple(_shortest(value) for value in last),
            )
        )
    return forecasts


def _warnings(name: str, profile: str, rule: str | None, untrained: bool, history_steps: int) -> tuple[str, ...]:
    warnings = []
    if rule is None:
        warnings.append(
            f"no rule matches the name {name!r}: forecast as generic; "
            "send a profile with the samples, or add a pattern or pin (--profiles)"
        )
    if untrained:
        warnings.append(f"the model was not trained on profile {profile!r}: forecast as a server of unknown profile")
    if history_steps == 0:
        warnings.append("no complete step was measured yet: forecast from the profile alone")
    return tuple(warnings)
