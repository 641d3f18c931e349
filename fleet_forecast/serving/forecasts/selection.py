"""Which part of a forecast a client asks for: metrics, quantiles, distances."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException

from fleet_forecast.serving.forecasts.snapshot import ServerForecast


@dataclass(frozen=True)
class Selection:
    """Which part of a forecast is wanted; None stands for all. horizon_seconds: distances from the origin."""

    metrics: tuple[str, ...] | None = None
    quantiles: tuple[float, ...] | None = None
    horizon_seconds: tuple[int, ...] | None = None


EVERYTHING = Selection()
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def selected_steps(forecast: ServerForecast, selection: Selection) -> list[int]:
    """Horizon steps (1 is the first after the origin) that are wanted; distances are rounded up to whole steps."""
    if selection.horizon_seconds is None:
        return list(range(1, forecast.horizon_steps + 1))
    wanted = {-(-seconds // forecast.model.step_seconds) for seconds in selection.horizon_seconds}
    return sorted(step for step in wanted if 1 <= step <= forecast.horizon_steps)


def refuse_beyond(forecast: ServerForecast, selection: Selection) -> None:
    """Raises 422 naming a distance asked for that the forecast does not reach, or that is none."""
    reach_seconds = forecast.horizon_steps * forecast.model.step_seconds
    for seconds in selection.horizon_seconds or ():
        if not 0 < seconds <= reach_seconds:
            reach = f"from its first step to {reach_seconds // 60}m"
            raise HTTPException(422, f"horizon: {seconds // 60}m is asked for; the forecast reaches {reach}")


def horizon_seconds(text: str) -> int:
    """A distance as clients write it: 15m -> 900; raises 422 naming the parameter if it is none."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNIT_SECONDS or not number.isascii() or not number.isdigit() or not 0 < len(number) < 7:
        raise HTTPException(422, f"horizon: {text[:20]!r} is no distance; write 15m, 1h or 8h")
    return int(number) * _UNIT_SECONDS[unit]
