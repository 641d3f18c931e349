"""Lives of a model on a fleet: each day it forecasts and is scored; the policy decides when it is trained again.

A life is stored at the end of each of its weeks, where a killed run continues.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.life.worlds import WEEK_DAYS, World

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tft_trainer  # noqa: E402
from fleet_forecast.atomic_write import replace_file  # noqa: E402
from fleet_forecast.commands.model_life import KEPT_NOT_IN_USE  # noqa: E402
from fleet_forecast.contract.forecast_spec import MEDIAN_LEVEL, SCORED_LEVELS  # noqa: E402
from fleet_forecast.drift.advice import NewServers, can_be_trained_on, changes, new_profiles  # noqa: E402
from fleet_forecast.drift.detector import ChangeDetector  # noqa: E402
from fleet_forecast.evaluation.backtest import MODEL, Backtest, BacktestPlan, backtest  # noqa: E402
from fleet_forecast.evaluation.loss_sums import LossKey, LossSums, losses_by_day  # noqa: E402
from fleet_forecast.evaluation.scores import pinball_loss  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_directory import EVALUATION_FILE, promote, read_document  # noqa: E402
from fleet_forecast.training.checkpoint import fingerprint  # noqa: E402

ORIGIN_HOURS = 4
ORIGINS = 24 // ORIGIN_HOURS  # of a day
SUMS = ("error", "loss", "magnitude")  # of a server, an origin and a metric
STATE_FILE, SCORES_FILE = "life.json", "scores.npy"
FLAGS = ("--no-comparison", "--no-risk-model", "--device", "cpu")


@dataclass(frozen=True)
class Identity:
    """How a model identifies a server. shown: the grid as the model gets it. flags: of the trainer."""

    name: str
    shown: Callable[[FleetGrid], FleetGrid]
    flags: tuple[str, ...] = ()


def _by_server(grid: FleetGrid) -> FleetGrid:
    return replace(grid, profiles=grid.servers)


def _by_nothing(grid: FleetGrid) -> FleetGrid:
    return replace(grid, profiles=(None,) * len(grid.servers))


PROFILES = Identity("live profiles", lambda grid: grid)
NOTHING = Identity("no profiles", _by_nothing, ("--no-profile",))
SERVER_ID = Identity("server id", _by_server)

NEVER, ON_ADVICE, ON_ADVICE_OR_UNKNOWN, REGULAR = "never", "on advice", "on advice or unknown servers", "regular"


@dataclass(frozen=True)
class Training:
    """Fixed numbers of steps: of the first training, and of each further one, which starts from the model in use."""

    steps: int
    warm_steps: int
    flags: tuple[str, ...] = ()


@dataclass
class Life:
    """One model on one world under one policy.

    folder: of the models and the state. first: folder of a life that was only begun, to begin with.
    scores: float32 [day, origin, server, metric, sum], SUMS of each forecast of the life, 0 where there is none.
    losses: by day of the life, of what the detector gets. advised: day, name of the change and words of each advice.
    """

    world: World
    identity: Identity
    policy: str
    training: Training
    folder: Path
    first: Path | None = None
    detector: ChangeDetector = field(default_factory=ChangeDetector)
    day: int = -1
    losses: dict[int, LossSums] = field(default_factory=dict)
    trainings: list[dict[str, Any]] = field(default_factory=list)
    advised: list[dict[str, Any]] = field(default_factory=list)
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))

    def run(self) -> None:
        """Live from the stored day on, or from the first one, to the last one."""
        self._begin()
        for day in [day for day in self.world.days if day >= self.day]:
            self.day = day
            if (day - self.world.first_day) % WEEK_DAYS == 0:
                self._save()
            reasons = self._reasons(day)
            if reasons:
                self._train(day, reasons)
            self._forecast(day)
        self.day = self.world.days[-1] + 1
        self._save()

    def begin_only(self) -> None:
        """Train for the first time, for other lives to begin with."""
        if self._stored() is None:
            self._begin()
            self._save()

    # --- policy -----------------------------------------------------------------------------------------------------

    def _reasons(self, day: int) -> list[str]:
        """Why the policy trains before a day; empty: it does not."""
        advice, may_train = self._advice(day), self._may_train(day)
        if self.policy == REGULAR:
            return ["regular"] if day in self.world.retraining_days else []
        if self.policy == NEVER or not may_train:
            return []
        if self.policy == ON_ADVICE_OR_UNKNOWN and (unknown := self._grown_unknown(day)):
            advice.append(f"{len(unknown)} unknown servers")
        return advice

    def _advice(self, day: int) -> list[str]:
        """The daemon's reasons to train now; each is noted with the first day on which it was given."""
        reasons = []
        if self.detector.changed:
            self._note(day, "change", [reason.text for reason in changes(self.detector)])
            reasons.append("change")
        for profile, new in self._new_types(day).items():
            for reason in new_profiles({profile: new}):
                self._note(day, f"new type {profile}", [reason.text])
            reasons += [f"new type {profile}"] if can_be_trained_on({profile: new}) else []
        return reasons

    def _note(self, day: int, what: str, words: Sequence[str]) -> None:
        if not any(each["what"] == what and each["model"] == self.engine.model_id for each in self.advised):
            self.advised.append({"day": day, "what": what, "model": self.engine.model_id, "words": list(words)})

    def _may_train(self, day: int) -> bool:
        """A training without a better model is repeated after a week."""
        last = self.trainings[-1]
        return bool(last["in_use"]) or day - last["day"] >= WEEK_DAYS

    def _new_types(self, day: int) -> dict[str, NewServers]:
        """Servers measured on a day, by profile that the training of the model in use did not have."""
        found: dict[str, NewServers] = {}
        known, appeared = set(self._in_use["profiles"]), self.world.appeared
        for row in self.world.measured_on(day):
            profile = str(self.world.grid.profiles[row])
            if profile not in known:
                servers, grown = found.get(profile, NewServers(0, 0))
                found[profile] = NewServers(servers + 1, grown + int(appeared[row] < day))
        return found

    @property
    def _in_use(self) -> dict[str, Any]:
        return next(each for each in reversed(self.trainings) if each["in_use"])

    def _grown_unknown(self, day: int) -> list[int]:
        """Servers with a day of history that the training of the model in use did not have."""
        known, appeared = set(self._in_use["servers"]), self.world.appeared
        rows = self.world.measured_on(day)
        return [row for row in rows if appeared[row] < day and self.world.grid.servers[row] not in known]

    # --- training ---------------------------------------------------------------------------------------------------

    def _train(self, day: int, reasons: Sequence[str]) -> None:
        warm = bool(self.trainings)
        frame = self.world.rows_until(day)
        known = {name: sorted({str(each) for each in frame[name]}) for name in ("server_name", "profile")}
        if self.identity is SERVER_ID:
            frame["profile"] = frame["server_name"]
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.folder / "training.parquet"
        frame.to_parquet(data, index=False)
        steps = self.training.warm_steps if warm else self.training.steps
        flags = ["--training-dir", data, "--models-dir", self.folder, "--steps", steps, "--timezone"]
        flags += [self.world.timezone, *FLAGS, *self.identity.flags, *self.training.flags]
        flags += ["--warm-start", self.folder / "current", "--keep", 3] if warm else []
        started, output = time.process_time(), io.StringIO()
        with contextlib.redirect_stdout(output):
            code = tft_trainer.main([str(flag) for flag in flags])
        if code not in (0, KEPT_NOT_IN_USE):
            raise RuntimeError(f"training on {data}: ended with exit code {code}")
        line = json.loads(output.getvalue().splitlines()[-1])
        found = {
            "day": day,
            "reasons": list(reasons),
            "in_use": code == 0,
            "worse": line["champion"]["worse"] if line["champion"] else [],
            "processor_seconds": round(time.process_time() - started, 1),
            "servers": known["server_name"],
            "profiles": known["profile"],
        }
        self.trainings.append(found)
        shown = {name: value for name, value in found.items() if name != "servers"}
        print(f"{self.world.name}, {self.identity.name}, {self.policy}: {shown}", file=sys.stderr, flush=True)
        if code == 0:
            self._use()

    def _use(self) -> None:
        """Load the model in use, and begin its test of change."""
        self.engine = Engine.load(self.folder / "current", device="cpu", threads=1)
        document = read_document(self.engine.model_dir, EVALUATION_FILE) or {}
        profile_of = dict(zip(self.world.grid.servers, map(str, self.world.grid.profiles), strict=True))
        days = []
        for day, fields in document["losses_by_day"]:
            sums = by_profile(LossSums.restore(fields), profile_of)
            days.append(sums.as_day(int(day), self.engine.config.calendar))
        self.detector = ChangeDetector.after(sorted(days, key=lambda each: each.number), self.detector)

    # --- forecasts --------------------------------------------------------------------------------------------------

    def _forecast(self, day: int) -> None:
        """Forecast a day with the model in use; add the scores, and give the day to the detector."""
        world, config = self.world, self.engine.config
        grid, begin = world.around(day)
        origins = begin - 1 + np.arange(0, world.day_steps, world.day_steps // ORIGINS)
        rows = world.measured_on(day)
        shown = self.identity.shown(grid)
        peers = None if config.scaling.peer_prior is None else shown.peers(rows)
        plan = BacktestPlan(shown, rows, origins, config.horizon_steps, config.quantiles, peers)
        compared = backtest(plan, self.engine.forecast, config.history_steps)
        index = day - world.first_day
        self.scores[index, (compared.origins - begin + 1) * ORIGINS // world.day_steps, compared.rows] = sums_of(
            compared
        )
        by_day = LossSums()
        for sums in losses_by_day(compared, grid).values():  # the first origin is the last step of the day before
            by_day.merge(sums)
        self.losses[day] = by_day
        self.detector.add(by_day.as_day(world.epoch_day + day, config.calendar))

    # --- state ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Restore the stored life of the same settings or what `first` has stored, or train for the first time."""
        world = self.world
        shape = (world.days[-1] - world.first_day + 1, ORIGINS, len(world.grid.servers), len(world.grid.metrics))
        self.scores = np.zeros((*shape, len(SUMS)), dtype=np.float32)
        if self._stored() is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.first is not None:
                shutil.copytree(self.first, self.folder, symlinks=True)
        state = self._stored()
        if state is None:
            self.day = world.first_day
            self._train(world.first_day, ["first"])
            return
        self.day, self.trainings, self.advised = state["day"], state["trainings"], state["advised"]
        self.losses = {int(day): LossSums.restore(fields) for day, fields in state["losses"]}
        self.scores = np.load(self.folder / SCORES_FILE)
        promote(self.folder, state["model"])
        self._use()
        self.detector = ChangeDetector.restore(state["detector"])

    def _stored(self) -> dict[str, Any] | None:
        file = self.folder / STATE_FILE
        state = json.loads(file.read_text()) if file.exists() else None
        return state if state is not None and state["settings"] == self._settings() else None

    def _settings(self) -> dict[str, Any]:
        parts = (self.identity.name, self.training.steps, self.training.warm_steps)
        return {"parts": [*parts, *self.training.flags], "data": fingerprint(self.world.grid)}

    def _save(self) -> None:
        scores = io.BytesIO()
        np.save(scores, self.scores)
        replace_file(self.folder / SCORES_FILE, scores.getvalue())
        state = {
            "settings": self._settings(),
            "day": self.day,
            "model": self.engine.model_id,
            "trainings": self.trainings,
            "advised": self.advised,
            "losses": [[day, sums.as_fields()] for day, sums in self.losses.items()],
            "detector": self.detector.as_fields(),
        }
        replace_file(self.folder / STATE_FILE, json.dumps(state).encode())


def by_profile(sums: LossSums, profile_of: Mapping[str, str]) -> LossSums:
    """Sums whose profile is a server's name, under that server's profile; others as they are."""
    found = LossSums()
    for key, values in sums.sums.items():
        own = LossKey(profile_of.get(key.profile, key.profile), key.metric, key.horizon)
        found.sums[own] = found.sums.get(own, 0.0) + values
    return found


def sums_of(compared: Backtest) -> np.ndarray:
    """SUMS of each window over its horizon: float64 [window, metric, sum].

    error: |measured - median|. loss: twice the pinball loss, mean over SCORED_LEVELS. magnitude: |measured|.
    """
    levels = [compared.quantiles.index(level) for level in SCORED_LEVELS]
    model = compared.forecasts[MODEL]
    known = ~np.isnan(compared.actual) & ~np.isnan(model).any(axis=3)
    actual = np.where(known, compared.actual, 0.0).astype(np.float64)
    forecast = np.where(known[..., None], model, 0.0)
    error = np.abs(actual - forecast[..., compared.quantiles.index(MEDIAN_LEVEL)])
    loss = 2 * pinball_loss(actual, forecast[..., levels], SCORED_LEVELS).mean(axis=3)
    return np.stack([error.sum(axis=1), loss.sum(axis=1), np.abs(actual).sum(axis=1)], axis=2)
