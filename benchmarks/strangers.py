"""What a trained model promises, checked on simulated servers it never saw: calibration, gaps, an unknown profile.

    python benchmarks/strangers.py --model models/current               # about two minutes; JSON is the last line
    python benchmarks/strangers.py --model models/current --origins 3 --servers 14

The model is one trained on a simulated fleet. Servers of another seed run with incidents and outages, as there.

* Calibration: how much the 80 % and 96 % bands cover, by metric, with 24 hours of history; and with less, down to none,
  the mean over metrics and the metric that is farthest off.
* Gaps: the same forecasts with 20 % of the history's rows removed, at random and in blocks of three hours; WQL against
  that with nothing removed, on the same points.
* An unknown profile: every server is called a mainframe, which the model never saw, and so is forecast through the
  category that hidden profiles were trained on; beside it random embeddings in the place of that category's, as it
  would be had it never been trained (mean of several draws), and the true profile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.limit import START, arguments_of, strangers  # noqa: E402
from fleet_forecast.evaluation import backtest as evaluation  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_directory import ModelError  # noqa: E402
from fleet_forecast.inference.torch_backend import load_model, torch_run  # noqa: E402
from fleet_forecast.network.model import ForecastModel  # noqa: E402
from fleet_forecast.simulation.metric_model import METRIC_POSITIONS  # noqa: E402
from fleet_forecast.simulation.scenario import Scenario  # noqa: E402
from fleet_forecast.simulation.simulator import simulate  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

ORIGIN_EVERY_HOURS = 31  # so all hours and kinds of day occur
HISTORIES_HOURS = (0, 1, 24)  # shown to the model under an unknown profile
DAY_HOURS = 24
REMOVED_SHARE = 0.2
BLOCK_HOURS = 3
UNKNOWN = "mainframe"
EMBEDDING_DRAWS = 8
TARGET_POINTS, TARGET_WORSE_PERCENT = 3.0, 5.0

Gaps = Callable[[tuple[int, int], np.random.Generator], np.ndarray]  # (windows, steps) -> boolean, removed


class Contest:
    """A fleet of strangers, its forecast origins, and scores of forecasts from there."""

    def __init__(self, engine: Engine, servers: int, origins: int) -> None:
        self.config = engine.config
        self.hour = 3600 // self.config.step_seconds
        every, first = ORIGIN_EVERY_HOURS * self.hour, self.config.history_steps
        self.origins = first - 1 + every * np.arange(origins)
        steps = int(self.origins[-1]) + 1 + self.config.horizon_steps
        fleet = strangers(servers)
        trace = simulate(Scenario(fleet, START, steps, self.config.step_seconds, self.config.timezone))
        metrics = [METRIC_POSITIONS[name] for name in self.config.targets]
        self.grid = FleetGrid(
            fleet.names,
            tuple(str(fleet.profile(server)) for server in range(servers)),
            self.config.targets,
            START,
            self.config.step_seconds,
            trace.metrics[:, :, metrics],
        )

    def scores(self, forecaster: evaluation.Forecaster, history_steps: int) -> pd.DataFrame:
        """WQL, coverage and so on, by metric (index), of forecasts from so many steps of history."""
        past = evaluation.backtest(
            self.grid,
            np.arange(len(self.grid.servers)),
            self.origins,
            self.config.horizon_steps,
            history_steps,
            self.config.quantiles,
            forecaster,
            with_baselines=False,
        )
        return past.scores().set_index("metric")

    def wql(self, forecaster: evaluation.Forecaster, history_steps: int) -> float:
        """Mean over metrics."""
        return float(self.scores(forecaster, history_steps)["wql"]["mean"])


def at_random(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Rows removed one by one."""
    return random.random(shape) < REMOVED_SHARE


def in_blocks_of(steps: int) -> Gaps:
    """Blocks of so many rows removed; where they begin differs between windows."""

    def removed(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
        windows, length = shape
        block = random.random((windows, length // steps + 2)) < REMOVED_SHARE
        step = np.arange(length) + random.integers(0, steps, (windows, 1))
        return np.take_along_axis(block, step // steps, axis=1)

    return removed


def with_gaps(engine: Engine, gaps: Gaps) -> evaluation.Forecaster:
    """The engine, shown histories with rows removed."""
    random = np.random.default_rng(0)

    def forecast(history: np.ndarray, profiles: Sequence[str | None], origins: np.ndarray) -> np.ndarray:
        removed = gaps((history.shape[0], history.shape[1]), random)
        return engine.forecast(np.where(removed[:, :, None], np.nan, history), profiles, origins)

    return forecast


def as_unknown(engine: Engine) -> evaluation.Forecaster:
    """The engine, told a profile the model never saw."""

    def forecast(history: np.ndarray, profiles: Sequence[str | None], origins: np.ndarray) -> np.ndarray:
        return engine.forecast(history, [UNKNOWN] * len(profiles), origins)

    return forecast


def random_embedding_wql(contest: Contest, model: ForecastModel, history_steps: int) -> float:
    """Mean WQL with random embeddings in the place of the unknown profile's, drawn as torch initialises embeddings."""
    forecaster = as_unknown(Engine(contest.config, torch_run(model)))
    embedding = model.network.input_embeddings["profile"].weight
    trained = embedding[0].detach().clone()
    draw = torch.Generator().manual_seed(0)
    found = []
    with torch.no_grad():
        for _ in range(EMBEDDING_DRAWS):
            embedding[0] = torch.randn(trained.shape, generator=draw)
            found.append(contest.wql(forecaster, history_steps))
        embedding[0] = trained
    return float(np.mean(found))


def young_calibration(scores_of: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Coverage by length of history: mean over metrics, and the metric that is farthest off."""
    records = []
    for history, scores in scores_of.items():
        record: dict[str, Any] = {"history": history, "wql": scores["wql"]["mean"]}
        for band in (80, 96):
            covered = scores[f"coverage_{band}"].drop("mean").astype(float)
            farthest = (covered - band).abs().idxmax()
            record |= {f"coverage_{band}": scores[f"coverage_{band}"]["mean"], f"farthest_{band}": covered[farthest]}
        records.append(record)
    return pd.DataFrame(records)


def gaps_table(contest: Contest, engine: Engine) -> pd.DataFrame:
    """WQL by history and kind of gap, and how much worse than without in percent."""
    kinds = {"at random": at_random, f"blocks of {BLOCK_HOURS} h": in_blocks_of(BLOCK_HOURS * contest.hour)}
    records = []
    for title, steps in (("24 h", DAY_HOURS * contest.hour), ("all", contest.config.history_steps)):
        whole = contest.wql(engine.forecast, steps)
        records.append({"history": title, "removed": "nothing", "wql": whole, "worse by %": 0.0})
        for kind, gaps in kinds.items():
            wql = contest.wql(with_gaps(engine, gaps), steps)
            records.append({"history": title, "removed": kind, "wql": wql, "worse by %": 100 * (wql / whole - 1)})
    return pd.DataFrame(records)


def unknown_table(contest: Contest, engine: Engine, model: ForecastModel) -> pd.DataFrame:
    """WQL by history: true profile, unknown profile, random embeddings."""
    records = []
    for hours in HISTORIES_HOURS:
        steps = hours * contest.hour
        records.append(
            {
                "history h": hours,
                "true profile": contest.wql(engine.forecast, steps),
                f"unknown ({UNKNOWN})": contest.wql(as_unknown(engine), steps),
                "random embedding": random_embedding_wql(contest, model, steps),
            }
        )
    return pd.DataFrame(records)


def show(title: str, table: pd.DataFrame, index: bool = False) -> None:
    """A table with its title."""
    print(f"\n{title}\n{table.to_string(index=index, float_format=lambda value: f'{value:.3f}')}")


def measure(engine: Engine, model_dir: Path, servers: int, origins: int) -> dict[str, Any]:
    """All three; prints the tables, returns what the last line says."""
    contest = Contest(engine, servers, origins)
    histories = evaluation.young_histories(contest.config.step_seconds)
    scores_of = {history: contest.scores(engine.forecast, steps) for history, steps in histories.items()}
    covered = scores_of[f"{DAY_HOURS} h"][["wql", "accuracy", "coverage_80", "coverage_96"]]
    show("Calibration: 24 h of history, coverage in %", covered, index=True)
    young = young_calibration(scores_of)
    show("The same by length of history, mean over metrics and the metric farthest off", young)
    gaps = gaps_table(contest, engine)
    show(f"Gaps: {100 * REMOVED_SHARE:.0f} % of the history's rows removed", gaps)
    off = {band: (covered[f"coverage_{band}"].drop("mean") - band).abs().max() for band in (80, 96)}
    result: dict[str, Any] = {
        "model": engine.model_id,
        "servers": servers,
        "origins": origins,
        "coverage": json.loads(covered.to_json(orient="index", double_precision=4)),
        "coverage_off_by_points": {str(band): round(float(value), 2) for band, value in off.items()},
        "coverage_by_history": json.loads(young.to_json(orient="records", double_precision=4)),
        "target_points": TARGET_POINTS,
        "gaps": json.loads(gaps.to_json(orient="records", double_precision=4)),
        "target_worse_percent": TARGET_WORSE_PERCENT,
    }
    if engine.config.profiles:
        unknown = unknown_table(contest, engine, load_model(model_dir.resolve(), engine.config))
        show("An unknown profile: WQL", unknown)
        result["unknown_profile"] = json.loads(unknown.to_json(orient="records", double_precision=4))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0 when done, 1 if the model cannot be used, 2 for wrong usage."""
    arguments = arguments_of(argv, __doc__, origins=8, servers=49)
    try:
        engine = Engine.load(arguments.model, device="cpu")
        result = measure(engine, arguments.model, arguments.servers, arguments.origins)
    except ModelError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
