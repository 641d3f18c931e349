"""Whether the model in use should be trained again: losses of its own forecasts, day by day, and what to say of them.

Once an hour the forecasts of a cycle are kept; when their longest horizon has passed, their losses and those of a
simple baseline are added to the day of their origin. Complete days go into drift.detector. The state is in a file, so
that a restart costs the forecasts of the last hours only.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_forecast.atomic_write import replace_file
from fleet_forecast.drift.advice import changes_in_words, new_profiles_in_words
from fleet_forecast.drift.detector import THRESHOLD, ChangeDetector, Day
from fleet_forecast.evaluation.loss_sums import LossKey, LossSums
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_directory import EVALUATION_FILE, read_document
from fleet_forecast.iso_time import iso
from fleet_forecast.serving.forecasts.forecast_loop import ForecastLoop
from fleet_forecast.serving.forecasts.snapshot import FleetSnapshot
from fleet_forecast.serving.monitoring.kept_forecasts import DAY_SECONDS, ExcludedCells, KeptForecasts
from fleet_forecast.serving.storage.store import HistoryStore

LOG = logging.getLogger(__name__)
ORIGIN_SECONDS = 3_600  # one kept cycle in so many seconds
FEWEST_ORIGINS = 12  # of a day that counts
KEPT_DAYS = 7  # of the figures that are shown
FEWEST_NEW_SERVERS = 3  # of a profile: of three, training holds out one
UNMATCHED_REMARK = 0.05  # share of servers without a rule from which on it is mentioned


@dataclass(frozen=True)
class Advice:
    """The present state. reasons: to train again; since_seconds: of the first one. remarks: what else is unusual."""

    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    since_seconds: float | None = None
    days: int = 0
    reference_days: int = 0
    evidence: float = 0.0

    @property
    def retrain_recommended(self) -> bool:
        """Whether there is a reason to train again."""
        return bool(self.reasons)

    def as_document(self) -> dict[str, Any]:
        """For the API."""
        return {
            "retrain_recommended": self.retrain_recommended,
            "since": None if self.since_seconds is None else iso(self.since_seconds),
            "reasons": list(self.reasons),
            "remarks": list(self.remarks),
            "days": self.days,
            "reference_days": self.reference_days,
            "evidence": round(self.evidence, 3),
            "threshold": round(THRESHOLD, 3),
        }


class DriftMonitor:
    """Losses and evidence of one model; another model begins anew. `update` runs on the forecast worker.

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
        self._changes: list[str] = []  # in words, from the first day on which there were some
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
        self._count_days(before=oldest * snapshot.model.step_seconds // DAY_SECONDS)
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
        self._detector = ChangeDetector.after([Day(day, sums.log_ratios()) for day, sums in sorted(by_day.items())])
        self._restore(engine.model_id)

    def _count_days(self, before: int) -> None:
        """Give complete days to the detector, and forget old ones."""
        for day in sorted(day for day in self._days if self._counted_day < day < before):
            origins, sums = self._days[day]
            self._counted_day = day
            if origins >= FEWEST_ORIGINS:
                self._detector.add(Day(day, sums.log_ratios()))
                if self._detector.changed and not self._changes:
                    self._changes = changes_in_words(self._detector) or ["the errors are higher than before"]
        shown = LossSums()
        self._days = {day: found for day, found in self._days.items() if day > max(self._days) - KEPT_DAYS}
        for _, sums in self._days.values():
            shown.merge(sums)
        self.figures = shown.figures()

    def _advise(self, snapshot: FleetSnapshot, engine: Engine, now_seconds: float) -> None:
        reasons = tuple(self._changes + new_profiles_in_words(_new_profiles(snapshot, engine), FEWEST_NEW_SERVERS))
        if reasons and self._since_seconds is None:
            self._since_seconds = now_seconds
            LOG.warning("training recommended", extra={"model": engine.model_id, "reasons": reasons})
        if not reasons:
            self._since_seconds = None
        self.advice = Advice(
            reasons,
            _remarks(snapshot),
            self._since_seconds,
            len(self._detector.days) - self._detector.reference,
            self._detector.reference,
            self._detector.evidence,
        )

    def _restore(self, model_id: str) -> None:
        try:
            state = json.loads(self._file.read_bytes())
            if state["model"] != model_id:
                return
            days = {int(day): (int(origins), LossSums.restore(sums)) for day, origins, sums in state["days"]}
            self._detector = ChangeDetector.restore(state["detector"])
            self._days, self._counted_day, self._since_seconds = days, int(state["counted_day"]), state["since_seconds"]
            self._changes = [str(each) for each in state["changes"]]
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as problem:
            LOG.error("drift state not read", extra={"file": str(self._file), "reason": str(problem)})

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


def _new_profiles(snapshot: FleetSnapshot, engine: Engine) -> dict[str, int]:
    """Number of servers with a day of history, by profile that the model was not trained on."""
    if not engine.config.profiles:
        return {}
    day_steps = DAY_SECONDS // engine.config.step_seconds
    grown = [each.profile for each in snapshot.forecasts.values() if each.history_steps >= day_steps]
    return {profile: grown.count(profile) for profile in engine.unknown_profiles(list(Counter(grown)))}


def _remarks(snapshot: FleetSnapshot) -> tuple[str, ...]:
    servers, unmatched = len(snapshot.forecasts), len(snapshot.unmatched)
    if not servers or unmatched < UNMATCHED_REMARK * servers:
        return ()
    share = f"{100 * unmatched / servers:.0f} %"
    return (
        f"no rule matches the names of {unmatched:,} servers ({share}); GET /api/v1/profiles/audit suggests profiles",
    )
