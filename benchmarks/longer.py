"""Effect of longer training: one, two and four times a number of steps, scored on training and unseen servers.

    python benchmarks/longer.py                              # Bitbrains, about ten minutes on one core
    python benchmarks/longer.py --steps 100 --times 1,2      # a quick look
    python benchmarks/longer.py --data my_fleet.parquet

Each run is a complete training with a learning-rate schedule of its own. Three sets of its weights are scored in the
test period: the EMA with the best validation loss (which the trainer keeps), the EMA of the last step, and the weights
of the last step. A table of WQL divided by the best baseline's goes to stdout; the last line is JSON.
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
from fleet_forecast.commands import training_job  # noqa: E402
from fleet_forecast.evaluation.backtest import MODEL, best_baseline  # noqa: E402
from fleet_forecast.features.grid import GridError  # noqa: E402
from fleet_forecast.training.checkpoint import Checkpoint, Checkpointer  # noqa: E402
from fleet_forecast.training.job import Job  # noqa: E402
from fleet_forecast.training.split import TrainingError  # noqa: E402
from fleet_forecast.training.trainer import Trainer  # noqa: E402
from fleet_forecast.training.trainer_state import load_weights  # noqa: E402

# --- settings -------------------------------------------------------------------------------------------------------

DATA = ROOT / "../shared/data/bitbrains_public.parquet"
WEIGHTS = {"best": "best EMA", "ema": "last EMA", "weights": "last weights"}  # groups of TrainerTensors.state_dict


def load_job(path: Path, seed: int) -> Job:
    """The trainer's job for the data, with a quarter of the servers held out."""
    held_out = ",".join(held_out_names(path, 1)[0])
    flags = ["--training-dir", str(path), "--holdout-servers", held_out, "--seed", str(seed)]
    arguments = tft_trainer.build_parser().parse_args(flags)
    return training_job.prepare(training_job.read(arguments), arguments)


def train(job: Job, steps: int) -> list[dict[str, Any]]:
    """Train for a number of steps; returns a record per set of weights and group of servers."""
    job = replace(job, settings=replace(job.settings, steps=steps))
    model = job.fresh_model()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint.new(Path(folder), {})
        run = Trainer(model, job.training_data, job.settings, Checkpointer("training", checkpoint)).fit()
        tensors = checkpoint.parts["training"].tensors
    records = []
    for group, title in WEIGHTS.items():
        prefix = f"{group}."
        load_weights(model, {name.removeprefix(prefix): of for name, of in tensors.items() if name.startswith(prefix)})
        for servers, of_group in job.test_evaluation(model).items():
            means = of_group.scores[of_group.scores["metric"] == "mean"].set_index("method")["wql"]
            records.append(
                {
                    "steps": run.steps,
                    "weights": title,
                    "servers": servers,
                    "ratio": round(float(means[MODEL] / means[best_baseline(of_group.scores)]), 4),
                    "stopped_by": run.stopped_by,
                    "minutes": round(run.seconds / 60, 2),
                }
            )
    return records


def main(argv: Sequence[str] | None = None) -> int:
    """Train with each number of steps and print the table; returns 1 if the data cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="file or folder (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="optimisation steps of the first run (%(default)s)")
    parser.add_argument("--times", default="1,2,4", help="runs, as multiples of --steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and windows (%(default)s)")
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
    except (ContractError, DataFileError, GridError, TrainingError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    records = [record for multiple in times for record in train(job, arguments.steps * multiple)]
    table = pd.DataFrame.from_records(records)
    print(table.pivot(index=["servers", "weights"], columns="steps", values="ratio").to_string())
    print(json.dumps({"data": arguments.data.stem, "runs": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
