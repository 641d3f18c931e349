"""The model's WQL against a lower bound: the true predictive distribution of the simulator.

    python benchmarks/limit.py --model models/current     # about two minutes; JSON is the last line
    python benchmarks/limit.py --model models/current --origins 3 --servers 14

The model is one trained on a simulated fleet. The servers are unseen (another seed) and run without incidents or
outages. At each origin the simulator is forked 200 times: the same present, independent futures. Their quantiles are
the best possible forecast: they use the server's parameters and the state of its noise; the model uses 24 hours of
measurements, and what its peers did in the last week. The limit, the model, the model without peers and the baselines
are scored at the same quantiles on the same points: one more future, drawn independently of the forks. Origins are 37
hours apart, so that all hours and kinds of day occur.

Quantiles of a sample are a little worse than those of the distribution. The excess is inversely proportional to the
size of the sample, so scoring half of the forks measures it: the excess is printed, and the ratio without it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fleet_forecast.evaluation.backtest import MEAN, MODEL, Backtest, best_baseline  # noqa: E402
from fleet_forecast.evaluation.baselines import Observed, baseline_forecasts  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.model_config import ModelError  # noqa: E402
from fleet_forecast.simulation.fleet import Fleet  # noqa: E402
from fleet_forecast.simulation.metric_model import simulated  # noqa: E402
from fleet_forecast.simulation.scenario import Scenario, World  # noqa: E402
from fleet_forecast.simulation.simulator import Simulator  # noqa: E402
from server_profiles import ServerProfile  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

FORKS = 200
HISTORY_HOURS, PEER_HOURS = 24, 192
ORIGIN_EVERY_HOURS = 37
START = np.datetime64("2026-10-05T00:00:00", "s")  # a Monday; no market holiday in the weeks after it
FLEET_SEED, FIRST_NUMBER = 20_261_005, 501  # numbers that no other simulated fleet uses
LIMIT, HALF = "limit", ("half of the forks", "other half")
ALONE = "model, no peers"
TARGET_RATIO = 1.15


@dataclass(frozen=True)
class Origin:
    """One forecast origin; the arrays have the model's order of metrics and no NaN.

    past, history, future: float32 [server, step, metric]; history is the last day of the past. forks: float32 [fork,
    server, step, metric].
    """

    time: np.datetime64
    past: np.ndarray
    history: np.ndarray
    future: np.ndarray
    forks: np.ndarray


def unseen_fleet(servers: int) -> Fleet:
    """A fleet of all profiles in equal parts that no model was trained on."""
    share, rest = divmod(servers, len(ServerProfile))
    counts = {str(profile): share + (position < rest) for position, profile in enumerate(ServerProfile)}
    return Fleet.of(counts, FLEET_SEED, dict.fromkeys(counts, FIRST_NUMBER))


def origins_of(fleet: Fleet, engine: Engine, count: int) -> Iterator[Origin]:
    """Simulate the fleet from START on; fork the simulator at each origin."""
    config = engine.config
    hour = 3600 // config.step_seconds
    horizon, every, own = config.horizon_steps, ORIGIN_EVERY_HOURS * hour, HISTORY_HOURS * hour
    known = PEER_HOURS * hour
    steps = known + (count - 1) * every + horizon
    scenario = Scenario(fleet, START, steps, config.step_seconds, config.calendar, incident_rate=0.0, outage_rate=0.0)
    metrics = [simulated().positions[name] for name in config.targets]
    simulator = Simulator(World.of(scenario))
    seen = simulator.advance(known).metrics  # [metric, server, step]
    for number in range(count):
        forks = simulator.forks(horizon, range(number * FORKS, (number + 1) * FORKS))[..., metrics]
        past = seen[:, :, -known:]
        seen = np.concatenate([past, simulator.advance(min(every, steps - simulator.step)).metrics], axis=2)
        future = seen[:, :, known : known + horizon]
        time = scenario.timestamps(known + number * every - 1, 1)[0]
        past, future = (values[metrics].transpose(1, 2, 0) for values in (past, future))
        yield Origin(time, past, past[:, -own:], future, forks)


def forecasts_at(origin: Origin, engine: Engine, fleet: Fleet) -> dict[str, np.ndarray]:
    """Every method's quantiles at one origin: [server, horizon, metric, quantile]."""
    quantiles, horizon = engine.config.quantiles, engine.config.horizon_steps
    profiles = [str(fleet.profile(server)) for server in range(len(fleet))]
    step_seconds, steps = engine.config.step_seconds, origin.past.shape[1]
    start = origin.time.astype("datetime64[s]") - np.timedelta64((steps - 1) * step_seconds, "s")
    grid = FleetGrid(fleet.names, tuple(profiles), engine.config.targets, start, step_seconds, origin.past)
    peers = grid.peers()._replace(values=origin.past)
    samples = (origin.forks, origin.forks[: FORKS // 2], origin.forks[FORKS // 2 :])
    drawn = {
        name: np.moveaxis(np.quantile(forks, quantiles, axis=0), 0, -1).astype(np.float32)
        for name, forks in zip((LIMIT, *HALF), samples, strict=True)
    }
    model = {
        MODEL: engine.forecast(origin.history, profiles, origin.time, peers),
        ALONE: engine.forecast(origin.history, profiles, origin.time),
    }
    observed = Observed(origin.history, horizon, engine.config.spec.day_steps, quantiles)
    return model | drawn | baseline_forecasts(observed)


def run(engine: Engine, servers: int, count: int) -> tuple[Backtest, list[np.datetime64]]:
    """Backtest of all methods, and the origins' times; rows are servers, origins are numbered."""
    fleet = unseen_fleet(servers)
    parts: dict[str, list[np.ndarray]] = {}
    actual, times, changes = [], [], []
    for origin in tqdm(origins_of(fleet, engine, count), total=count, unit="origin", file=sys.stderr):
        for name, values in forecasts_at(origin, engine, fleet).items():
            parts.setdefault(name, []).append(values)
        actual.append(origin.future)
        times.append(origin.time)
        # The history is one day long: its first steps are one day before the horizon's.
        changes.append(np.abs(origin.future - origin.history[:, : origin.future.shape[1]]).mean(axis=1))
    made = Backtest(
        metrics=engine.config.targets,
        quantiles=engine.config.quantiles,
        rows=np.tile(np.arange(len(fleet)), count),
        origins=np.repeat(np.arange(count), len(fleet)),
        actual=np.concatenate(actual),
        seasonal_error=np.mean(changes, axis=0),
        forecasts={name: np.concatenate(values) for name, values in parts.items()},
    )
    return made, times


def table_of(scores: pd.DataFrame, best: str) -> pd.DataFrame:
    """One row per metric and the mean: WQL of limit, model and best baseline, ratios to the limit, coverage."""
    by_method = scores.set_index(["method", "metric"])
    shown = {LIMIT: LIMIT, MODEL: MODEL, ALONE: ALONE, best: best}
    table = pd.DataFrame({name: by_method.loc[name]["wql"] for name in shown})
    for name in (MODEL, ALONE, best):
        table[f"{name}/limit"] = table[name] / table[LIMIT]
    for band in (80, 96):
        for name in shown:
            table[f"{name} covers {band} %"] = by_method.loc[name][f"coverage_{band}"]
    return table


def by_origin(made: Backtest, times: Sequence[np.datetime64], timezone: str) -> pd.DataFrame:
    """One row per origin, in business time: mean WQL of limit and model and their ratio."""
    records = []
    for number, time in enumerate(times):
        means = _means(made.scores(made.origins == number))
        local = pd.Timestamp(time).tz_localize("UTC").tz_convert(timezone)
        limit, model = means[LIMIT], means[MODEL]
        records.append({"origin": f"{local:%a %H:%M}", "limit": limit, "model": model, "model/limit": model / limit})
    return pd.DataFrame(records)


def _means(scores: pd.DataFrame) -> dict[str, float]:
    means = scores[scores["metric"] == MEAN]
    return {str(method): float(wql) for method, wql in zip(means["method"], means["wql"], strict=True)}


def result_of(made: Backtest, times: Sequence[np.datetime64], engine: Engine) -> dict[str, Any]:
    """Print the tables; returns the content of the JSON line."""
    scores = made.scores()
    means = _means(scores)
    baselines = scores[~scores["method"].isin([LIMIT, ALONE, *HALF])]
    best = best_baseline(baselines)
    table, origins = table_of(scores, best), by_origin(made, times, engine.config.calendar.timezone)
    limit, model = means[LIMIT], means[MODEL]
    excess = float(np.mean([means[name] for name in HALF])) - limit
    print(
        f"Unseen servers, {HISTORY_HOURS} h of history: WQL of the model and of the true distribution ({FORKS} forks)"
    )
    print(table.to_string(float_format=lambda value: f"{value:.3f}"))
    print("\nBy origin (mean over metrics)")
    print(origins.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"\nexcess of {FORKS} draws over the distribution itself: {100 * excess / limit:.2f} % of the limit")
    ratios = origins["model/limit"]
    return {
        "model": engine.model_id,
        "servers": int(made.rows.max()) + 1,
        "origins": len(times),
        "wql": {name: round(value, 5) for name, value in means.items() if name not in HALF},
        "model_over_limit": round(model / limit, 4),
        "model_over_limit_standard_error": round(float(ratios.std() / len(ratios) ** 0.5), 4)
        if len(ratios) > 1
        else None,
        "model_over_limit_without_excess": round(model / (limit - excess), 4),
        "model_without_peers_over_limit": round(means[ALONE] / limit, 4),
        "target": TARGET_RATIO,
        "best_baseline": best,
        "best_baseline_over_limit": round(means[best] / limit, 4),
        "by_metric": json.loads(table.drop(index=MEAN).to_json(orient="index", double_precision=4)),
        "limit_excess_percent": round(100 * excess / limit, 3),
    }


def arguments_of(argv: Sequence[str] | None, description: str | None, origins: int, servers: int) -> argparse.Namespace:
    """--model, --origins and --servers, with the defaults given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models/current", help="model directory (models/current)")
    parser.add_argument("--origins", type=int, default=origins, help="moments to forecast from (%(default)s)")
    parser.add_argument("--servers", type=int, default=servers, help="servers, of all profiles (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.origins < 1 or arguments.servers < len(ServerProfile):
        parser.error(f"give at least 1 as --origins and {len(ServerProfile)}, one of each profile, as --servers")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 0 when done, 1 if the model cannot be used, 2 for wrong usage."""
    arguments = arguments_of(argv, __doc__, origins=14, servers=91)
    try:
        engine = Engine.load(arguments.model, device="cpu")
    except ModelError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(json.dumps(result_of(*run(engine, arguments.servers, arguments.origins), engine)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
