"""Training throughput in windows a second, compared with stock pytorch-forecasting in the same process.

    python benchmarks/training.py                 # about three minutes; JSON is the last line
    python benchmarks/training.py --rounds 1      # a quick look
    python benchmarks/training.py --device cuda   # on a GPU

Both implementations train the same network (six targets, hidden size 32, 288 + 96 steps, the same variables) with
dropout, backpropagation and AdamW. Stock runs its own data set and loader at fixed encoder lengths (checked), at the
best of several batch sizes. Ours runs the trainer's steps at full context. Rounds alternate between the two, so that
other load on the machine affects both; the reported ratio is the median over rounds.

Effect of each optimisation, in windows a second on one CPU (AVX-512, batches of 64; stock: about 70):

    one matrix product per kind of variable, embedding lookup, fused attention             182
    each distinct measured value embedded once, one scatter-add, one random byte per mask  308
    fused AdamW                                                                            330
    flattened parameters                   10 % less time per step (329 -> 280 ms on two CPUs)
    windows of the next batch in a thread  with an idle CPU (50 pairs, one torch thread) loading takes 0.5 instead of
                                           1.7 % of a step; without one there is no effect
    allocator keeps freed memory           10 % less time per step (361 -> 327 ms, 40 alternating pairs)
    bfloat16 (autocast)                    no gain: 227 instead of 290, conversions take the time
    torch.compile around the LSTM          no gain: 190 instead of 187, after 190 s of compilation
    half a batch in each of two threads    no gain: 232 and 243 ms a step instead of 193 and 232
    half a batch in each of two processes  198 to 206 ms instead of 206 to 237, loading and AdamW included: 1.1 times as
                                           fast, with two random states to save and resume
    a batch in each of two processes       210 ms for both instead of 190 for one; the batch size is no longer 64

Compilation was measured before the second line: dropout's random numbers prevent the compiled loops from being
vectorised. The last three lines were measured on two CPUs: torch has one thread in each part, and two threads for the
batch it is compared with; times are from several runs. Half a batch takes 0.6 of the time of a batch, as many
operations are small.

On a GPU (H100, torch 2.11 with CUDA 13.0, 16 CPUs) stock does not benefit from larger batches: each window takes four
milliseconds, with one process as with four loader processes (at best 239 windows a second, batches of 256). Ours, in
batches of 64 and 1,024 windows:

    the CPU implementation, windows cut on the GPU, CUDA graphs                              3,600     27,700
    attention in bfloat16 without a mask, products in TF32                                   5,200     32,000
    with cold-start shrinkage and sample weights (256: 18,100)                               6,300     31,900

Not used: cuDNN's LSTM without its gradients of weights and biases. These gradients take seven times as long as the
other parts (4 of 33 ms), but avoiding them needs torch functions that are not documented.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fleet_forecast.contract.calendar import DEFAULT_CALENDAR
from fleet_forecast.contract.specs import METRIC_SPECS, METRICS
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.windows import CALENDAR_SIZES, WindowSpec
from fleet_forecast.network.build import build_network, dataset_of
from fleet_forecast.network.model import ForecastModel
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.scenario import Scenario
from fleet_forecast.simulation.simulator import simulate
from fleet_forecast.training.batches.source import BatchPlan, WindowSelection, WindowSource
from fleet_forecast.training.gradients import Gradients, Prepared, gradients_of
from fleet_forecast.training.trainer_state import TrainerTensors

PROFILES = ("conductor_mgmt", "data_ingest", "database", "generic", "ml_compute", "risk_analytics", "web_api")
SPEC = WindowSpec(tuple(METRICS), 300, DEFAULT_CALENDAR, 288, 96)
STOCK_BATCH_SIZES = {"cpu": (32, 64, 128), "cuda": (64, 256)}
OUR_BATCH_SIZES = {"cpu": (64,), "cuda": (64, 256, 1024)}
STOCK_LOADER_PROCESSES = {"cpu": 0, "cuda": 4}
MIN_STEPS, MIN_SECONDS = 4, 1.0  # of a measurement
WARM_UP_STEPS = 4
LOADER_TURNS = 60  # timed pairs of a step and a batch


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; print a line per round and JSON last. Returns 1 if the requested GPU is not available."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each implementation (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch finds no GPU on this machine; use --device cpu", file=sys.stderr)
        return 1
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    source = simulated_source()
    with ExitStack() as stack:
        result = compare(source, torch.device(arguments.device), arguments.rounds, stack)
    if arguments.device == "cpu":
        result |= loader_shares(source)
    print(json.dumps(result))
    return 0


def compare(source: WindowSource, device: torch.device, rounds: int, stack: ExitStack) -> dict[str, Any]:
    """Windows a second of both implementations at each batch size, and the ratio of the best two."""
    sides: dict[str, Callable[[], float]] = {}
    for size in STOCK_BATCH_SIZES[device.type]:
        sides[f"stock_{size}"] = throughput_of(stock_step(size, device), device)
    for size in OUR_BATCH_SIZES[device.type]:
        sides[f"fleet_{size}"] = throughput_of(our_step(source, size, device, stack), device)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, windows_per_second in sides.items():
            rates[name].append(windows_per_second())
        print(f"round {number + 1}: " + ", ".join(f"{n} {r[-1]:.0f}/s" for n, r in rates.items()), file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    stock, ours = (
        max((n for n in sides if n.startswith(side)), key=medians.__getitem__) for side in ("stock", "fleet")
    )
    ratios = [our / their for our, their in zip(rates[ours], rates[stock], strict=True)]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in build_network(SPEC, PROFILES, 32).parameters()),
        "windows_per_second": {name: round(median, 1) for name, median in medians.items()},
        "best": [stock, ours],
        "ratio": round(statistics.median(ratios), 2),
        "ratio_per_round": [round(ratio, 2) for ratio in ratios],
    }


def simulated_source() -> WindowSource:
    """Two simulated servers of every profile over a week: our speed depends on the number of distinct values."""
    fleet = Fleet.of(dict.fromkeys(PROFILES, 2), seed=0)
    start = np.datetime64("2026-03-02T00:00:00", "s")
    values = simulate(Scenario(fleet, start, 7 * 288, SPEC.step_seconds)).metrics
    profiles = tuple(str(fleet.profile(row)) for row in range(len(fleet)))
    kinds = {name: METRIC_SPECS[name].kind for name in METRICS}
    scaling = fit_scaling(values, kinds, profiles, SPEC.context_steps)
    return WindowSource(
        FleetGrid(fleet.names, profiles, tuple(METRICS), start, SPEC.step_seconds, values), SPEC, scaling
    )


def throughput_of(step: Callable[[], int], device: torch.device) -> Callable[[], float]:
    """Warm up once; the returned function measures windows a second over some optimisation steps."""
    for _ in range(WARM_UP_STEPS):
        step()

    def measure() -> float:
        finish(device)
        started, windows, steps = time.perf_counter(), 0, 0
        while steps < MIN_STEPS or time.perf_counter() - started < MIN_SECONDS:
            windows, steps = windows + step(), steps + 1
        finish(device)
        return windows / (time.perf_counter() - started)

    return measure


def finish(device: torch.device) -> None:
    """Wait for all queued kernels."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def our_step(source: WindowSource, batch_size: int, device: torch.device, stack: ExitStack) -> Callable[[], int]:
    """One step of the trainer: cut a batch, forward, pinball loss, backward, AdamW, EMA."""
    gradients, train = our_trainer(source, batch_size, device, stack)
    batches = gradients.prefetch(full_context_plans(batch_size))

    def step() -> int:
        _, ready = next(batches)
        train(ready)
        return batch_size

    return step


def our_trainer(
    source: WindowSource, batch_size: int, device: torch.device, stack: ExitStack
) -> tuple[Gradients, Callable[[Prepared], None]]:
    """The trainer's gradients, and a step with a prepared batch."""
    network = build_network(SPEC, PROFILES, 32)
    model = ForecastModel(network, SPEC, source.scaling).to(device).train()
    tensors = TrainerTensors(model, 1e-3, 0.01)
    gradients = stack.enter_context(gradients_of(model, tensors.parameters, source, batch_size))

    def train(ready: Prepared) -> None:
        gradients.compute(ready)
        torch.nn.utils.clip_grad_norm_(tensors.parameters, 1.0)
        tensors.optimizer.step()
        tensors.update_ema(0.995)

    return gradients, train


def full_context_plans(batch_size: int) -> Iterator[BatchPlan]:
    """Batches of random windows with full context and without masking, without end."""
    random, metrics = np.random.default_rng(1), len(METRICS)
    while True:
        origins = random.integers(SPEC.context_steps, 7 * 288 - SPEC.horizon_steps - 1, batch_size)
        rows = random.integers(0, 2 * len(PROFILES), batch_size)
        yield BatchPlan(
            number=0,
            selection=WindowSelection(rows, origins, SPEC.context_steps, np.full(batch_size, SPEC.history_steps)),
            position_noise=random.normal(0, 1, (batch_size, 2 * metrics)).astype(np.float32),
            metric_order=np.tile(np.arange(metrics), (batch_size, 1)),
        )


def stock_step(batch_size: int, device: torch.device) -> Callable[[], int]:
    """One step of stock pytorch-forecasting: its loader, its forward, its loss, backward, AdamW."""
    model = build_network(SPEC, PROFILES, 32, TemporalFusionTransformer).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    processes = STOCK_LOADER_PROCESSES[device.type]
    loader = stock_dataset().to_dataloader(
        train=True, batch_size=batch_size, num_workers=processes, persistent_workers=processes > 0
    )
    batches = endless(loader)

    def step() -> int:
        x, y = next(batches)
        if not (x["encoder_lengths"] == SPEC.context_steps).all() or x["encoder_cont"].shape[1] != SPEC.context_steps:
            raise RuntimeError(f"encoder lengths are {x['encoder_lengths'].unique().tolist()}, not all 288")
        x, y = move_data_to_device((x, y), device)
        optimizer.zero_grad(set_to_none=True)
        model.loss(model(x)["prediction"], y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return len(x["encoder_lengths"])

    return step


def stock_dataset() -> TimeSeriesDataSet:
    """A week of random values for as many series, with the variables of SPEC, at fixed lengths.

    Stock's speed does not depend on the values.
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
    """Batches without end; the loader drops the incomplete last batch of an epoch."""
    while True:
        yield from loader


def loader_shares(source: WindowSource) -> dict[str, Any]:
    """Cost of loading (cutting a batch) as a share of a training step on a CPU: medians over turns.

    loader_share_of_step: time of a batch / time of a step, one after the other. loader_share_of_processor_time: the
    same in CPU time, which other load hardly changes. loader_share_overlapped: relative increase of a step's time while
    the next batch is cut in parallel, as in training; with quartiles, as single steps vary by more than that.
    """
    size, turns = OUR_BATCH_SIZES["cpu"][0], []
    with ExitStack() as stack:
        gradients, train = our_trainer(source, size, torch.device("cpu"), stack)
        plans = full_context_plans(size)
        known, following = gradients.prepare(next(plans)), gradients.prepare(next(plans))
        for _ in range(WARM_UP_STEPS + LOADER_TURNS):
            new, _ = following, following.result()
            step, step_processor = timed(partial(train, known), time.process_time)
            cut, cut_processor = timed(partial(source.augmented_batch, next(plans)), time.thread_time)
            following = gradients.prepare(next(plans))
            busy, _ = timed(partial(train, new), time.process_time)
            turns.append((cut / step, cut_processor / step_processor, busy / step - 1))
    low, median, high = np.percentile(turns[WARM_UP_STEPS:], [25, 50, 75], axis=0).round(4).tolist()
    return {
        "loader_share_of_step": median[0],
        "loader_share_of_processor_time": median[1],
        "loader_share_overlapped": median[2],
        "loader_share_overlapped_quartiles": [low[2], high[2]],
    }


def timed(work: Callable[[], object], processor_seconds: Callable[[], float]) -> tuple[float, float]:
    """Elapsed and processor seconds of `work`."""
    began, processor_began = time.perf_counter(), processor_seconds()
    work()
    return time.perf_counter() - began, processor_seconds() - processor_began


if __name__ == "__main__":
    sys.exit(main())
