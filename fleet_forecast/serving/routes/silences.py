"""Silences: when alerts of some servers are recorded and not delivered."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.intervals.silences import EXCLUDE, Silence
from fleet_forecast.iso_time import iso_milliseconds
from fleet_forecast.serving.daemon import Daemon
from fleet_forecast.serving.delivery.silence_book import (
    KEPT_SECONDS,
    KnownSilence,
    SilencesError,
    as_fields,
    profile_note,
    server_note,
)
from fleet_forecast.serving.query_parameters import wrong_body
from fleet_forecast.serving.routes.responses import (
    ACCESS_REFUSALS,
    BODY_REFUSALS,
    INVALID_PARAMETER,
    RunningDaemon,
    json_response,
    refusal,
)

LOG = logging.getLogger(__name__)
ADMIN_REFUSALS: dict[int | str, Any] = {
    **ACCESS_REFUSALS,
    403: refusal("no admin token is set, or the token lacks the right"),
    409: refusal("the silences cannot be changed now; the detail gives the remedy"),
    415: BODY_REFUSALS[415],
}

router = APIRouter(tags=["alerts"])


class SilenceInfo(Silence):
    """One silence in use."""

    id: str
    source: Annotated[Literal["file", "api"], Field(description="file: the rules file, where it is changed")]
    active: Annotated[bool, Field(description="whether it covers this moment")]
    note: Annotated[str | None, Field(description="of a profile or servers that are not known; null otherwise")]


class SilencesResponse(BaseModel):
    """All silences: those of the rules file first, then the others in the order in which they were added."""

    silences: list[SilenceInfo]


class DeletedSilence(BaseModel):
    """The silence that was deleted."""

    deleted: str


@router.get(
    "/api/v1/silences",
    summary="Silences",
    response_model=SilencesResponse,
    response_description="all silences",
    responses=ACCESS_REFUSALS,
)
async def silences(daemon: RunningDaemon) -> Response:
    def listed() -> list[dict[str, Any]]:
        return [_silence(daemon, known) for known in daemon.silences.known]

    return json_response(
        {"silences": await asyncio.to_thread(listed)}
    )  # a pattern without a match takes 25 ms for 20,000 servers


@router.post(
    "/api/v1/silences",
    summary="Add a silence; it is stored on disk",
    response_model=SilenceInfo,
    response_description="the silence with its id",
    responses={**ADMIN_REFUSALS, 413: BODY_REFUSALS[413], 422: INVALID_PARAMETER},
)
async def add(daemon: RunningDaemon, silence: Silence) -> Response:
    _refuse_past(silence, daemon.clock())
    try:
        known = await asyncio.to_thread(daemon.silences.add, silence)
    except SilencesError as problem:
        return json_response({"detail": str(problem)}, 409)
    LOG.info("silence added", extra={"silence": known.silence_id})
    return json_response(await asyncio.to_thread(_silence, daemon, known))


@router.delete(
    "/api/v1/silences/{silence_id}",
    summary="Delete a silence",
    response_model=DeletedSilence,
    response_description="the silence is deleted; alerts that still fire are delivered with the next cycle",
    responses={**ADMIN_REFUSALS, 404: refusal("no such silence")},
)
async def delete(daemon: RunningDaemon, silence_id: str) -> Response:
    try:
        deleted = await asyncio.to_thread(daemon.silences.delete, silence_id)
    except SilencesError as problem:
        return json_response({"detail": str(problem)}, 409)
    if not deleted:
        return json_response({"detail": "no such silence; GET /api/v1/silences lists them"}, 404)
    LOG.info("silence deleted", extra={"silence": silence_id})
    return json_response({"deleted": silence_id})


def _refuse_past(silence: Silence, now: float) -> None:
    """Raise RequestValidationError for a silence that has ended; it would have no effect.

    Measurements may be excluded afterwards, for as long as silences are kept.
    """
    kept = KEPT_SECONDS if silence.kind == EXCLUDE else 0
    if silence.until is not None and silence.until + kept <= now:
        remedy = "give a later time; exclude older measurements from training with tft_trainer.py --exclusions"
        raise wrong_body(f"is in the past; {remedy}", "until", iso_milliseconds(silence.until))


def _silence(daemon: Daemon, known: KnownSilence) -> dict[str, Any]:
    engine = daemon.forecasts.engine
    trained = engine.config.profiles if engine else ()
    profiles = {*map(str, PROFILES), *trained, *daemon.forecasts.snapshot.profiles}
    return {
        "id": known.silence_id,
        "source": "file" if known.of_file else "api",
        "active": known.silence.is_active(daemon.clock()),
        "note": profile_note(known.silence, profiles) or server_note(known.silence, daemon.store.servers),
        **as_fields(known.silence),
    }
