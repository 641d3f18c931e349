"""The training loop: AdamW with warm-up and cosine decay, averaged weights, the best of them on later days kept.

More training is not always better: a network learns the month it is shown by heart. So the weights that are judged
and kept are an exponential average over the steps (Polyak & Juditsky 1992; Izmailov et al. 2018), judged on days after
those trained on, and training ends when these no longer improve.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import numpy as np
import torch
from tqdm import tqdm

from forecasting.model import ForecastModel, pinball_loss, window_tensors
from forecasting.sampling import HANDICAPS, Batch, Handicaps, WindowSource, batches_per_epoch, draw_history, epoch

WARM_UP = 0.05  # share of the run over which the learning rate rises
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
AVERAGING_DECAY = 0.995  # per step, of the weights that are judged and kept
VALIDATION_BATCHES, VALIDATION_BATCH_SIZE = 12, 64
CHECKS_PER_EPOCH = 4
PATIENCE_CHECKS = 12  # checks without improvement before training ends

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Split:
    """Who and what is trained on. Rows are grid rows; steps are grid steps, `*_end` not included.

    Training: servers `seen`, targets in [0, fit_end). Validation: `seen`, targets in [fit_end, train_end).
    Test: `seen` and `unseen` apart, targets in [train_end, steps).
    """

    seen: np.ndarray
    unseen: np.ndarray
    fit_end: int
    train_end: int


@dataclass(frozen=True)
class FitSettings:
    """How long and how to train; see the trainer's flags. The last two are options of benchmarks/ablations.py."""

    epochs: int
    batch_size: int
    learning_rate: float
    max_seconds: float
    seed: int
    averaging_decay: float = AVERAGING_DECAY
    handicaps: Handicaps = HANDICAPS


@dataclass
class Fit:
    """How a training run went; `model` has the kept weights. `course` has a point per check on the validation days."""

    model: ForecastModel
    windows: int = 0
    seconds: float = 0.0
    epochs: float = 0.0
    best_validation_loss: float = float("inf")
    stopped_by: str = "epochs"
    course: list[dict[str, float]] = field(default_factory=list)


def fit(model: ForecastModel, source: WindowSource, split: Split, settings: FitSettings) -> Fit:
    """Train `model` in place on the split's training part, with a progress bar on stderr.

    The learning rate follows the share of the run that is over, in epochs or in minutes, whichever is further. Ctrl-C
    ends training in good order, a second one raises KeyboardInterrupt.
    """
    run = Fit(model)
    random = np.random.default_rng(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    validation = validation_batches(source, split, settings.seed)
    per_epoch = batches_per_epoch(source.spec, len(split.seen), split.fit_end - 1, settings.batch_size)
    check_every = max(1, per_epoch // CHECKS_PER_EPOCH)
    average = weights_of(model)
    best, checks_without_gain, done, started = average, 0, 0, time.monotonic()
    bar = tqdm(total=per_epoch * settings.epochs, unit="batch", desc="training", dynamic_ncols=True, mininterval=1.0)
    with bar, _interruptible() as interrupted:
        for batch in _endless(source, split, settings, random):
            shares = {
                "epochs": done / (per_epoch * settings.epochs),
                "minutes": (time.monotonic() - started) / settings.max_seconds,
                "ctrl-c": float(interrupted()),
            }
            run.stopped_by = max(shares, key=lambda name: shares[name])
            if shares[run.stopped_by] >= 1:
                break
            loss = _step(model, optimizer, batch, settings.learning_rate * learning_rate_at(max(shares.values())))
            done += 1
            run.windows += len(batch.targets)
            _average(average, model, decay=min(settings.averaging_decay, (1 + done) / (10 + done)))
            bar.update()
            if done % check_every:
                continue
            validation_loss = judge(model, average, validation)
            run.course.append({"epoch": done / per_epoch, "loss": loss, "validation_loss": validation_loss})
            bar.set_postfix(loss=f"{loss:.4f}", validation=f"{validation_loss:.4f}")
            checks_without_gain += 1
            if validation_loss < run.best_validation_loss:
                run.best_validation_loss, best, checks_without_gain = validation_loss, _copy(average), 0
            if checks_without_gain >= PATIENCE_CHECKS:
                run.stopped_by = "no improvement"
                break
    last_loss = judge(model, average, validation)
    if last_loss < run.best_validation_loss:
        run.best_validation_loss, best = last_loss, average
    _put(model, best)
    run.seconds, run.epochs = time.monotonic() - started, done / per_epoch
    return run


def learning_rate_at(progress: float) -> float:
    """Factor of the peak learning rate: linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017)."""
    if progress < WARM_UP:
        return (progress + 1e-3) / (WARM_UP + 1e-3)
    return float(0.5 * (1 + np.cos(np.pi * (progress - WARM_UP) / (1 - WARM_UP))))


def validation_batches(source: WindowSource, split: Split, seed: int) -> list[Batch]:
    """A fixed sample of windows from the validation days, with the histories training draws."""
    random = np.random.default_rng([seed, 1])
    spec, size = source.spec, VALIDATION_BATCH_SIZE
    first, last = split.fit_end - 1, split.train_end - spec.horizon_steps - 1
    batches = []
    for _ in range(VALIDATION_BATCHES):
        rows = random.choice(split.seen, size)
        origins = random.integers(min(first, last), last + 1, size)
        batches.append(source.batch(rows, origins, *draw_history(spec, size, random), np.zeros(size, dtype=bool)))
    return batches


def judge(model: ForecastModel, weights: Weights, batches: list[Batch]) -> float:
    """Mean pinball loss of `weights` on the batches; the model's own weights are put back."""
    own = weights_of(model)
    _put(model, weights)
    model.eval()
    with torch.inference_mode():
        loss = float(np.mean([_loss(model, batch).item() for batch in batches]))
    _put(model, own)
    return loss


def weights_of(model: ForecastModel) -> Weights:
    """A copy of the model's weights, each once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _step(model: ForecastModel, optimizer: torch.optim.Optimizer, batch: Batch, learning_rate: float) -> float:
    """One optimisation step; returns the loss."""
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    loss = _loss(model, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
    optimizer.step()
    return loss.item()


def _loss(model: ForecastModel, batch: Batch) -> torch.Tensor:
    device = next(model.parameters()).device
    inputs = window_tensors(batch.windows, device)[:-2]  # centre and spread only lead back to physical units
    return pinball_loss(model.scaled_quantiles(*inputs), torch.from_numpy(batch.targets).to(device))


def _average(average: Weights, model: ForecastModel, decay: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            average[name].lerp_(parameter, 1 - decay)


def _put(model: ForecastModel, weights: Weights) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def _copy(weights: Weights) -> Weights:
    return {name: value.clone() for name, value in weights.items()}


def _endless(source: WindowSource, split: Split, settings: FitSettings, random: np.random.Generator) -> Iterator[Batch]:
    while True:
        yield from epoch(
            source, split.seen, split.fit_end - 1, settings.batch_size, random, handicaps=settings.handicaps
        )


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C once turns the yielded function true, twice raises KeyboardInterrupt."""
    asked: list[int] = []

    def on_interrupt(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("\nstopping after this batch and keeping the best model; Ctrl-C again to abort", file=sys.stderr)

    try:
        before = signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # not in the main thread: somebody else handles signals
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
