"""The starter model on fleets that it has never seen: each source left out of its training, in turn.

    OMP_NUM_THREADS=1 python benchmarks/life/starter.py                     # 600 steps each: half an hour
    OMP_NUM_THREADS=1 python benchmarks/life/starter.py --steps 60          # a quick look
    OMP_NUM_THREADS=1 python benchmarks/life/starter.py --sources smd_fleet

For each source two models are trained with the same number of steps: the starter model's recipe on the four other
sources, and one on the source itself, with a quarter of its servers (of slices_public: of the hosts) held out. Both
forecast these servers every 8 hours of the last 30 % of the time, which neither was trained on, and so do the
baselines. Metrics that no other source has (the simulator's latency) are left out. The source's model has its servers'
profiles and peers; the starter model has them only for roles that are one of the seven profiles. A Markdown table goes
to stdout; the last line is JSON: WQL, and WQL divided by that of the best baseline.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tft_trainer  # noqa: E402
from benchmarks.life.starter_sources import RECIPE, SOURCES, STEPS, load, together  # noqa: E402
from benchmarks.real_roles import folds_of  # noqa: E402
from fleet_forecast.commands import training_job, training_run  # noqa: E402
from fleet_forecast.contract.specs import METRICS  # noqa: E402
from fleet_forecast.evaluation.backtest import (  # noqa: E402
    MEAN,
    MODEL,
    BacktestPlan,
    backtest,
    best_baseline,
    model_forecasts,
)
from fleet_forecast.inference.batch import grid_for  # noqa: E402
from fleet_forecast.inference.engine import Engine  # noqa: E402
from fleet_forecast.inference.torch_backend import torch_run  # noqa: E402
from fleet_forecast.training.job import Job  # noqa: E402
from server_profiles import BUILT_IN_RULES  # noqa: E402

STARTER = "starter, not trained on it"
HOST_SEPARATOR = {"slices_public": ":"}


def trained(frame: pd.DataFrame, flags: Sequence[str]) -> tuple[Job, Engine]:
    """The job of some rows and flags of tft_trainer.py, and its model, without the evaluation of the script."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.parquet"
        frame.to_parquet(data, index=False)
        arguments = tft_trainer.build_parser().parse_args(
            [*RECIPE, *flags, "--training-dir", str(data), "--models-dir", folder]
        )
        job = training_job.prepare(training_job.read(arguments), arguments)
        state = training_run.train(job, training_run.open_checkpoint(job, arguments), arguments)
    return job, Engine(job.config("benchmark"), torch_run(state.model))


def scores(frame: pd.DataFrame, job: Job, own: Engine, starter: Engine) -> pd.DataFrame:
    """Scores of the source's model (MODEL), of the starter and of the baselines on the source's held-out servers."""
    rows, origins = job.split.unseen_servers, job.test_origins()
    spec, levels = job.spec, own.config.quantiles
    peers = job.peers if job.scaling.peer_prior is not None else None
    plan = BacktestPlan(job.grid, rows, origins, spec.horizon_steps, levels, peers)
    compared = backtest(plan, own.forecast, spec.history_steps)
    grid = grid_for(frame, starter.config, BUILT_IN_RULES)
    of_starter = BacktestPlan(grid, rows, origins, spec.horizon_steps, levels, grid.peers(job.split.observed_servers))
    columns = [grid.metrics.index(metric) for metric in job.grid.metrics]
    forecasts = model_forecasts(of_starter, starter.forecast, starter.config.history_steps)[:, :, columns]
    return compared.with_forecast(STARTER, forecasts).scores()


def left_out(name: str, frames: dict[str, pd.DataFrame], steps: int, seed: int) -> dict[str, Any]:
    """Train without a source and on it; WQL by method, and the best baseline's name."""
    started = time.process_time()
    length = ["--steps", str(steps), "--seed", str(seed)]
    others = together({other: frame for other, frame in frames.items() if other != name})
    _, starter = trained(others, length)
    lacking = [metric for metric in METRICS if metric in frames[name] and metric not in starter.config.targets]
    frame = frames[name].drop(columns=lacking)
    with_roles = frame if "profile" in frame else frame.assign(profile="all")
    held_out = folds_of(with_roles, 1, HOST_SEPARATOR.get(name))[0].held_out
    job, own = trained(frame, [*length, "--train-fraction", "0.7", "--holdout-servers", ",".join(held_out)])
    table = scores(frame, job, own, starter)
    methods = table[table["metric"] == MEAN].set_index("method")
    best = best_baseline(table[table["method"] != STARTER])
    wql, coverage = methods["wql"].astype(float), methods["coverage_80"].astype(float)
    return {
        "servers": len(job.split.unseen_servers),
        "metrics": list(job.grid.metrics),
        "best_baseline": best,
        "wql": {method: round(value, 5) for method, value in wql.items()},
        "ratio": {method: round(value / wql[best], 4) for method, value in wql.items()},
        "coverage_80": {method: round(float(coverage[method]), 1) for method in (MODEL, STARTER)},
        "processor_minutes": round((time.process_time() - started) / 60, 1),
    }


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """WQL divided by that of the best baseline, by source and method."""
    methods = list(next(iter(results.values()))["ratio"])
    methods = [STARTER, MODEL, *(method for method in methods if method not in (STARTER, MODEL))]
    names = [{MODEL: "trained on it"}.get(method, method) for method in methods]
    lines = [f"| source | unseen servers | {' | '.join(names)} | 80 % band of the starter covers % |"]
    lines.append("|---|---|" + "---|" * (len(methods) + 1))
    for source, found in results.items():
        cells = [f"{found['ratio'][method]:.2f}" for method in methods]
        lines.append(f"| `{source}` | {found['servers']} | {' | '.join(cells)} | {found['coverage_80'][STARTER]:.1f} |")
    means = [np.mean([found["ratio"][method] for found in results.values()]) for method in methods]
    lines.append(f"| mean | | {' | '.join(f'{mean:.2f}' for mean in means)} | |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and score; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and windows (%(default)s)")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES, help="which to leave out (all)")
    arguments = parser.parse_args(argv)
    frames = {name: load(name) for name in SOURCES}
    results = {}
    for name in arguments.sources:
        results[name] = left_out(name, frames, arguments.steps, arguments.seed)
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr)
    print(f"{markdown(results)}\n")
    print(json.dumps({"steps": arguments.steps, "seed": arguments.seed, "sources": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
