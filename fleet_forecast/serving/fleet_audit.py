"""The profile audit of the daemon's servers: made on request, kept for an hour."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from fleet_forecast.iso_time import iso
from fleet_forecast.profile_audit.audit import AuditedFleet, AuditError, audit_document, audit_profiles, steps_of_day
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.snapshot import ModelView
from fleet_forecast.serving.storage.store import HistoryStore
from server_profiles import ProfileRules, profile_of

KEPT_SECONDS = 3_600
SERVERS_AT_ONCE = 500  # read in one turn of the forecast worker: a cycle waits for no more
NOTHING_FORECAST = "no server was forecast yet; wait for the first forecasts"


class FleetAudit:
    """Audits the servers that the store has. All methods are called on the event loop."""

    def __init__(self, forecasts: ForecastLoop, store: HistoryStore, rules: ProfileRules) -> None:
        self._forecasts, self._store, self._rules = forecasts, store, rules
        self._one_at_a_time = asyncio.Lock()
        self._origin_seconds: int | None = None
        self._document: dict[str, Any] = {}

    async def document(self) -> dict[str, Any]:
        """The audit of the last day, at most an hour old.

        Raises AuditError if there is nothing to compare, turns.WorkerBusyError if forecasts take all the time.
        """
        async with self._one_at_a_time:
            origin = self._forecasts.snapshot.origin_seconds
            if origin is None:
                raise AuditError(NOTHING_FORECAST)
            if self._origin_seconds is None or not 0 <= origin - self._origin_seconds < KEPT_SECONDS:
                self._document = {"origin": iso(origin), **await self._made()}
                self._origin_seconds = origin
            return self._document

    async def _made(self) -> dict[str, Any]:
        view = self._forecasts.snapshot.model
        servers = sorted(self._store.servers.values(), key=lambda server: server.name)
        if view is None or not servers:
            raise AuditError(NOTHING_FORECAST)
        days = []
        for first in range(0, len(servers), SERVERS_AT_ONCE):
            ids = [server.server_id for server in servers[first : first + SERVERS_AT_ONCE]]
            days.append(await self._forecasts.on_request(self._last_day, ids, view))
        matches = [profile_of(server.name, server.profile, self._rules) for server in servers]
        fleet = AuditedFleet(
            names=[server.name for server in servers],
            profiles=[profile for profile, _ in matches],
            matched=[rule is not None for _, rule in matches],
            metrics=view.metrics,
            day=np.concatenate(days),
        )
        return await asyncio.to_thread(lambda: audit_document(audit_profiles(fleet)))

    def _last_day(self, server_ids: Sequence[int], view: ModelView) -> np.ndarray:
        """float32 [server, step, metric] up to the newest step; called on the forecast worker."""
        window = self._forecasts.window
        if window is None or window.engine.model_id != view.model_id:
            raise AuditError("the model has just changed; wait for its first forecasts")
        return window.steps(server_ids, window.buffer.newest_step, steps_of_day(view.step_seconds))
