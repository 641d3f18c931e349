"""Training steps of several processes of one thread, of one process of several threads, and of one thread, on CPUs.

    python benchmarks/scale/ranks.py                    # two processes, two threads, one thread
    python benchmarks/scale/ranks.py --count 4 --turns 5
    python benchmarks/scale/ranks.py --sides one_thread,processes   # on a machine with other work

All compute the same batches of 64 windows (benchmarks/training.py): the processes a share of each, whose gradients
they add up. They take turns, each in new processes; start and first steps are not counted. Ratios are the time of a
step divided by that of the side `processes` in the same turn: above 1, processes are faster. Processor time is that of
all processes. On a machine with other work it is the figure to trust, but not of several threads, which wait for each
other at the cost of processor time; the load is in the result. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.training import WARM_UP_STEPS, full_context_plans, our_trainer, simulated_source  # noqa: E402
from fleet_forecast.flags import positive_int  # noqa: E402
from fleet_forecast.training.ranks.group import joined, wait_for_ranks  # noqa: E402

BATCH_SIZE = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in turns, print a line for each and JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=positive_int, default=2, help="processes, and threads (%(default)s)")
    parser.add_argument("--turns", type=positive_int, default=3, help="turns of each (%(default)s)")
    parser.add_argument("--steps", type=positive_int, default=20, help="training steps of a turn (%(default)s)")
    parser.add_argument("--sides", default="one_thread,threads,processes", help="comma-separated (%(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        print(json.dumps(timed_steps(arguments.steps)), flush=True)
        return 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(arguments.count)]
    all_sides = {
        "one_thread": ([sys.executable], 1),
        "threads": ([sys.executable], arguments.count),
        "processes": (torchrun, 1),
    }
    turns: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides.split(",")}
    for _ in range(arguments.turns):
        for side, of_side in turns.items():
            of_side.append(turn(*all_sides[side], arguments.steps))
            print(f"{side}: {of_side[-1]}", file=sys.stderr, flush=True)
    print(json.dumps({"cores": os.cpu_count(), "count": arguments.count, **summary(turns)}))
    return 0


def turn(launcher: Sequence[str], threads: int, steps: int) -> dict[str, float]:
    """Seconds of a step: the slowest process's wall time, and the processor time of all."""
    done = subprocess.run(
        [*launcher, __file__, "--worker", "--steps", str(steps)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    of_processes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {
        "wall_seconds": round(max(each["wall"] for each in of_processes) / steps, 4),
        "cpu_seconds": round(sum(each["cpu"] for each in of_processes) / steps, 4),
    }


def timed_steps(steps: int) -> dict[str, float]:
    """Wall and processor seconds of this process for some training steps."""
    with joined(), ExitStack() as stack:
        torch.manual_seed(0)
        gradients, train = our_trainer(simulated_source(), BATCH_SIZE, torch.device("cpu"), stack)
        batches = gradients.prefetch(full_context_plans(BATCH_SIZE))
        for _ in range(WARM_UP_STEPS):
            train(next(batches)[1])
        wait_for_ranks()
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            train(next(batches)[1])
        return {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu_began}


def summary(turns: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of each side, and its ratios to the side `processes`, by turn."""
    result: dict[str, Any] = {"load": round(os.getloadavg()[0], 1)}
    for side, of_side in turns.items():
        medians: dict[str, Any] = {name: statistics.median(each[name] for each in of_side) for name in of_side[0]}
        for name in list(medians):
            pairs = zip(of_side, turns.get("processes", []), strict=False)
            medians[f"ratio_{name}"] = [round(own[name] / processes[name], 2) for own, processes in pairs]
        result[side] = medians
    return result


if __name__ == "__main__":
    raise SystemExit(main())
