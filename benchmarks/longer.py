"""Does longer training hurt? One budget, twice it and four times it, judged on later days and on servers never seen.

    python benchmarks/longer.py                              # Bitbrains, about ten minutes on one core
    python benchmarks/longer.py --steps 100 --times 1,2      # a quick look
    python benchmarks/longer.py --data my_fleet.parquet

Each run is a whole training with a learning-rate schedule of its own. Three sets of weights come out of it: the ones
the trainer keeps (averaged, the best check on the validation days), the averaged ones of the last step, and the plain
ones of the last step. A table goes to stdout, WQL divided by the best baseline's; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tft_trainer  # noqa: E402
from benchmarks.real_servers import held_out_names  # noqa: E402
from data_contract import ContractError, DataFileError  # noqa: E402
from fleet_forecast.evaluation.backtest import MODEL, best_baseline  # noqa: E402
from fleet_forecast.features.grid import GridError  # noqa: E402
from fleet_forecast.training.checkpoint import Checkpoint  # noqa: E402
from fleet_forecast.training.job import Job  # noqa: E402
from fleet_forecast.training.split import SplitError, split_fleet  # noqa: E402
from fleet_forecast.training.trainer import fit  # noqa: E402
from fleet_forecast.training.trainer_state import Keeper, put_weights  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

DATA = ROOT / "../shared/data/bitbrains_public.parquet"
WEIGHTS = {"best": "kept", "average": "last, averaged", "weights": "last"}  # groups of a run's tensors


def load_job(path: Path, seed: int) -> Job:
    """Read, lay out and split the data as the trainer does, a quarter of the servers held out."""
    held_out = ",".join(held_out_names(path, 1)[0])
    flags = ["--training-dir", str(path), "--holdout-servers", held_out, "--seed", str(seed)]
    arguments = tft_trainer.build_parser().parse_args(flags)
    data = tft_trainer.read(arguments)
    grid, spec = tft_trainer.lay_out(data, arguments)
    split = split_fleet(grid, spec, arguments.train_fraction, arguments.holdout_servers, arguments.seed)
    profiles = tft_trainer.choose_profiles(data, grid, split, arguments)
    return tft_trainer.plan(grid, spec, split, profiles, arguments)


def train(job: Job, steps: int) -> list[dict[str, Any]]:
    """Train for so many steps; a record per set of weights and kind of server."""
    job = replace(job, settings=replace(job.settings, steps=steps))
    model = job.fresh_model()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint.new(Path(folder), {})
        run = fit(model, job.source, job.split, job.settings, Keeper("training", checkpoint))
        tensors = checkpoint.parts["training"].tensors
    records = []
    for group, title in WEIGHTS.items():
        prefix = f"{group}."
        put_weights(model, {name.removeprefix(prefix): of for name, of in tensors.items() if name.startswith(prefix)})
        for servers, scores in job.scores(model).items():
            means = scores[scores["metric"] == "mean"].set_index("method")["wql"]
            records.append(
                {
                    "steps": run.steps,
                    "weights": title,
                    "servers": servers,
                    "ratio": round(float(means[MODEL] / means[best_baseline(scores)]), 4),
                    "stopped_by": run.stopped_by,
                    "minutes": round(run.seconds / 60, 2),
                }
            )
    return records


def main(argv: Sequence[str] | None = None) -> int:
    """Train each budget and print the table; returns 0 when done, 1 if the data cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="file or folder (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="optimisation steps of the first budget (%(default)s)")
    parser.add_argument("--times", default="1,2,4", help="budgets, as multiples of it (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        times = [int(text) for text in arguments.times.split(",")]
    except ValueError:
        parser.error(f"--times {arguments.times}: give whole numbers such as 1,2,4")
    if arguments.steps < 1 or min(times) < 1:
        parser.error("--steps and --times: give numbers above 0")
    torch.manual_seed(arguments.seed)
    try:
        job = load_job(arguments.data.resolve(), arguments.seed)
    except (ContractError, DataFileError, GridError, SplitError, tft_trainer.TrainingError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    records = [record for many in times for record in train(job, arguments.steps * many)]
    table = pd.DataFrame.from_records(records)
    print(table.pivot(index=["servers", "weights"], columns="steps", values="ratio").to_string())
    print(json.dumps({"data": arguments.data.stem, "runs": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
