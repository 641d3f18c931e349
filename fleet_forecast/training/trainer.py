"""The training loop: AdamW with warm-up and cosine decay, averaged weights, the best of them on later days kept.

More training is not always better: a network learns the month it is shown by heart, and the servers. So the weights
that are judged and kept are an exponential average over the steps (Polyak & Juditsky 1992; Izmailov et al. 2018),
judged on days after those trained on, half of them of servers that are not trained on (split.py). When these no longer
improve, the learning rate falls to zero over a fifth of the steps so far, which is where much of a run's gain is made,
and training ends.

All that decides how a run goes on is in its counters and tensors (run_state.py), and those are saved now and then: an
interrupted run goes on bit for bit on the same machine and number of threads, unless its learning rate follows the
clock (`max_seconds`), or it runs on a GPU, which adds up gradients in any order.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from types import FrameType

import numpy as np
import torch

from fleet_forecast.network.model import ForecastModel
from fleet_forecast.training.augmentation import DEFAULT_AUGMENTATION, Augmentation, draw_history
from fleet_forecast.training.batches import BatchPlan, BatchSampler, TrainingBatch, WindowSelection, WindowSource
from fleet_forecast.training.gradients import Gradients, Prepared, gradients_of, loss_of, to_device
from fleet_forecast.training.progress import ProgressDisplay
from fleet_forecast.training.split import Split
from fleet_forecast.training.tensorboard_log import TensorBoardLog
from fleet_forecast.training.trainer_state import (
    Fit,
    Keeper,
    State,
    Weights,
    copy_of,
    device_of,
    put_weights,
    weights_of,
)

WARM_UP = 0.05  # share of the run over which the learning rate rises
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
AVERAGING_DECAY = 0.995  # per step, of the weights that are judged and kept
VALIDATION_BATCHES, VALIDATION_BATCH_SIZE = 12, 64
VALIDATION_DRAWS = 50  # of a batch's windows, until all have a measured target
CHECKS_PER_EPOCH = 4
FEWEST_STEPS, MOST_STEPS = 100, 250  # between two checks, which take as long as about four steps
PATIENCE_CHECKS = 12  # checks without improvement before training cools down and ends
COOLING_SHARE = 0.2  # of the steps so far
CHECKPOINT_SECONDS = 30.0  # so much work at most is lost to a crash; saving takes a tenth of a second
UNTIMED_STEPS = 10  # at the start, before the pace is measured: caches fill, code may be compiled


Validation = list[TrainingBatch[torch.Tensor]]  # on the device of the model


class FitError(ValueError):
    """There is nothing to learn from; the message says what is missing and what to do."""


@dataclass(frozen=True)
class FitSettings:
    """How long and how to train; see the trainer's flags. The last two are options of benchmarks/ablations.py.

    steps: optimisation steps at most; None: as many as `epochs` have.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    max_seconds: float
    seed: int
    steps: int | None = None
    averaging_decay: float = AVERAGING_DECAY
    augmentation: Augmentation = DEFAULT_AUGMENTATION


def fit(
    model: ForecastModel,
    source: WindowSource,
    split: Split,
    settings: FitSettings,
    keeper: Keeper | None = None,
    log: TensorBoardLog | None = None,
) -> Fit:
    """Train `model` in place on the split's training part, with a progress display on stderr.

    The learning rate follows the share of the run that is over, in steps or in seconds, whichever is further; the
    seconds count the checks, too, the last one included. Ctrl-C ends training in good order, a second one raises
    KeyboardInterrupt. keeper: where the run is saved, and found if it was interrupted.
    """
    run, state = Fit(model), State(model, settings.learning_rate, WEIGHT_DECAY)
    run.steps_per_epoch = _sampler(source, split, settings).batches_per_epoch()
    keeper = keeper or Keeper("training")
    keeper.restore(run, state)
    if not run.stopped_by:
        validation = validation_batches(source, split, settings.seed, device_of(model))
        sitting = _Sitting(run, state, settings, validation, keeper, log)
        with (
            ProgressDisplay(keeper.part) as display,
            _interruptible() as interrupted,
            gradients_of(model, state.trained, source, settings.batch_size) as gradients,
        ):
            sitting.train(gradients, _plans(source, split, settings, run), display, interrupted)
    put_weights(model, state.best)
    return run


class _Sitting:
    """A run from its start, or from where it was interrupted, to its end or the next interruption."""

    def __init__(
        self,
        run: Fit,
        state: State,
        settings: FitSettings,
        validation: Validation,
        keeper: Keeper,
        log: TensorBoardLog | None,
    ) -> None:
        self.run, self.state, self.settings, self.validation = run, state, settings, validation
        self.keeper, self.log = keeper, log
        self.total_steps = settings.steps or run.steps_per_epoch * settings.epochs
        self.check_every = steps_between_checks(run.steps_per_epoch, self.total_steps)
        self.first_step = run.steps
        self.learning_rate = 0.0
        self.zero = monotonic() - run.seconds  # on the clock of a run that was never interrupted

    def train(
        self,
        gradients: Gradients,
        plans: Iterator[BatchPlan],
        display: ProgressDisplay,
        interrupted: Callable[[], bool],
    ) -> None:
        """Step until a limit is reached, checking, saving and showing in between; sets `run.stopped_by`."""
        run, saved_at = self.run, self.run.seconds
        if not run.steps:
            self.check()
        for plan, ready in gradients.prefetch(plans):
            share, asked_to_stop = self.share_over(), interrupted()
            if asked_to_stop:
                self.keeper.save(run, self.state)  # as under way: should it not be published, --resume trains on
            run.stopped_by = self.reason_to_stop(asked_to_stop)
            if run.stopped_by:
                break
            self.step(gradients, plan, ready, share)
            if run.steps % self.check_every == 0:
                self.check()
            run.seconds = self.now()
            display.update(share, run.seconds, self.facts)
            if run.seconds - saved_at >= CHECKPOINT_SECONDS:
                self.keeper.save(run, self.state)
                saved_at = run.seconds
        if self.steps_since_check():
            self.check()
        run.seconds = self.now()
        display.update(1.0, run.seconds, self.facts, last=True)
        if run.stopped_by != "ctrl-c":
            self.keeper.save(run, self.state)

    def now(self) -> float:
        """Seconds of the run so far, those of its earlier sittings included."""
        return monotonic() - self.zero

    def share_over(self) -> float:
        """How much of the run is over: 1 and more when a limit is reached."""
        return max(self.shares().values())

    def shares(self) -> dict[str, float]:
        """The same by limit. What the check after the last step takes is kept back."""
        seconds = max(self.settings.max_seconds - self.run.check_seconds, 1e-9)
        return {"epochs": self.run.steps / self.total_steps, "minutes": self.now() / seconds}

    def reason_to_stop(self, interrupted: bool) -> str:
        """Empty: go on."""
        if interrupted:
            return "ctrl-c"
        for limit, share in self.shares().items():
            if share >= 1:
                return limit
        return "no improvement" if self.run.cooling_from and self.warmth() <= 0 else ""

    def warmth(self) -> float:
        """From 1, when patience runs out, down to 0 over COOLING_SHARE of the steps until then."""
        start = self.run.cooling_from
        return 1.0 - (self.run.steps - start) / (COOLING_SHARE * start)

    def step(self, gradients: Gradients, plan: BatchPlan, ready: Prepared, share: float) -> None:
        """One optimisation step, at the learning rate for this share of the run."""
        run, state, settings = self.run, self.state, self.settings
        self.learning_rate = settings.learning_rate * learning_rate_at(share)
        if run.cooling_from:
            self.learning_rate = min(self.learning_rate, run.cooling_rate * self.warmth())
        state.loss_sum += _step(state, gradients, ready, self.learning_rate)
        if run.batch and not plan.number:
            run.epoch += 1
        run.steps, run.batch, run.windows = run.steps + 1, plan.number + 1, run.windows + len(plan)
        state.take_average(min(settings.averaging_decay, (1 + run.steps) / (10 + run.steps)))
        if run.steps - self.first_step > UNTIMED_STEPS:
            run.paced_windows += len(plan)
            run.paced_seconds += self.now() - run.seconds  # since the step before, loading included

    def check(self) -> None:
        """Judge the averaged weights, keep them if they are the best so far, note the point of the course."""
        run, state, started = self.run, self.state, self.now()
        point = {
            "step": run.steps,
            "epoch": run.epochs,
            "validation_loss": judge(run.model, state.average, self.validation),
        }
        run.check_seconds = max(run.check_seconds, self.now() - started)
        if run.steps:
            point |= {"loss": self.mean_loss(), "learning_rate": self.learning_rate}
            run.course.append(point)
            state.loss_sum.zero_()
            run.checks_without_gain += 1
        else:
            run.first_validation_loss = point["validation_loss"]
        if point["validation_loss"] < run.best_validation_loss:
            run.best_validation_loss, state.best = point["validation_loss"], copy_of(state.average)
            run.checks_without_gain = 0
        if run.checks_without_gain >= PATIENCE_CHECKS and not run.cooling_from:
            run.cooling_from, run.cooling_rate = run.steps, self.learning_rate
        if self.log:
            self.log.write(run.steps, {**point, "windows_per_second": run.windows_per_second})

    def steps_since_check(self) -> int:
        """Steps not judged yet."""
        return self.run.steps - int(self.run.course[-1]["step"] if self.run.course else 0)

    def mean_loss(self) -> float:
        """Of the training batches since the last check; of those before it if there is none."""
        if steps := self.steps_since_check():
            return float(self.state.loss_sum) / steps
        return self.run.course[-1]["loss"] if self.run.course else float("nan")

    def facts(self) -> str:
        """What the progress display says of the run."""
        run = self.run
        validation = run.course[-1]["validation_loss"] if run.course else run.first_validation_loss
        return (
            f"epoch {run.epochs:.2f}, {run.windows_per_second:.0f} windows/s, loss {self.mean_loss():.4f}, "
            f"validation {validation:.4f} (best {run.best_validation_loss:.4f})"
        )


def steps_between_checks(steps_per_epoch: int, total_steps: int) -> int:
    """Four checks an epoch, within FEWEST_STEPS and MOST_STEPS between two; and four in a short run."""
    quarter = min(max(steps_per_epoch // CHECKS_PER_EPOCH, FEWEST_STEPS), MOST_STEPS)
    return max(1, min(quarter, total_steps // CHECKS_PER_EPOCH))


def learning_rate_at(progress: float) -> float:
    """Factor of the peak learning rate: linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017)."""
    if progress < WARM_UP:
        return (progress + 1e-3) / (WARM_UP + 1e-3)
    return float(0.5 * (1 + np.cos(np.pi * (progress - WARM_UP) / (1 - WARM_UP))))


def validation_batches(source: WindowSource, split: Split, seed: int, device: torch.device) -> Validation:
    """A fixed sample of windows from the validation days, with the histories training draws.

    Every other batch is of watched servers, if any of them is measured then. Raises FitError if no server is.
    """
    random = np.random.default_rng([seed, 1])
    batches = []
    for number in range(VALIDATION_BATCHES):
        watched = _measured_windows(source, split.watched, split, random) if number % 2 else ()
        windows = watched or _measured_windows(source, split.seen, split, random)
        if not windows:
            raise FitError(
                "values: no server to train on has a measurement in the last part of the training period, on which "
                "training is checked; provide more data, or another --train-fraction"
            )
        rows, origins = windows
        encoder_steps, known_steps = draw_history(source.spec, len(rows), random)
        selection = WindowSelection(rows, origins, encoder_steps, known_steps)
        batches.append(to_device(source.batch(selection), device))
    return batches


def _measured_windows(
    source: WindowSource, servers: np.ndarray, split: Split, random: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Rows and origins of a batch of validation windows after which something is measured: int64 [window] each.

    Drawn again where nothing is; fewer where that is rare, and () where there is none.
    """
    rows, origins = np.empty(0, np.int64), np.empty(0, np.int64)
    first, last = split.fit_end - 1, split.train_end - source.spec.horizon_steps - 1
    for _ in range(VALIDATION_DRAWS if len(servers) else 0):
        lacking = VALIDATION_BATCH_SIZE - len(rows)
        drawn = random.choice(servers, lacking), random.integers(first, last + 1, lacking)
        ahead = source.transformed[drawn[0][:, None], drawn[1][:, None] + np.arange(1, source.spec.horizon_steps + 1)]
        measured = ~np.isnan(ahead).all(axis=(1, 2))
        rows, origins = (np.append(kept, new[measured]) for kept, new in zip((rows, origins), drawn, strict=True))
        if len(rows) == VALIDATION_BATCH_SIZE:
            break
    return (rows, origins) if len(rows) else ()


def judge(model: ForecastModel, weights: Weights, batches: Validation) -> float:
    """Mean pinball loss of `weights` on the batches; the model's own weights are put back."""
    own = weights_of(model)
    put_weights(model, weights)
    model.eval()
    with torch.inference_mode():
        loss = float(torch.stack([loss_of(model, *batch) for batch in batches]).double().mean())
    put_weights(model, own)
    return loss


def _step(state: State, gradients: Gradients, ready: Prepared, learning_rate: float) -> torch.Tensor:
    """One optimisation step; returns the loss."""
    if not state.model.training:  # asked of each of a thousand modules, it would take a fiftieth of a step
        state.model.train()
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    loss = gradients.compute(ready)
    torch.nn.utils.clip_grad_norm_(state.trained, GRADIENT_NORM)
    state.optimizer.step()
    return loss


def _sampler(source: WindowSource, split: Split, settings: FitSettings) -> BatchSampler:
    """Batches of the servers and steps trained on."""
    return BatchSampler(source, split.seen, split.fit_end - 1, settings.batch_size, settings.augmentation)


def _plans(source: WindowSource, split: Split, settings: FitSettings, run: Fit) -> Iterator[BatchPlan]:
    """Batches without end, from where the run stands; each epoch's order follows from the seed and its number."""
    sampler = _sampler(source, split, settings)
    number, done = run.epoch, run.batch
    while True:
        random = np.random.default_rng([settings.seed, 2, number])
        for plan in sampler.epoch(random, done):
            done = plan.number + 1
            yield plan
        if not done:
            raise FitError("values: no server has a measurement in the training part; provide more data")
        number, done = number + 1, 0


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
