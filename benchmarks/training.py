"""Windows a second in training, against stock pytorch-forecasting on the same processors in the same run.

    python benchmarks/training.py                 # about three minutes; JSON is the last line
    python benchmarks/training.py --rounds 1      # a quick look

Both sides train the same network (six targets, hidden size 32, 288 + 96 steps, the same variables) with dropout,
back-propagation and AdamW. Stock runs its own data set and loader at fixed encoder lengths (checked), at the best of
several batch sizes; ours runs the trainer's sampler at full context. Rounds alternate between the sides, so that other
load on the machine meets both; the ratio is the median over rounds.

What each idea gave, in windows a second of one processor (AVX-512, batches of 64; stock about 70):

    variables of a kind in one product, flags and categories looked up, attention without scores     182
    each different measured value evaluated once, one gathering sum, a byte of randomness a mask     308
    AdamW in one kernel                                                                              330
    bfloat16 (autocast)                               nothing: 227 instead of 290, time goes into conversions
    torch.compile around the LSTM                     nothing: 190 instead of 187, after 190 s of compilation

The last line was measured before the second: dropout's random numbers keep the compiled loops from being vectorised.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from forecasting.grid import FleetGrid
from forecasting.model import ForecastModel, build_network, dataset_of, pinball_loss, window_tensors
from forecasting.sampling import Batch, WindowSource
from forecasting.scaling import fit_scaling
from forecasting.windows import CALENDAR_SIZES, WindowSpec
from simulation.fleet import Fleet
from simulation.physics import Scenario, simulate

METRICS = ("cpu_pct", "mem_pct", "disk_io_mb_s", "net_in_mb_s", "net_out_mb_s", "latency_ms")
PROFILES = ("conductor_mgmt", "data_ingest", "database", "generic", "ml_compute", "risk_analytics", "web_api")
SPEC = WindowSpec(METRICS, 300, "America/New_York", 288, 96)
STOCK_BATCH_SIZES = (32, 64, 128)
OUR_BATCH_SIZE = 64
STEPS = 4  # optimisation steps per side and round
WARM_UP_STEPS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a line per side, and JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often both sides are measured (%(default)s)")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    grid = simulated_fleet()
    sides: dict[str, Callable[[], float]] = {}
    for batch_size in STOCK_BATCH_SIZES:
        sides[f"stock_{batch_size}"] = steps_of(*stock_side(batch_size))
    source = WindowSource(grid, SPEC, scaling_of(grid))
    sides["fleet"] = steps_of(*our_side(source, OUR_BATCH_SIZE))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name, windows_per_second in sides.items():
            rates[name].append(windows_per_second())
        print(f"round {number + 1}: " + ", ".join(f"{n} {r[-1]:.0f}/s" for n, r in rates.items()), file=sys.stderr)
    best_stock = max(STOCK_BATCH_SIZES, key=lambda size: statistics.median(rates[f"stock_{size}"]))
    ratios = [ours / stock for ours, stock in zip(rates["fleet"], rates[f"stock_{best_stock}"], strict=True)]
    result = {
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in build_network(SPEC, PROFILES, 32).parameters()),
        "windows_per_second": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "stock_best_batch_size": best_stock,
        "ratio": round(statistics.median(ratios), 2),
        "ratio_per_round": [round(ratio, 2) for ratio in ratios],
        "loader_share_of_step": round(loader_share(source), 4),
    }
    print(json.dumps(result))
    return 0


def simulated_fleet() -> FleetGrid:
    """Two servers of every profile over a week: our speed depends on how many different values there are."""
    fleet = Fleet.of(dict.fromkeys(PROFILES, 2), seed=0)
    start = np.datetime64("2026-03-02T00:00:00", "s")
    metrics = simulate(Scenario(fleet, start, 7 * 288, SPEC.step_seconds)).metrics
    profiles = tuple(str(fleet.profile(row)) for row in range(len(fleet)))
    return FleetGrid(fleet.names, profiles, METRICS, start, SPEC.step_seconds, metrics)


def scaling_of(grid: FleetGrid) -> Any:
    """The trainer's scaling on the simulated fleet."""
    percent = np.array([name.endswith("_pct") for name in METRICS])
    return fit_scaling(grid.values, METRICS, percent, grid.profiles, SPEC.context_steps, 3.0)


def steps_of(step: Callable[[], int], optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """A measurement: warm up once, then windows a second over STEPS optimisation steps."""
    for _ in range(WARM_UP_STEPS):
        step()

    def measure() -> float:
        started = time.perf_counter()
        windows = sum(step() for _ in range(STEPS))
        return windows / (time.perf_counter() - started)

    optimizer.zero_grad()
    return measure


def our_side(source: WindowSource, batch_size: int) -> tuple[Callable[[], int], torch.optim.Optimizer]:
    """One step of the trainer: gather a batch, forward, pinball loss, backward, AdamW."""
    model = ForecastModel(build_network(SPEC, PROFILES, 32), SPEC, source.scaling).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = full_context_batches(source, batch_size)

    def step() -> int:
        batch = next(batches)
        loss = pinball_loss(model.compressed_quantiles(*window_tensors(batch.windows)), torch.from_numpy(batch.targets))
        optimise(model, optimizer, loss)
        return len(batch.targets)

    return step, optimizer


def full_context_batches(source: WindowSource, batch_size: int) -> Iterator[Batch]:
    """Random windows with the whole context, for ever."""
    random = np.random.default_rng(1)
    while True:
        rows = random.integers(0, 2 * len(PROFILES), batch_size)
        origins = random.integers(SPEC.context_steps, 7 * 288 - SPEC.horizon_steps - 1, batch_size)
        known = np.full(batch_size, SPEC.history_steps)
        yield source.batch(rows, origins, SPEC.context_steps, known, np.zeros(batch_size, dtype=bool))


def stock_side(batch_size: int) -> tuple[Callable[[], int], torch.optim.Optimizer]:
    """One step of stock pytorch-forecasting: its loader, its forward, its loss, backward, AdamW."""
    dataset = stock_dataset()
    model = build_network(SPEC, PROFILES, 32, TemporalFusionTransformer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = endless(dataset.to_dataloader(train=True, batch_size=batch_size, num_workers=0))

    def step() -> int:
        x, y = next(batches)
        if not (x["encoder_lengths"] == SPEC.context_steps).all() or x["encoder_cont"].shape[1] != SPEC.context_steps:
            raise RuntimeError(f"encoder lengths are {x['encoder_lengths'].unique().tolist()}, not all 288")
        loss = model.loss(model(x)["prediction"], y)
        optimise(model, optimizer, loss)
        return len(x["encoder_lengths"])

    return step, optimizer


def stock_dataset() -> TimeSeriesDataSet:
    """A week of random values for as many series, with the variables of SPEC, at fixed lengths.

    Stock's speed does not depend on what the values are.
    """
    random = np.random.default_rng(0)
    steps, names = 7 * 288, [f"server{row:02d}" for row in range(2 * len(PROFILES))]
    frame = pd.DataFrame({"server": np.repeat(names, steps), "step": np.tile(np.arange(steps), len(names))})
    frame["profile"] = np.repeat(PROFILES * 2, steps)
    for name, size in CALENDAR_SIZES.items():
        frame[name] = [f"{code % size:02d}" for code in frame["step"]]
    statics = {name: np.repeat(random.normal(size=len(names)), steps) for name in SPEC.static_reals}
    varying = (*METRICS, *SPEC.encoder_reals, *SPEC.decoder_reals, "market_open")
    return dataset_of(
        frame.assign(**statics, **{name: random.uniform(0, 1, len(frame)) for name in varying}),
        SPEC,
        PROFILES,
        shortest_encoder=SPEC.context_steps,
        shortest_horizon=SPEC.horizon_steps,
    )


def endless(loader: Any) -> Iterator[Any]:
    """Batches for ever, the incomplete last one of an epoch left out."""
    while True:
        yield from loader


def optimise(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Backward and one AdamW step with clipped gradients."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def loader_share(source: WindowSource) -> float:
    """Time to gather a batch as a share of a whole step of ours."""
    step, _ = our_side(source, OUR_BATCH_SIZE)
    batches = full_context_batches(source, OUR_BATCH_SIZE)
    next(batches)
    step()
    started = time.perf_counter()
    for _ in range(STEPS):
        next(batches)
    gathered = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (gathered - started) / (time.perf_counter() - gathered)


if __name__ == "__main__":
    sys.exit(main())
