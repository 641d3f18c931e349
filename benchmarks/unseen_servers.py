"""Checks of a trained model on unseen simulated servers: calibration, gaps in the history, an unknown profile.

    python benchmarks/unseen_servers.py --model models/current          # about two minutes; JSON is the last line
    python benchmarks/unseen_servers.py --model models/current --origins 3 --servers 14

The model is one trained on a simulated fleet. The servers are simulated with another seed, with incidents and outages.

* Calibration: coverage of the 80 % and 96 % bands, by metric with 24 hours of history; and by length of history down
  to none, as the mean over metrics and for the metric with the largest deviation.
* Gaps: WQL with 20 % of the history's rows removed, at random and in blocks of three hours, relative to the WQL of the
  complete history on the same points.
* An unknown profile: every server has a profile that the model was not trained on. The model forecasts it with the
  embedding of masked profiles. Compared with random embeddings (mean of several draws), which is what an untrained
  embedding would be, and with the true profile.
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

from benchmarks.limit import START, arguments_of, unseen_fleet  # noqa: E402
from fleet_forecast.evaluation.backtest import (  # noqa: E402
    MEAN,
    MODEL,
    Backtest,
    BacktestPlan,
    Forecaster,
    model_forecasts,
)
from fleet_forecast.evaluation.cold_start import history_lengths  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_config import ModelError  # noqa: E402
from fleet_forecast.inference.torch_backend import load_model, torch_run  # noqa: E402
from fleet_forecast.network.model import ForecastModel  # noqa: E402
from fleet_forecast.simulation.metric_model import simulated  # noqa: E402
from fleet_forecast.simulation.scenario import Scenario  # noqa: E402
from fleet_forecast.simulation.simulator import simulate  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

ORIGIN_EVERY_HOURS = 31  # so that all hours and kinds of day occur
HISTORIES_HOURS = (0, 1, 24)  # lengths of history with an unknown profile
DAY_HOURS = 24
REMOVED_SHARE = 0.2
BLOCK_HOURS = 3
UNKNOWN = "mainframe"
EMBEDDING_DRAWS = 8
TARGET_POINTS, TARGET_WORSE_PERCENT = 3.0, 5.0

Gaps = Callable[[tuple[int, int], np.random.Generator], np.ndarray]  # (windows, steps) -> boolean, removed


class UnseenServers:
    """A simulated fleet of unseen servers with forecast origins; scores forecasters on it."""

    def __init__(self, engine: Engine, servers: int, origins: int) -> None:
        self.config = engine.config
        self.hour = 3600 // self.config.step_seconds
        every, first = ORIGIN_EVERY_HOURS * self.hour, self.config.history_steps
        self.origins = first - 1 + every * np.arange(origins)
        steps = int(self.origins[-1]) + 1 + self.config.horizon_steps
        fleet = unseen_fleet(servers)
        trace = simulate(Scenario(fleet, START, steps, self.config.step_seconds, self.config.calendar))
        metrics = [simulated().positions[name] for name in self.config.targets]
        self.grid = FleetGrid(
            fleet.names,
            tuple(str(fleet.profile(server)) for server in range(servers)),
            self.config.targets,
            START,
            self.config.step_seconds,
            trace.metrics[:, :, metrics],
        )

    def scores(self, forecaster: Forecaster, history_steps: int) -> pd.DataFrame:
        """Scores by metric (index) of forecasts from `history_steps` steps of history."""
        plan = BacktestPlan(
            self.grid,
            np.arange(len(self.grid.servers)),
            self.origins,
            self.config.horizon_steps,
            self.config.quantiles,
        )
        forecasts = {MODEL: model_forecasts(plan, forecaster, history_steps)}
        return Backtest.of(plan, forecasts).scores().set_index("metric")

    def wql(self, forecaster: Forecaster, history_steps: int) -> float:
        """WQL, mean over metrics."""
        return float(self.scores(forecaster, history_steps)["wql"][MEAN])


def at_random(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Single rows, drawn independently."""
    return random.random(shape) < REMOVED_SHARE


def in_blocks_of(steps: int) -> Gaps:
    """Blocks of `steps` rows; their positions differ between windows."""

    def removed(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
        windows, length = shape
        block = random.random((windows, length // steps + 2)) < REMOVED_SHARE
        step = np.arange(length) + random.integers(0, steps, (windows, 1))
        return np.take_along_axis(block, step // steps, axis=1)

    return removed


def with_gaps(engine: Engine, gaps: Gaps) -> Forecaster:
    """The engine on histories with rows removed."""
    random = np.random.default_rng(0)

    def forecast(history: np.ndarray, profiles: Sequence[str | None], origins: np.ndarray) -> np.ndarray:
        removed = gaps((history.shape[0], history.shape[1]), random)
        return engine.forecast(np.where(removed[:, :, None], np.nan, history), profiles, origins)

    return forecast


def as_unknown(engine: Engine) -> Forecaster:
    """The engine with a profile that the model was not trained on."""

    def forecast(history: np.ndarray, profiles: Sequence[str | None], origins: np.ndarray) -> np.ndarray:
        return engine.forecast(history, [UNKNOWN] * len(profiles), origins)

    return forecast


def random_embedding_wql(fleet: UnseenServers, model: ForecastModel, history_steps: int) -> float:
    """Mean WQL with random embeddings for the unknown profile, drawn as torch initialises embeddings."""
    forecaster = as_unknown(Engine(fleet.config, torch_run(model)))
    embedding = model.network.input_embeddings["profile"].weight
    trained = embedding[0].detach().clone()
    draw = torch.Generator().manual_seed(0)
    found = []
    with torch.no_grad():
        for _ in range(EMBEDDING_DRAWS):
            embedding[0] = torch.randn(trained.shape, generator=draw)
            found.append(fleet.wql(forecaster, history_steps))
        embedding[0] = trained
    return float(np.mean(found))


def calibration_by_history(scores_of: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Coverage by length of history: mean over metrics, and of the metric with the largest deviation."""
    records = []
    for history, scores in scores_of.items():
        record: dict[str, Any] = {"history": history, "wql": scores["wql"][MEAN]}
        for band in (80, 96):
            covered = scores[f"coverage_{band}"].drop(MEAN).astype(float)
            farthest = (covered - band).abs().idxmax()
            record |= {f"coverage_{band}": scores[f"coverage_{band}"][MEAN], f"farthest_{band}": covered[farthest]}
        records.append(record)
    return pd.DataFrame(records)


def gaps_table(fleet: UnseenServers, engine: Engine) -> pd.DataFrame:
    """WQL by length of history and kind of gap, and its increase over no gaps in percent."""
    kinds = {"at random": at_random, f"blocks of {BLOCK_HOURS} h": in_blocks_of(BLOCK_HOURS * fleet.hour)}
    records = []
    for title, steps in (("24 h", DAY_HOURS * fleet.hour), ("all", fleet.config.history_steps)):
        whole = fleet.wql(engine.forecast, steps)
        records.append({"history": title, "removed": "nothing", "wql": whole, "worse by %": 0.0})
        for kind, gaps in kinds.items():
            wql = fleet.wql(with_gaps(engine, gaps), steps)
            records.append({"history": title, "removed": kind, "wql": wql, "worse by %": 100 * (wql / whole - 1)})
    return pd.DataFrame(records)


def unknown_table(fleet: UnseenServers, engine: Engine, model: ForecastModel) -> pd.DataFrame:
    """WQL by length of history: true profile, unknown profile, random embeddings."""
    records = []
    for hours in HISTORIES_HOURS:
        steps = hours * fleet.hour
        records.append(
            {
                "history h": hours,
                "true profile": fleet.wql(engine.forecast, steps),
                f"unknown ({UNKNOWN})": fleet.wql(as_unknown(engine), steps),
                "random embedding": random_embedding_wql(fleet, model, steps),
            }
        )
    return pd.DataFrame(records)


def show(title: str, table: pd.DataFrame, index: bool = False) -> None:
    """Print a table with its title."""
    print(f"\n{title}\n{table.to_string(index=index, float_format=lambda value: f'{value:.3f}')}")


def measure(engine: Engine, model_dir: Path, servers: int, origins: int) -> dict[str, Any]:
    """Run all checks and print their tables; returns the content of the JSON line."""
    fleet = UnseenServers(engine, servers, origins)
    histories = history_lengths(fleet.config.step_seconds)
    scores_of = {history: fleet.scores(engine.forecast, steps) for history, steps in histories.items()}
    covered = scores_of[f"{DAY_HOURS} h"][["wql", "accuracy", "coverage_80", "coverage_96"]]
    show("Calibration: 24 h of history, coverage in %", covered, index=True)
    by_history = calibration_by_history(scores_of)
    show("By length of history: mean over metrics, and the metric with the largest deviation", by_history)
    gaps = gaps_table(fleet, engine)
    show(f"Gaps: {100 * REMOVED_SHARE:.0f} % of the history's rows removed", gaps)
    off = {band: (covered[f"coverage_{band}"].drop(MEAN) - band).abs().max() for band in (80, 96)}
    result: dict[str, Any] = {
        "model": engine.model_id,
        "servers": servers,
        "origins": origins,
        "coverage": json.loads(covered.to_json(orient="index", double_precision=4)),
        "coverage_off_by_points": {str(band): round(float(value), 2) for band, value in off.items()},
        "coverage_by_history": json.loads(by_history.to_json(orient="records", double_precision=4)),
        "target_points": TARGET_POINTS,
        "gaps": json.loads(gaps.to_json(orient="records", double_precision=4)),
        "target_worse_percent": TARGET_WORSE_PERCENT,
    }
    if engine.config.profiles:
        unknown = unknown_table(fleet, engine, load_model(model_dir.resolve(), engine.config))
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
