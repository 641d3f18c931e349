"""The part of a forecast that a client requests: metrics, quantile levels, horizons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class SelectionError(ValueError):
    """The selection contains something that is not forecast; the message names parameter, value and remedy."""


@dataclass(frozen=True)
class Selection:
    """Metrics, quantile levels and horizons (seconds after the origin) to return; None selects all."""

    metrics: tuple[str, ...] | None = None
    quantiles: tuple[float, ...] | None = None
    horizon_seconds: tuple[int, ...] | None = None


EVERYTHING = Selection()


def parse_selection(
    model: ModelView | None,
    metrics: Sequence[str] | None = None,
    quantiles: Sequence[float] | None = None,
    horizons: Sequence[str] | None = None,
) -> Selection:
    """Selection from query parameters, checked against what the model forecasts.

    model: None before the first forecast; then metrics are checked against the data contract.
    Raises SelectionError.
    """
    forecast_metrics = METRICS if model is None else model.metrics
    for metric in metrics or ():
        if metric not in forecast_metrics:
            raise SelectionError(f"metric: {metric[:100]!r} is not forecast; use {', '.join(forecast_metrics)}")
    for quantile in quantiles or ():
        if model is not None and quantile not in model.quantiles:
            levels = ", ".join(map(str, model.quantiles))
            raise SelectionError(f"quantile: {quantile} is not forecast; use {levels}")
    return Selection(
        None if metrics is None else tuple(metrics),
        None if quantiles is None else tuple(quantiles),
        None if horizons is None else tuple(horizon_seconds(text) for text in horizons),
    )


def horizon_seconds(text: str) -> int:
    """Seconds of a horizon such as 15m, 1h or 1d. Raises SelectionError."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNIT_SECONDS or not number.isascii() or not number.isdigit() or not 0 < len(number) < 7:
        raise SelectionError(f"horizon: {text[:20]!r} is not a duration; write 15m, 1h or 8h")
    return int(number) * _UNIT_SECONDS[unit]


def check_reach(forecast: ServerForecast, selection: Selection) -> None:
    """Raise SelectionError if a selected horizon is zero, after the end of the forecast, or not whole steps."""
    step_seconds = forecast.model.step_seconds
    reach_seconds = forecast.horizon_steps * step_seconds
    for seconds in selection.horizon_seconds or ():
        if not 0 < seconds <= reach_seconds:
            reach = f"from its first step to {reach_seconds // 60}m"
            raise SelectionError(f"horizon: {_duration(seconds)} is asked for; the forecast reaches {reach}")
        if seconds % step_seconds:
            before = seconds // step_seconds * step_seconds
            nearest = " or ".join(_duration(each) for each in (before, before + step_seconds) if each)
            asked = f"{_duration(seconds)} is not a whole number of the model's steps of {_duration(step_seconds)}"
            raise SelectionError(f"horizon: {asked}; use {nearest}")


def _duration(seconds: int) -> str:
    """As horizon_seconds reads it."""
    return f"{seconds}s" if seconds % 60 else f"{seconds // 60}m"


def check_measured(forecast: ServerForecast, metric: str) -> None:
    """Raise SelectionError if the metric is not forecast for this server, because it is not measured."""
    if metric in forecast.not_measured:
        raise SelectionError(
            f"metric: {metric} is not forecast for {forecast.server_name!r}: neither it nor its profile "
            f"{forecast.profile} measures it; use {', '.join(forecast.metrics)}"
        )


def selected_steps(forecast: ServerForecast, selection: Selection) -> list[int]:
    """Selected horizon steps, in order; step 1 follows the origin."""
    if selection.horizon_seconds is None:
        return list(range(1, forecast.horizon_steps + 1))
    steps = {seconds // forecast.model.step_seconds for seconds in selection.horizon_seconds}
    return sorted(step for step in steps if 1 <= step <= forecast.horizon_steps)
