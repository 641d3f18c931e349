"""A model on real fleets after 20 days of training, week by week: never trained again, on advice, and weekly.

    OMP_NUM_THREADS=1 python benchmarks/life/transfer.py                 # 400 steps first, 150 warm ones each time
    OMP_NUM_THREADS=1 python benchmarks/life/transfer.py --steps 50 --warm-steps 20   # a quick look
    OMP_NUM_THREADS=1 python benchmarks/life/transfer.py --policies never             # one training

A quarter of each profile's servers are new: they appear on day 30 without a history, and no training has them before.
Trainings are those of tft_trainer.py with a fixed number of steps, on the last 20 days, from the weights of the model
in use; a model that is worse than the one in use is not put in use. The advice is the daemon's test (drift/detector.py)
on the losses of each day. Models are kept in models/transfer/. Markdown goes to stdout; the last line is JSON: WQL by
week divided by that of window_quantiles_24h.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tft_trainer  # noqa: E402
from data_contract import read_metrics  # noqa: E402
from fleet_forecast.commands import training_job  # noqa: E402
from fleet_forecast.commands.model_life import KEPT_NOT_IN_USE  # noqa: E402
from fleet_forecast.drift.advice import changes_in_words  # noqa: E402
from fleet_forecast.drift.detector import ChangeDetector, Day  # noqa: E402
from fleet_forecast.evaluation.backtest import BacktestPlan, backtest  # noqa: E402
from fleet_forecast.evaluation.loss_sums import LossSums, losses_by_day  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_directory import EVALUATION_FILE, read_document  # noqa: E402
from fleet_forecast.training.trainer import TrainerSettings  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

DATA = ROOT / "../shared/data/fleets_public.parquet"
MODELS = ROOT / "models/transfer"
TRAINING_DAYS, NEW_SERVERS_DAY, WEEK_DAYS = 20, 30, 7
ORIGIN_HOURS = 4
NEW_SHARE = 0.25
POLICIES = ("never", "on advice", "weekly")
FLAGS = ["--timezone", "UTC", "--no-comparison", "--no-risk-model", "--device", "cpu"]


@dataclass
class Fleet:
    """The data, and which servers are new. start: first day, in days since 1970."""

    frame: pd.DataFrame
    grid: FleetGrid
    new: np.ndarray
    start: int

    @classmethod
    def read(cls, path: Path) -> Fleet:
        data = read_metrics(path)
        grid = FleetGrid.from_frame(data.frame, data.metrics, 300)
        random, rows = np.random.default_rng(0), []
        for profile in sorted({str(profile) for profile in grid.profiles}):
            of_profile = np.flatnonzero(np.array(grid.profiles) == profile)
            if len(of_profile) > 2:
                rows.append(random.permutation(of_profile)[: max(1, round(NEW_SHARE * len(of_profile)))])
        return cls(data.frame, grid, np.sort(np.concatenate(rows)), int(grid.start.astype("datetime64[D]").astype(int)))

    @property
    def days(self) -> int:
        return self.grid.steps // 288

    def known(self) -> np.ndarray:
        return np.setdiff1d(np.arange(len(self.grid.servers)), self.new)

    def rows_until(self, day: int) -> pd.DataFrame:
        """The last TRAINING_DAYS before a day, of the servers that there were."""
        first, end = (pd.Timestamp(self.start + each, unit="D", tz="UTC") for each in (day - TRAINING_DAYS, day))
        names = {self.grid.servers[row] for row in self.new}
        frame = self.frame[(self.frame["timestamp"] >= first) & (self.frame["timestamp"] < end)]
        appeared = pd.Timestamp(self.start + NEW_SERVERS_DAY, unit="D", tz="UTC")
        return frame[~frame["server_name"].isin(names) | (frame["timestamp"] >= appeared)]

    def without_past_of_new(self) -> FleetGrid:
        """The grid in which new servers are not measured before they appear."""
        hidden = np.zeros((len(self.grid.servers), self.grid.steps), dtype=bool)
        hidden[self.new, : NEW_SERVERS_DAY * 288] = True
        return self.grid.without(hidden)


@dataclass
class Policy:
    """The models of one policy and its losses by day: of known and of new servers."""

    name: str
    folder: Path
    engine: Engine
    detector: ChangeDetector
    trainings: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, dict[int, LossSums]] = field(default_factory=lambda: {"known": {}, "new": {}})
    advised: list[dict[str, Any]] = field(default_factory=list)  # first day with advice of each model, and the reasons

    def use(self) -> None:
        """Load the model in use, and begin its test of change."""
        self.engine = Engine.load(self.folder / "current", device="cpu")
        self.detector = detector_of(self.engine)


def detector_of(engine: Engine) -> ChangeDetector:
    document = read_document(engine.model_dir, EVALUATION_FILE) or {}
    days = [(int(day), LossSums.restore(sums)) for day, sums in document["losses_by_day"]]
    return ChangeDetector.after([Day(day, sums.log_ratios()) for day, sums in sorted(days)])


def train(fleet: Fleet, folder: Path, day: int, steps: int, warm: bool) -> dict[str, Any]:
    """Train on the last days before a day; what it took, and whether the model was put in use."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "training.parquet"
    fleet.rows_until(day).to_parquet(data, index=False)
    flags = ["--training-dir", str(data), "--models-dir", str(folder), *FLAGS]
    flags += ["--warm-start", str(folder / "current")] if warm else []
    started, output = time.process_time(), io.StringIO()
    fixed = functools.partial(TrainerSettings, steps=steps)
    with mock.patch.object(training_job, "TrainerSettings", fixed), contextlib.redirect_stdout(output):
        code = tft_trainer.main(flags)
    if code not in (0, KEPT_NOT_IN_USE):
        raise RuntimeError(f"{' '.join(flags)}: ended with exit code {code}")
    line = json.loads(output.getvalue().splitlines()[-1])
    worse = line["champion"]["worse"] if line["champion"] else []
    return {"day": day, "processor_seconds": round(time.process_time() - started), "in_use": code == 0, "worse": worse}


def forecast_day(fleet: Fleet, grid: FleetGrid, policy: Policy, day: int) -> None:
    """Forecast one day with the model in use, and add the losses."""
    present = np.arange(len(grid.servers)) if day >= NEW_SERVERS_DAY else fleet.known()
    origins = np.arange(day * 288, (day + 1) * 288, ORIGIN_HOURS * 12)
    horizon = policy.engine.config.horizon_steps
    origins = origins[(origins >= 0) & (origins + horizon < grid.steps)]
    peers = grid.peers(present)
    for name, rows in (("known", fleet.known()), ("new", np.intersect1d(fleet.new, present))):
        if len(rows) and len(origins):
            plan = BacktestPlan(grid, rows, origins, horizon, policy.engine.config.quantiles, peers)
            compared = backtest(plan, policy.engine.forecast, policy.engine.config.history_steps)
            for number, sums in losses_by_day(compared, grid).items():
                policy.losses[name].setdefault(number, LossSums()).merge(sums)


def run(fleet: Fleet, names: Sequence[str], steps: int, warm_steps: int) -> dict[str, Any]:
    """The policies, day by day."""
    shutil.rmtree(MODELS, ignore_errors=True)
    first = MODELS / "first"
    begun = train(fleet, first, TRAINING_DAYS, steps, warm=False)
    policies = []
    for name in names:
        folder = MODELS / name.replace(" ", "_")
        shutil.copytree(first, folder, symlinks=True)
        engine = Engine.load(folder / "current", device="cpu")
        policies.append(Policy(name, folder, engine, detector_of(engine)))
    grid = fleet.without_past_of_new()
    for day in range(TRAINING_DAYS, fleet.days):
        for policy in policies:
            reason = ["a week has passed"] if policy.name == "weekly" and is_week(day) else []
            if policy.detector.changed and (
                not policy.advised or policy.advised[-1]["model"] != policy.engine.model_id
            ):
                words = changes_in_words(policy.detector)
                policy.advised.append({"model": policy.engine.model_id, "day": day, "reasons": words})
                reason = words if policy.name == "on advice" else reason
            if reason:
                trained = train(fleet, policy.folder, day, warm_steps, warm=True)
                policy.trainings.append({**trained, "reason": reason})
                print(f"day {day}, {policy.name}: {policy.trainings[-1]}", file=sys.stderr)
                policy.use()
            forecast_day(fleet, grid, policy, day)
            number = fleet.start + day
            if number in policy.losses["known"]:
                policy.detector.add(Day(number, policy.losses["known"][number].log_ratios()))
    return {"first": begun, "policies": {policy.name: outcome(fleet, policy) for policy in policies}}


def is_week(day: int) -> bool:
    return day > TRAINING_DAYS and (day - TRAINING_DAYS) % WEEK_DAYS == 0


def outcome(fleet: Fleet, policy: Policy) -> dict[str, Any]:
    """WQL / WQL of the baseline by week, over all profiles, metrics and horizons; trainings and their cost."""
    weeks: dict[str, list[float | None]] = {}
    for name, by_day in policy.losses.items():
        weeks[name] = []
        for begin in range(TRAINING_DAYS, fleet.days, WEEK_DAYS):
            merged = LossSums()
            for day in range(begin, begin + WEEK_DAYS):
                merged.merge(by_day.get(fleet.start + day, LossSums()))
            weeks[name].append(ratio(merged))
    seconds = sum(training["processor_seconds"] for training in policy.trainings)
    return {"weeks": weeks, "trainings": policy.trainings, "processor_seconds": seconds, "advised": policy.advised}


def ratio(sums: LossSums) -> float | None:
    """The exponential of the mean of log(model loss / baseline loss) over profiles and metrics."""
    ratios = list(sums.log_ratios().values())
    return round(float(np.exp(np.mean(ratios))), 4) if ratios else None


def markdown(result: dict[str, Any]) -> str:
    shown = result["policies"]
    lines = [
        f"| servers | policy | {' | '.join(f'week {week}' for week in range(1, 5))} | trainings | processor minutes |"
    ]
    lines.append("|---|---|" + "---|" * 6)
    for group in ("known", "new"):
        for name, found in shown.items():
            cells = ["-" if value is None else f"{value:.3f}" for value in found["weeks"][group]]
            cost = f"{len(found['trainings'])} | {found['processor_seconds'] / 60:.1f}"
            lines.append(f"| {group} | {name} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and forecast; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="file of real fleets (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of the first training (%(default)s)")
    parser.add_argument("--warm-steps", type=int, default=150, help="of each further training (%(default)s)")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES, help="which ones (all)")
    arguments = parser.parse_args(argv)
    result = run(Fleet.read(arguments.data), arguments.policies, arguments.steps, arguments.warm_steps)
    print(markdown(result), end="\n\n")
    print(json.dumps({"steps": arguments.steps, "warm_steps": arguments.warm_steps, **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
