"""Forecasts as JSON: what the API says, from the forecast's one array."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from starlette.exceptions import HTTPException

from fleet_forecast.contract.specs import METRIC_SPECS
from serving.cycle import ServerForecast
from serving.records import Rejection


@dataclass(frozen=True)
class Selection:
    """Which part of a forecast is wanted; None stands for all. horizon_seconds: distances from the origin."""

    metrics: tuple[str, ...] | None = None
    quantiles: tuple[float, ...] | None = None
    horizon_seconds: tuple[int, ...] | None = None


EVERYTHING = Selection()
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def iso(seconds: float) -> str:
    """UTC time as 2026-11-23T10:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def forecast_document(
    forecast: ServerForecast, age_seconds: float, stale: bool, selection: Selection = EVERYTHING
) -> dict[str, Any]:
    """One server's forecast, ready for orjson with OPT_SERIALIZE_NUMPY."""
    model = forecast.model
    steps = selected_steps(forecast, selection)
    quantiles = [q for q in model.quantiles if selection.quantiles is None or q in selection.quantiles]
    metrics = {}
    for index, metric in enumerate(model.metrics):
        if selection.metrics is None or metric in selection.metrics:
            rows = forecast.quantiles[index]  # (quantile, step)
            metrics[metric] = {
                "unit": METRIC_SPECS[metric].unit,
                "current": forecast.current[index],
                **{f"q{q:g}": _chosen(rows[model.quantiles.index(q)], steps, forecast) for q in quantiles},
            }
    return {
        "server_name": forecast.server_name,
        "profile": forecast.profile,
        "profile_rule": forecast.rule,
        "model": model.model_id,
        "origin": iso(forecast.origin_seconds),
        "made_at": iso(forecast.made_at_seconds),
        "age_seconds": round(age_seconds, 1),
        "stale": stale,
        "cold_start": forecast.history_steps == 0,
        "history_steps": forecast.history_steps,
        "step_seconds": model.step_seconds,
        "steps": steps,
        "timestamps": [iso(forecast.origin_seconds + step * model.step_seconds) for step in steps],
        "warnings": forecast.warnings,
        "metrics": metrics,
    }


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


def _chosen(row: np.ndarray, steps: Sequence[int], forecast: ServerForecast) -> np.ndarray:
    if len(steps) == forecast.horizon_steps:
        return row
    return row[np.array(steps, dtype=np.int64) - 1]


def to_json(document: Any) -> bytes:
    """JSON bytes; float32 arrays are written with the digits that tell them apart."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def joined_list(head: dict[str, Any], name: str, items: Iterable[bytes]) -> bytes:
    """JSON object of `head` and a list of ready-made JSON items under `name`."""
    opening = to_json(head)[:-1]
    return opening + (b"," if head else b"") + to_json(name) + b":[" + b",".join(items) + b"]}"


def rejection_documents(rejected: Iterable[Rejection]) -> list[dict[str, Any]]:
    """Rejections as the API says them."""
    return [rejection._asdict() for rejection in rejected]
