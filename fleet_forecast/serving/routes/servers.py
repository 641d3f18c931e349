"""The servers that have sent samples, and the profiles."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.contract.specs import METRIC_SPECS
from fleet_forecast.iso_time import iso
from fleet_forecast.profile_audit.audit import AuditError
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.forecasts.snapshot import ServerForecast
from fleet_forecast.serving.forecasts.turns import WorkerBusyError
from fleet_forecast.serving.routes.forecast_responses import Peers
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    BODY_REFUSALS,
    BUSY,
    RunningDaemon,
    UtcTime,
    json_response,
    refusal,
    retry_later,
    unknown_server,
)
from fleet_forecast.serving.storage.errors import HistoryUnavailableError
from fleet_forecast.serving.storage.samples import KnownServer
from server_profiles import profile_of

LOG = logging.getLogger(__name__)
MAX_OTHER_PROFILES = 100  # that the model was not trained on, in one response

router = APIRouter(tags=["fleet"])


class ServersQuery(BaseModel):
    """The servers of one page."""

    server: Annotated[list[str] | None, Field(description="only these servers")] = None
    profile: Annotated[list[str] | None, Field(description="only these profiles")] = None
    limit: Annotated[int, Field(ge=1, le=10_000, description="servers in one response")] = 1_000
    after: Annotated[str, Field(description="`next` of the previous page")] = ""


class ServerInfo(BaseModel):
    """One known server."""

    server_name: str
    profile: str
    profile_rule: Annotated[str | None, Field(description="rule that determined the profile; null if none matches")]
    state: Annotated[
        Literal["forecast", "stale", "silent", "new"],
        Field(
            description="forecast: after each step; stale: it has sent nothing for `stale_steps` steps, its last "
            "forecast is kept; silent: nor for `drop_steps` steps, it is forecast again with its next sample; "
            "new: its first forecast is being made"
        ),
    ]
    last_measured_step: UtcTime | None
    forecast_origin: UtcTime | None
    stale: Annotated[bool | None, Field(description="of its forecast; null without one")]
    peers: Annotated[Peers | None, Field(description="of its forecast; null without one")]
    provisional: Annotated[bool | None, Field(description="whether the step of the forecast's origin is not complete")]
    sources: Annotated[
        list[str], Field(description="clients of the tokens file and Prometheus servers, since the start")
    ]


class ServersResponse(BaseModel):
    """One page of servers, in the order of names."""

    servers: list[ServerInfo]
    next: Annotated[str | None, Field(description="`after` of the following page; null on the last one")]


class DeletedResponse(BaseModel):
    """The server that was deleted."""

    deleted: str


class UsualValues(BaseModel):
    """The usual values of one metric on servers of one profile."""

    mean: float
    spread: float
    unit: str


class ProfileInfo(BaseModel):
    """One profile and its servers."""

    profile: str
    servers: Annotated[int, Field(description="known servers of this profile")]
    trained: Annotated[bool, Field(description="the model in use was trained on servers of this profile")]
    name_patterns: list[str]
    usual: Annotated[dict[str, UsualValues], Field(description="by metric")]


class ProfilesResponse(BaseModel):
    """The built-in profiles, then those of the model, and the 100 most used others."""

    profiles: list[ProfileInfo]
    unmatched_names: Annotated[int, Field(description="servers whose name no rule matches")]


class Suggestion(BaseModel):
    """A server that behaves like the servers of another profile."""

    server_name: str
    profile: str
    matched: Annotated[bool, Field(description="a rule gave the profile; false: it is the fallback")]
    suggested: str
    probability: Annotated[float, Field(description="of the suggested profile")]


class TwoInOneInfo(BaseModel):
    """A profile whose servers form two groups."""

    profile: str
    groups: Annotated[list[list[str]], Field(description="server names of both groups")]
    apart: Annotated[float, Field(description="distance of the groups; 1 is the most that servers of one kind show")]


class AuditResponse(BaseModel):
    """The servers' profiles by their names, compared with their behaviour in the last day."""

    origin: UtcTime
    servers: int
    verdicts: Annotated[
        dict[str, int], Field(description="servers by verdict: agrees, contradicts, unmatched, unclear, too_short")
    ]
    suggestions: list[Suggestion]
    unclear: Annotated[list[str], Field(description="servers that behave like none of the profiles, or like several")]
    two_in_one: list[TwoInOneInfo]
    toml: Annotated[str, Field(description="lines of the fleet file that accept all suggestions")]


@router.get(
    "/api/v1/servers",
    summary="Known servers",
    response_model=ServersResponse,
    response_description="one page",
    responses=ACCESS_REFUSALS,
)
async def servers(daemon: RunningDaemon, query: Annotated[ServersQuery, Query()]) -> Response:
    return json_response(await asyncio.to_thread(_servers_page, daemon, query))


@router.delete(
    "/api/v1/servers/{name:path}",
    summary="Delete a server and its samples; it returns with its next sample",
    response_model=DeletedResponse,
    response_description="the server is deleted; its forecast and alerts end with the next cycle",
    responses={
        **ACCESS_REFUSALS,
        403: refusal("the token lacks the right"),
        404: refusal("no such server"),
        415: BODY_REFUSALS[415],
        503: BUSY,
    },
)
async def delete(daemon: RunningDaemon, name: str) -> Response:
    try:
        known = await asyncio.wrap_future(daemon.store.delete_server(name))
    except HistoryUnavailableError as problem:
        return retry_later(f"not deleted: {problem}")
    if not known:
        return unknown_server(name)
    LOG.info("server deleted", extra={"server": name})
    return json_response({"deleted": name})


@router.get(
    "/api/v1/profiles/audit",
    summary="Servers whose behaviour contradicts their profile, and profiles that consist of two",
    response_model=AuditResponse,
    response_description="the audit; it is renewed every hour",
    responses={**ACCESS_REFUSALS, 409: refusal("there is nothing to compare with"), 503: BUSY},
)
async def audit(daemon: RunningDaemon) -> Response:
    try:
        return json_response(await daemon.audit.document())
    except WorkerBusyError as problem:
        return retry_later(str(problem))
    except AuditError as problem:
        return json_response({"detail": str(problem)}, 409)


@router.get(
    "/api/v1/profiles",
    summary="Profiles and their servers",
    response_model=ProfilesResponse,
    response_description="the profiles",
    responses=ACCESS_REFUSALS,
)
async def profiles(daemon: RunningDaemon) -> Response:
    return json_response(await asyncio.to_thread(_profiles, daemon))


def _servers_page(daemon: Daemon, query: ServersQuery) -> dict[str, Any]:
    known = sorted(daemon.store.servers.values(), key=lambda server: server.name)
    names, profiles = (None if chosen is None else set(chosen) for chosen in (query.server, query.profile))
    page: list[dict[str, Any]] = []
    for server in known:
        if server.name <= query.after or (names is not None and server.name not in names):
            continue
        described = _server(daemon, server)
        if profiles is None or described["profile"] in profiles:
            page.append(described)
        if len(page) > query.limit:
            break
    following = page[query.limit - 1]["server_name"] if len(page) > query.limit else None
    return {"servers": page[: query.limit], "next": following}


def _server(daemon: Daemon, server: KnownServer) -> dict[str, Any]:
    profile, rule = profile_of(server.name, server.profile, daemon.rules)
    forecast = daemon.forecasts.snapshot.forecasts.get(server.name)
    last_step = daemon.store.last_step(server.server_id)
    return {
        "server_name": server.name,
        "profile": profile,
        "profile_rule": rule,
        "state": _state(daemon, server, forecast),
        "last_measured_step": None if last_step is None else iso(last_step * daemon.store.step_seconds),
        "forecast_origin": None if forecast is None else iso(forecast.origin_seconds),
        "stale": None if forecast is None else daemon.forecasts.is_stale(forecast),
        "peers": None if forecast is None else forecast.peers.as_document(),
        "provisional": None if forecast is None else forecast.provisional,
        "sources": daemon.ingest.senders.sources.get(server.name, ()),
    }


def _state(daemon: Daemon, server: KnownServer, forecast: ServerForecast | None) -> str:
    if forecast is not None:
        return "stale" if daemon.forecasts.is_stale(forecast) else "forecast"
    complete_step = daemon.forecasts.complete_step(daemon.store.step_seconds)
    return "new" if daemon.forecasts.sent_recently(server, complete_step) else "silent"


def _profiles(daemon: Daemon) -> dict[str, Any]:
    matches = [profile_of(server.name, server.profile, daemon.rules) for server in list(daemon.store.servers.values())]
    counts = Counter(profile for profile, _ in matches)
    trained = daemon.forecasts.engine.config.profiles if daemon.forecasts.engine else ()
    untrained = Counter({name: count for name, count in counts.items() if name not in {*trained, *PROFILES}})
    most_used = [name for name, _ in untrained.most_common(MAX_OTHER_PROFILES)]  # clients choose these names
    others = sorted({*most_used, *trained} - set(PROFILES))
    return {
        "profiles": [
            {
                "profile": str(profile),
                "servers": counts[str(profile)],
                "trained": str(profile) in trained,
                "name_patterns": (*spec.added_patterns, *spec.name_patterns),
                "usual": {
                    metric: {"mean": baseline.mean, "spread": baseline.spread, "unit": METRIC_SPECS[metric].unit}
                    for metric, baseline in spec.baselines.items()
                },
            }
            for profile, spec in PROFILES.items()
        ]
        + [
            {"profile": name, "servers": counts[name], "trained": name in trained, "name_patterns": [], "usual": {}}
            for name in others
        ],
        "unmatched_names": sum(rule is None for _, rule in matches),
    }
