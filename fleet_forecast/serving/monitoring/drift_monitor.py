"""Whether the model in use should be trained again: losses of its own forecasts by day, and the advice.

Once an hour the forecasts of a cycle are kept; when their longest horizon has passed, their losses and those of a
simple baseline are added to the day of their origin. Complete days are passed to drift.detector. The state is in a
file, so a restart loses only the forecasts of the last hours.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.drift.advice import NewServers, Reason, can_be_trained_on, changes, new_profiles
from fleet_forecast.drift.detector import THRESHOLD, ChangeDetector
from fleet_forecast.evaluation.loss_sums import LossKey, LossSums
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_directory import EVALUATION_FILE, read_document
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.monitoring.kept_forecasts import DAY_SECONDS, ExcludedCells, KeptForecasts
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.wording import counted

LOG = logging.getLogger(__name__)
ORIGIN_SECONDS = 3_600  # one kept cycle in so many seconds
FEWEST_ORIGINS = 12  # of a day that counts
KEPT_DAYS = 7  # of the figures that are shown
UNMATCHED_REMARK = 0.05  # share of servers without a rule from which on it is mentioned


@dataclass(frozen=True)
class Advice:
    """The current advice.

    reasons: why the model may be too old, since since_seconds. retrain_recommended: whether to train now; a new profile
    is a reason from its first day on, but no training helps before it has a history. remarks: what else is unusual.
    """

    reasons: tuple[Reason, ...] = ()
    retrain_recommended: bool = False
    remarks: tuple[str, ...] = ()
    since_seconds: float | None = None
    days: int = 0
    reference_days: int = 0
    evidence: float = 0.0

    def as_document(self) -> dict[str, Any]:
        """For the API."""
        return {
            "retrain_recommended": self.retrain_recommended,
            "since": None if self.since_seconds is None else iso(self.since_seconds),
            "reasons": [reason.text for reason in self.reasons],
            "remarks": list(self.remarks),
            "days": self.days,
            "reference_days": self.reference_days,
            "evidence": round(self.evidence, 3),
            "threshold": round(THRESHOLD, 3),
        }


class _State(NamedTuple):
    """What an earlier update stored."""

    model_id: str
    detector: ChangeDetector
    days: dict[int, tuple[int, LossSums]]
    counted_day: int
    since_seconds: float | None
    changes: list[Reason]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> _State:
        """Raises KeyError, TypeError or ValueError for something else."""
        return cls(
            str(fields["model"]),
            ChangeDetector.restore(fields["detector"]),
            {int(day): (int(origins), LossSums.restore(sums)) for day, origins, sums in fields["days"]},
            int(fields["counted_day"]),
            fields["since_seconds"],
            [Reason(str(profile), str(text)) for profile, text in fields["changes"]],
        )


class DriftMonitor:
    """Losses and evidence of one model; the days of earlier ones only show how much they vary.

    `update` runs on the forecast worker.
    `advice` and `figures` are replaced as a whole and may be read from any thread.
    """

    def __init__(self, forecasts: ForecastLoop, store: HistoryStore, excluded: ExcludedCells, state_file: Path) -> None:
        self.advice = Advice()
        self.figures: dict[LossKey, dict[str, float | None]] = {}  # of the last KEPT_DAYS
        self.reference: dict[LossKey, dict[str, float | None]] = {}  # of the model's test period
        self._forecasts, self._store, self._excluded, self._file = forecasts, store, excluded, state_file
        self._model_id: str | None = None
        self._detector = ChangeDetector()
        self._since_seconds: float | None = None
        self._changes: list[Reason] = []  # as they were on the first day on which there were some
        self._days: dict[int, tuple[int, LossSums]] = {}  # day -> number of origins, sums; the last ones
        self._counted_day = -1  # the last day that went into the detector
        self._kept: list[KeptForecasts] = []

    def is_due(self, snapshot: FleetSnapshot) -> bool:
        """Whether the snapshot is the first one of its hour, or of another model."""
        if snapshot.origin_seconds is None or snapshot.model is None:
            return False
        newest = self._kept[-1] if self._kept else None
        if newest is None or newest.view != snapshot.model:
            return True
        return (
            snapshot.origin_seconds // ORIGIN_SECONDS > newest.origin_step * newest.view.step_seconds // ORIGIN_SECONDS
        )

    def update(self, snapshot: FleetSnapshot, now_seconds: float) -> None:
        """Keep the snapshot's forecasts, and count those whose horizon has passed."""
        window = self._forecasts.window
        if window is None or snapshot.model is None or window.engine.model_id != snapshot.model.model_id:
            return
        if window.engine.model_id != self._model_id:
            self._begin(window.engine)
        newest = window.buffer.newest_step
        for kept in [each for each in self._kept if each.last_step <= newest]:
            self._kept.remove(kept)
            day = kept.origin_step * kept.view.step_seconds // DAY_SECONDS
            origins, sums = self._days.get(day, (0, LossSums()))
            sums.merge(kept.losses(window, self._excluded))
            self._days[day] = origins + 1, sums
        fresh = KeptForecasts.of(snapshot, self._server_id, window)
        self._kept += [fresh] if fresh else []
        oldest = min((each.origin_step for each in self._kept), default=newest)
        before = oldest * snapshot.model.step_seconds // DAY_SECONDS
        self._count_days(before, window.engine.config.calendar)
        self._advise(snapshot, window.engine, now_seconds)
        self._save()

    def _server_id(self, name: str) -> int | None:
        server = self._store.servers.get(name)
        return None if server is None else server.server_id

    def _begin(self, engine: Engine) -> None:
        """Read the reference of a new model, or the state that an earlier process stored for it."""
        self._model_id, self._kept, self._days, self._counted_day = engine.model_id, [], {}, -1
        self._since_seconds, self._changes = None, []
        by_day = _reference(engine)
        whole = LossSums()
        for sums in by_day.values():
            whole.merge(sums)
        self.reference = whole.figures()
        calendar, state = engine.config.calendar, self._stored()
        reference = [sums.as_day(day, calendar) for day, sums in sorted(by_day.items())]
        if state is None or state.model_id != engine.model_id:
            self._detector = ChangeDetector.after(reference, None if state is None else state.detector)
            return
        self._detector, self._days, self._counted_day = state.detector, state.days, state.counted_day
        self._since_seconds, self._changes = state.since_seconds, state.changes

    def _count_days(self, before: int, calendar: BusinessCalendar) -> None:
        """Give complete days to the detector, and forget old ones."""
        for day in sorted(day for day in self._days if self._counted_day < day < before):
            origins, sums = self._days[day]
            self._counted_day = day
            if origins >= FEWEST_ORIGINS:
                self._detector.add(sums.as_day(day, calendar))
                if self._detector.changed and not self._changes:
                    self._changes = changes(self._detector)
        shown = LossSums()
        self._days = {day: found for day, found in self._days.items() if day > max(self._days) - KEPT_DAYS}
        for _, sums in self._days.values():
            shown.merge(sums)
        self.figures = shown.figures()

    def _advise(self, snapshot: FleetSnapshot, engine: Engine, now_seconds: float) -> None:
        new = _new_profiles(snapshot, engine)
        reasons = tuple(self._changes + new_profiles(new))
        if reasons and self._since_seconds is None:
            self._since_seconds = now_seconds
            LOG.warning(
                "the model may be too old", extra={"model": engine.model_id, "reasons": [each.text for each in reasons]}
            )
        if not reasons:
            self._since_seconds = None
        self.advice = Advice(
            reasons,
            bool(self._changes) or can_be_trained_on(new),
            _remarks(snapshot),
            self._since_seconds,
            len(self._detector.days) - self._detector.reference,
            self._detector.reference,
            self._detector.evidence,
        )

    def _stored(self) -> _State | None:
        """What was stored last, of this model or of the one before; None if nothing can be read."""
        try:
            return _State.of(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as problem:
            LOG.error("drift state not read", extra={"file": str(self._file), "reason": str(problem)})
            return None

    def _save(self) -> None:
        state = {
            "model": self._model_id,
            "counted_day": self._counted_day,
            "since_seconds": self._since_seconds,
            "changes": self._changes,
            "days": [[day, origins, sums.as_fields()] for day, (origins, sums) in self._days.items()],
            "detector": self._detector.as_fields(),
        }
        try:
            replace_file(self._file, json.dumps(state).encode())
        except OSError as problem:  # the next hour tries again
            LOG.error("drift state not written", extra={"reason": str(problem)})


def _reference(engine: Engine) -> dict[int, LossSums]:
    """Sums by day of the model's test period; empty for a model of an earlier version."""
    document = read_document(engine.model_dir, EVALUATION_FILE) or {}
    try:
        return {int(day): LossSums.restore(sums) for day, sums in document.get("losses_by_day", [])}
    except (TypeError, ValueError) as problem:
        LOG.error("reference of the model not read", extra={"model": engine.model_id, "reason": str(problem)})
        return {}


def _new_profiles(snapshot: FleetSnapshot, engine: Engine) -> dict[str, NewServers]:
    """Servers by profile that the model was not trained on."""
    if not engine.config.profiles:
        return {}
    day_steps = DAY_SECONDS // engine.config.step_seconds
    servers = Counter(each.profile for each in snapshot.forecasts.values())
    grown = Counter(each.profile for each in snapshot.forecasts.values() if each.history_steps >= day_steps)
    return {profile: NewServers(servers[profile], grown[profile]) for profile in engine.unknown_profiles(list(servers))}


def _remarks(snapshot: FleetSnapshot) -> tuple[str, ...]:
    servers, unmatched = len(snapshot.forecasts), len(snapshot.unmatched)
    if not servers or unmatched < UNMATCHED_REMARK * servers:
        return ()
    named = f"{counted(unmatched, 'server')} ({100 * unmatched / servers:.0f} %)"
    return (f"no rule matches the names of {named}; GET /api/v1/profiles/audit suggests profiles",)
