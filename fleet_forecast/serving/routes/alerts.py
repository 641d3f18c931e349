"""Firing and recent alerts, their numbers by week, and the most probable breaches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from fleet_forecast.contract.forecast_spec import report_horizons
from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.serving.alerting.alert import Alert, as_document
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.forecasts.selection import SelectionError
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    INVALID_PARAMETER,
    RunningDaemon,
    UtcTime,
    json_response,
)

LEAST_PROBABILITY = 0.005  # lower risks are not listed

router = APIRouter(tags=["alerts"])


class AlertInfo(BaseModel):
    """One alert. `probability` is that of the event that `reason` names.

    breach: the metric crosses its threshold. departure: the server deviates from its forecast.
    """

    state: Literal["firing", "resolved"]
    silenced: Annotated[bool, Field(description="a silence covers the server now: the alert is not delivered")]
    severity: Literal["page", "watch"]
    highest_severity: Annotated[Literal["page", "watch"], Field(description="that the alert has reached")]
    server_name: str
    profile: str
    metric: str
    unit: Annotated[str, Field(description="of the metric; empty for one that the fleet no longer has")]
    threshold: float | None
    below: Annotated[bool, Field(description="the threshold is a lower bound")]
    probability: float
    current: float | None
    sentence: str
    reason: Annotated[str, Field(description="breach, departure, or the reason of a further detector")]
    started_at: UtcTime | None
    ended_at: UtcTime | None
    expected_at: Annotated[UtcTime | None, Field(description="most probable time of the breach")]
    earliest_at: UtcTime | None
    latest_at: UtcTime | None
    crossed_at: Annotated[UtcTime | None, Field(description="first measured value beyond the threshold")]
    lead_minutes: Annotated[float | None, Field(description="from started_at to crossed_at; null without a crossing")]


class AlertsQuery(BaseModel):
    """The alerts of one page."""

    state: Annotated[
        Literal["firing", "silenced", "recent"],
        Field(description="firing; silenced: of these the silenced ones; recent: those that ended, the newest first"),
    ] = "firing"
    server: Annotated[list[str] | None, Field(description="only these servers")] = None
    profile: Annotated[list[str] | None, Field(description="only these profiles")] = None
    limit: Annotated[int, Field(ge=1, le=1_000, description="alerts in one response")] = 1_000
    after: Annotated[str, Field(description="`next` of the previous page")] = ""


class AlertsResponse(BaseModel):
    """One page of alerts: firing ones by probability, recent ones by their end."""

    alerts: list[AlertInfo]
    next: Annotated[str | None, Field(description="`after` of the following page; null on the last one")]


class Risk(BaseModel):
    """The probability that one metric of one server crosses its threshold within the look-ahead."""

    server_name: str
    profile: str
    metric: str
    unit: str
    probability: float
    current: float | None
    threshold: Annotated[float | None, Field(description="upper bound; null if the metric has none")]
    below: Annotated[float | None, Field(description="lower bound; null if the metric has none")]
    by_horizon: Annotated[dict[str, float], Field(description="probability by horizon, such as 15m")]


class RisksResponse(BaseModel):
    """Risks, the highest first."""

    risks: list[Risk]


@router.get("/alerts/active", include_in_schema=False)
@router.get(
    "/api/v1/alerts",
    summary="Firing or recent alerts",
    response_model=AlertsResponse,
    response_description="firing alerts, the most probable first; or recent ones, the last to end first",
    responses={**ACCESS_REFUSALS, 422: INVALID_PARAMETER},
)
async def alerts(daemon: RunningDaemon, query: Annotated[AlertsQuery, Query()]) -> Response:
    async with daemon.alerts_page:  # further threads would make the event loop wait
        known = daemon.alert_record.recent if query.state == "recent" else daemon.alerts.firing.values()
        return await asyncio.to_thread(_alerts_page, list(known), query, daemon.outbox.silenced_now())


def _alerts_page(known: list[Alert], query: AlertsQuery, is_silenced: Callable[[Alert], bool]) -> Response:
    servers, profiles = (None if names is None else set(names) for names in (query.server, query.profile))
    after = _parsed_position(query.after)
    selected = sorted(
        (
            alert
            for alert in known
            if (servers is None or alert.server_name in servers)
            and (profiles is None or alert.profile in profiles)
            and (query.state != "silenced" or is_silenced(alert))
        ),
        key=_position,
    )
    page = [alert for alert in selected if after is None or _position(alert) > after][: query.limit + 1]
    following = _position_text(page[query.limit - 1]) if len(page) > query.limit else None
    documents = [
        {**as_document(alert, is_silenced(alert)), "unit": _unit_of(alert.metric)} for alert in page[: query.limit]
    ]
    return json_response({"alerts": documents, "next": following})


def _unit_of(metric: str) -> str:
    spec = METRIC_SPECS.get(metric)
    return "" if spec is None else spec.unit


def _rank(alert: Alert) -> float:
    """Order within a page: firing alerts by probability, ended ones by their end."""
    return alert.probability if alert.ended_seconds is None else alert.ended_seconds


def _position(alert: Alert) -> tuple[float, str, str]:
    return -_rank(alert), alert.server_name, alert.metric


def _position_text(alert: Alert) -> str:
    return f"{_rank(alert)!r}/{alert.server_name}/{alert.metric}"


def _parsed_position(text: str) -> tuple[float, str, str] | None:
    """The position in `after`; None for an empty one. Raises SelectionError."""
    if not text:
        return None
    rank, _, key = text.partition("/")
    server, _, metric = key.partition("/")
    try:
        return -float(rank), server, metric
    except ValueError:
        raise SelectionError(f"after: {text[:100]!r} is not a position; send `next` of the previous page") from None


class KindCount(BaseModel):
    """Alerts of one severity and reason that began, or rose to that severity."""

    severity: Literal["page", "watch"]
    reason: str
    deliverable: Annotated[int, Field(description="not silenced; in shadow mode they would have been delivered")]
    silenced: int


class WeekSummary(BaseModel):
    """Numbers of alerts in the week after `since`."""

    since: UtcTime
    alerts: list[KindCount]


class SummaryResponse(BaseModel):
    """Numbers of alerts in the running week and in the one before; null where there was none."""

    shadow: Annotated[bool, Field(description="alerts are recorded and not delivered")]
    this_week: WeekSummary | None
    last_week: WeekSummary | None


@router.get(
    "/api/v1/alerts/summary",
    summary="Numbers of alerts by week",
    response_model=SummaryResponse,
    response_description="this week and the last",
    responses=ACCESS_REFUSALS,
)
async def summary(daemon: RunningDaemon) -> Response:
    weeks = {"this_week": daemon.alert_record.week, "last_week": daemon.alert_record.last_week}
    documents = {name: None if week is None else week.as_document() for name, week in weeks.items()}
    return json_response({"shadow": daemon.outbox.shadow, **documents})


@router.get(
    "/api/v1/risks",
    summary="Most probable breaches",
    response_model=RisksResponse,
    response_description="most probable breaches",
    responses={**ACCESS_REFUSALS, 422: INVALID_PARAMETER},
)
async def risks(
    daemon: RunningDaemon,
    limit: Annotated[int, Query(ge=1, le=1_000, description="entries in the response")] = 50,
) -> Response:
    return json_response({"risks": await asyncio.to_thread(_risks, daemon, limit)})


def _risks(daemon: Daemon, limit: int) -> list[dict[str, Any]]:
    """Servers and metrics by the probability of a breach within the look-ahead, highest first."""
    found = []
    for name, probabilities in list(daemon.alerts.probabilities.items()):  # float32 [metric, horizon]
        forecast = daemon.forecasts.snapshot.forecasts.get(name)
        if forecast is not None and probabilities.shape == (len(forecast.model.metrics), len(_horizons(forecast))):
            column = int(np.searchsorted(_horizons(forecast), daemon.alerts.rules.lookahead_seconds))
            at = probabilities[:, min(column, probabilities.shape[1] - 1)]
            found += [
                (float(value), name, index, forecast) for index, value in enumerate(at) if value >= LEAST_PROBABILITY
            ]
    found.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    return [
        {
            "server_name": name,
            "profile": forecast.profile,
            "metric": forecast.model.metrics[index],
            "unit": _unit_of(forecast.model.metrics[index]),
            "probability": round(value, 4),
            "current": forecast.current[index],
            **_bounds(daemon, forecast, forecast.model.metrics[index]),
            "by_horizon": {
                f"{seconds // 60}m": round(float(p), 4)
                for seconds, p in zip(_horizons(forecast), daemon.alerts.probabilities[name][index], strict=True)
            },
        }
        for value, name, index, forecast in found[:limit]
    ]


def _bounds(daemon: Daemon, forecast: ServerForecast, metric: str) -> dict[str, float | None]:
    above, below = daemon.alerts.rules.bounds_of(forecast.server_name, forecast.profile, metric)
    return {"threshold": above, "below": below}


def _horizons(forecast: ServerForecast) -> list[int]:
    """Seconds of the report horizons, the columns of the exceedance probabilities."""
    return list(report_horizons(forecast.horizon_steps * forecast.model.step_seconds).values())
