"""Forecasts of some servers, made from the engine's one array."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import reduce

import numpy as np

from fleet_forecast.inference.engine import Engine
from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast


def forecast_servers(
    engine: Engine,
    names: Sequence[str],
    profiles: Sequence[tuple[str, str | None]],
    history: np.ndarray,
    origin_seconds: np.ndarray,
) -> list[ServerForecast | None]:
    """Forecast servers; None in place of a forecast that is not finite.

    profiles: (profile, rule) per server. history: float32 [server, step, metric of the model], NaN = not measured, the
    last step is the origin. origin_seconds: int64 [server].
    """
    model = ModelView.of(engine)
    chosen = [profile for profile, _ in profiles]
    quantiles = engine.forecast(history, chosen, origin_seconds.astype("datetime64[s]"))
    arranged = np.ascontiguousarray(quantiles.transpose(0, 2, 3, 1))  # (server, metric, quantile, step)
    finite = np.isfinite(arranged).all(axis=(1, 2, 3))
    measured_steps = reduce(np.logical_or, np.moveaxis(~np.isnan(history), 2, 0)).sum(axis=1)
    untrained = set(engine.unknown_profiles(chosen))
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
                warnings=_warnings(name, profile, rule, profile in untrained, int(measured_steps[row])),
                current=tuple(_shortest(value) for value in last),
            )
        )
    return forecasts


def _shortest(value: np.float32) -> float | None:
    """A single-precision number with its shortest digits: 31.32, not 31.31999969; None if not measured."""
    return None if math.isnan(value) else float(str(value))


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
