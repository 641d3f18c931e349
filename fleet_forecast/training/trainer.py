"""The training loop: AdamW, warm-up and cosine decay, EMA of the weights, early stopping.

The weights that are validated and kept are an exponential moving average (EMA) over the steps (Polyak & Juditsky 1992;
Izmailov et al. 2018). Training keeps the EMA with the best validation loss. When the validation loss has not improved
for PATIENCE validations, the learning rate falls to zero over a fifth of the steps so far, and training ends. Much of
a run's improvement happens while the learning rate falls.

A run is determined by its counters and tensors (trainer_state.py), which are saved at intervals (checkpoint.py). A
resumed run gives bit-identical weights on the same machine and number of threads. Exceptions: with `max_seconds` the
learning rate depends on the clock, and a GPU adds up gradients in any order.

Several processes (ranks/) draw the same batches, validate a part of the validation set each, and take the same steps.
Clock, Ctrl-C and limits are those of the first one. Only dropout differs: its masks are drawn for each step and
process, so another number of processes has the effect of another seed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch

from fleet_forecast.network.model import ForecastModel
from fleet_forecast.training.batches.augmentation import DEFAULT_AUGMENTATION, Augmentation, draw_history_with_peers
from fleet_forecast.training.batches.sampler import BatchSampler
from fleet_forecast.training.batches.source import BatchPlan, TrainingBatch, WindowSelection, WindowSource
from fleet_forecast.training.checkpoint import Checkpointer
from fleet_forecast.training.gradients import Gradients, Prepared, gradients_of, loss_of, to_device
from fleet_forecast.training.progress import ProgressDisplay, TensorBoardLog
from fleet_forecast.training.ranks.group import (
    RankError,
    add_up,
    ends_at_exchange,
    first_says,
    is_first,
    rank,
    rank_count,
)
from fleet_forecast.training.split import Split, TrainingError
from fleet_forecast.training.trainer_state import (
    TrainerState,
    TrainerTensors,
    Weights,
    clone_weights,
    copy_weights,
    device_of,
    load_weights,
)

WARM_UP_SHARE = 0.05  # of the run: the learning rate rises
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
EMA_DECAY = 0.995  # per step
VALIDATION_BATCHES, VALIDATION_BATCH_SIZE = 12, 64
VALIDATION_DRAWS = 50  # attempts to fill a validation batch with windows that have a measured target
VALIDATIONS_PER_EPOCH = 4
MIN_VALIDATION_INTERVAL, MAX_VALIDATION_INTERVAL = 100, 250  # steps; a validation takes as long as about four steps
PATIENCE = 12  # validations without improvement before the learning rate falls to zero
COOL_DOWN_SHARE = 0.2  # of the steps so far: length of the cool-down
CHECKPOINT_SECONDS = 30.0  # a crash loses at most this much work; saving takes a tenth of a second
THROUGHPUT_WARM_UP_STEPS = 10  # not counted in the throughput: caches fill, kernels may be compiled

# Windows and targets of each validation batch, on the model's device.
ValidationSet = list[TrainingBatch[torch.Tensor]]


def learning_rate_factor(progress: float) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017)."""
    if progress < WARM_UP_SHARE:
        return (progress + 1e-3) / (WARM_UP_SHARE + 1e-3)
    return float(0.5 * (1 + np.cos(np.pi * (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))))


@dataclass(frozen=True)
class TrainerSettings:
    """Length and hyperparameters of a run; the trainer script's flags set the first five.

    epochs: passes over all server-hours. steps: number of optimisation steps; None: those of `epochs`.
    learning_rate_schedule: completed share of the run -> share of `learning_rate`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    max_seconds: float
    seed: int
    steps: int | None = None
    ema_decay: float = EMA_DECAY
    augmentation: Augmentation = DEFAULT_AUGMENTATION
    learning_rate_schedule: Callable[[float], float] = learning_rate_factor


class TrainingData(NamedTuple):
    """Windows of a fleet, and which of them are for training and for validation."""

    source: WindowSource
    split: Split


class Trainer:
    """Trains a model in place on the training servers and period of a split.

    Without a validation period in the split, training does not stop early and keeps the last EMA.
    The learning rate follows the completed share of the run, in steps or in seconds, whichever is larger. The seconds
    include all validations. checkpointer: saves the run, and provides its state if it was interrupted.
    """

    def __init__(
        self,
        model: ForecastModel,
        data: TrainingData,
        settings: TrainerSettings,
        checkpointer: Checkpointer | None = None,
        log: TensorBoardLog | None = None,
    ) -> None:
        self._data, self._settings, self._log = data, settings, log
        self._checkpointer = checkpointer or Checkpointer("training")
        split = data.split
        self._sampler = BatchSampler(
            data.source, split.training_servers, split.train_end - 1, settings.batch_size, settings.augmentation
        )
        steps_per_epoch = self._sampler.batches_per_epoch()
        self.state = TrainerState(model, steps_per_epoch)
        self.tensors = TrainerTensors(model, settings.learning_rate, WEIGHT_DECAY)
        self._checkpointer.restore(self.state, self.tensors)
        self._total_steps = settings.steps or steps_per_epoch * settings.epochs
        self._validation_interval = validation_interval(steps_per_epoch, self._total_steps)
        has_validation = split.test_start > split.train_end
        self._validation_set = validation_batches(data, settings.seed, device_of(model)) if has_validation else []
        self._first_step = self.state.steps  # since the start or the resumption
        self._clock_start = monotonic() - self.state.seconds  # as if the run had not been interrupted
        self._learning_rate = 0.0

    def fit(self) -> TrainerState:
        """Train to the end, with a progress display on stderr; a run that had ended is not trained further.

        Ctrl-C ends training after the current step; a second one raises KeyboardInterrupt. Raises TrainingError if
        there is nothing to train on.
        """
        model = self.state.model
        if not self.state.stopped_by:
            with (
                ProgressDisplay(self._checkpointer.part, is_first()) as display,
                _interruptible() as interrupted,
                ends_at_exchange(),
                gradients_of(model, self.tensors.parameters, self._data.source, self._settings.batch_size) as gradients,
            ):
                self._run(gradients, display, interrupted)
        load_weights(model, self.tensors.best)
        return self.state

    def _run(self, gradients: Gradients, display: ProgressDisplay, interrupted: Callable[[], bool]) -> None:
        """Steps, validations and saves until a limit is reached; sets `state.stopped_by`."""
        # Of several processes, the first one may be ended with a lost one before it can save: it has a state early.
        state, saved_at = self.state, self.state.seconds if rank_count() == 1 else float("-inf")
        if not state.steps:
            self._validate()
        for plan, ready in gradients.prefetch(self._plans()):
            try:
                progress, reason = first_says([self._progress(), self._stop_reason(interrupted())])
                if reason == "ctrl-c":  # saved as unfinished: --resume continues if the model is not published
                    self._checkpointer.save(state, self.tensors)
                state.stopped_by = reason
                if state.stopped_by:
                    break
                self._step(gradients, plan, ready, progress)
            except RankError:  # before the step, or within it and before the weights changed
                self._checkpointer.save(state, self.tensors)
                raise
            if state.steps % self._validation_interval == 0:
                self._validate()
            state.seconds = self._seconds()
            display.update(progress, state.seconds, self._summary)
            if state.seconds - saved_at >= CHECKPOINT_SECONDS:
                self._checkpointer.save(state, self.tensors)
                saved_at = state.seconds
        if self._steps_since_validation():
            self._validate()
        state.seconds = self._seconds()
        display.update(1.0, state.seconds, self._summary, last=True)
        if state.stopped_by != "ctrl-c":
            self._checkpointer.save(state, self.tensors)

    def _plans(self) -> Iterator[BatchPlan]:
        """Batches without end, from the current position. The order of an epoch depends on the seed and its number."""
        number, done = self.state.epoch, self.state.batch
        while True:
            random = np.random.default_rng([self._settings.seed, 2, number])
            for plan in self._sampler.epoch(random, done):
                done = plan.number + 1
                yield plan
            if not done:
                raise TrainingError("values: no server has a measurement in the training period; provide more data")
            number, done = number + 1, 0

    def _seconds(self) -> float:
        """Duration of the run so far, including the time before an interruption."""
        return monotonic() - self._clock_start

    def _progress(self) -> float:
        """Completed share of the run; 1 or more when a limit is reached."""
        return max(self._progress_by_limit().values())

    def _progress_by_limit(self) -> dict[str, float]:
        # The time of the final validation is reserved.
        max_seconds = max(self._settings.max_seconds - self.state.longest_validation_seconds, 1e-9)
        length = "steps" if self._settings.steps else "epochs"
        return {length: self.state.steps / self._total_steps, "minutes": self._seconds() / max_seconds}

    def _stop_reason(self, stop_requested: bool) -> str:
        """Empty while training continues."""
        if stop_requested:
            return "ctrl-c"
        for limit, share in self._progress_by_limit().items():
            if share >= 1:
                return limit
        return "no improvement" if self.state.cool_down_start and self._cool_down_factor() <= 0 else ""

    def _cool_down_factor(self) -> float:
        """Falls linearly from 1 at the start of the cool-down to 0 after COOL_DOWN_SHARE of the steps before it."""
        start = self.state.cool_down_start
        return 1.0 - (self.state.steps - start) / (COOL_DOWN_SHARE * start)

    def _step(self, gradients: Gradients, plan: BatchPlan, ready: Prepared, progress: float) -> None:
        """One optimisation step and the update of counters and EMA."""
        state, tensors, settings = self.state, self.tensors, self._settings
        self._learning_rate = settings.learning_rate * settings.learning_rate_schedule(progress)
        if state.cool_down_start:
            self._learning_rate = min(self._learning_rate, state.cool_down_learning_rate * self._cool_down_factor())
        if rank_count() > 1:  # so that a resumed run draws the same dropout without every process's random state
            torch.manual_seed(int(np.random.default_rng([settings.seed, 3, state.steps, rank()]).integers(2**63)))
        tensors.loss_sum += optimisation_step(tensors, gradients, ready, self._learning_rate)
        if state.batch and not plan.number:
            state.epoch += 1
        state.steps, state.batch, state.windows = state.steps + 1, plan.number + 1, state.windows + len(plan)
        tensors.update_ema(min(settings.ema_decay, (1 + state.steps) / (10 + state.steps)))
        if state.steps - self._first_step > THROUGHPUT_WARM_UP_STEPS:
            state.timed_windows += len(plan)
            state.timed_seconds += self._seconds() - state.seconds  # since the previous step, data loading included

    def _validate(self) -> None:
        """Validate the EMA, keep it if it is the best so far, and append to the loss history."""
        state, tensors, started = self.state, self.tensors, self._seconds()
        if not self._validation_set:
            tensors.best = clone_weights(tensors.ema)
            if self._log and state.steps:
                values = {"loss": self._mean_loss(), "learning_rate": self._learning_rate}
                self._log.write(state.steps, values | {"windows_per_second": state.windows_per_second})
            return
        point = {
            "step": state.steps,
            "epoch": state.epochs,
            "validation_loss": validate(state.model, tensors.ema, self._validation_set),
        }
        state.longest_validation_seconds = max(state.longest_validation_seconds, self._seconds() - started)
        if state.steps:
            point |= {"loss": self._mean_loss(), "learning_rate": self._learning_rate}
            state.loss_history.append(point)
            tensors.loss_sum.zero_()
            state.validations_without_improvement += 1
        else:
            state.first_validation_loss = point["validation_loss"]
        if point["validation_loss"] < state.best_validation_loss:
            state.best_validation_loss, tensors.best = point["validation_loss"], clone_weights(tensors.ema)
            state.validations_without_improvement = 0
        if state.validations_without_improvement >= PATIENCE and not state.cool_down_start:
            state.cool_down_start, state.cool_down_learning_rate = state.steps, self._learning_rate
        if self._log:
            self._log.write(state.steps, {**point, "windows_per_second": state.windows_per_second})

    def _steps_since_validation(self) -> int:
        history = self.state.loss_history
        return self.state.steps - int(history[-1]["step"] if history else 0)

    def _mean_loss(self) -> float:
        """Mean loss of the training batches since the last validation, or before it if there is none since."""
        if steps := self._steps_since_validation():
            return float(self.tensors.loss_sum) / steps
        return self.state.loss_history[-1]["loss"] if self.state.loss_history else float("nan")

    def _summary(self) -> str:
        """Throughput and losses for the progress display."""
        state = self.state
        training = f"epoch {state.epochs:.2f}, {state.windows_per_second:.0f} windows/s, loss {self._mean_loss():.4f}"
        if not self._validation_set:
            return training
        validation = state.loss_history[-1]["validation_loss"] if state.loss_history else state.first_validation_loss
        return f"{training}, validation {validation:.4f} (best {state.best_validation_loss:.4f})"


def validation_interval(steps_per_epoch: int, total_steps: int) -> int:
    """Steps between two validations: four an epoch within the limits above, and at least four in a short run."""
    quarter = min(max(steps_per_epoch // VALIDATIONS_PER_EPOCH, MIN_VALIDATION_INTERVAL), MAX_VALIDATION_INTERVAL)
    return max(1, min(quarter, total_steps // VALIDATIONS_PER_EPOCH))


def validation_batches(data: TrainingData, seed: int, device: torch.device) -> ValidationSet:
    """A fixed sample of windows of the validation period, with history lengths drawn as in training.

    Every second batch is of validation servers, if one of them has measurements in the period. Raises TrainingError if
    no server has.
    """
    source, split = data
    random, batches = np.random.default_rng([seed, 1]), []
    for number in range(VALIDATION_BATCHES):
        windows = _measured_windows(data, split.validation_servers, random) if number % 2 else ()
        windows = windows or _measured_windows(data, split.training_servers, random)
        if not windows:
            raise TrainingError(
                "values: no training server has a measurement in the validation period, the last part of the time "
                "before the test period; provide more data, or another --train-fraction"
            )
        rows, origins = windows
        drawn = draw_history_with_peers(source.spec, source.may_have_peers(rows), random)
        selection = WindowSelection(
            rows, origins, drawn.encoder_steps, drawn.known_steps, masked_peers=drawn.masked_peers
        )
        batches.append(to_device(source.batch(selection), device))
    return batches


def _measured_windows(data: TrainingData, servers: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Rows and origins (int64 [window]) of a batch of validation windows with a measured target.

    Windows without one are drawn again. The batch is smaller if such windows are rare, and () if there are none.
    """
    source, split = data
    rows, origins = np.empty(0, np.int64), np.empty(0, np.int64)
    first, last = split.train_end - 1, split.test_start - source.spec.horizon_steps - 1
    for _ in range(VALIDATION_DRAWS if len(servers) else 0):
        lacking = VALIDATION_BATCH_SIZE - len(rows)
        drawn = random.choice(servers, lacking), random.integers(first, last + 1, lacking)
        ahead = source.transformed[drawn[0][:, None], drawn[1][:, None] + np.arange(1, source.spec.horizon_steps + 1)]
        measured = ~np.isnan(ahead).all(axis=(1, 2))
        rows, origins = (np.append(kept, new[measured]) for kept, new in zip((rows, origins), drawn, strict=True))
        if len(rows) == VALIDATION_BATCH_SIZE:
            break
    return (rows, origins) if len(rows) else ()


def validate(model: ForecastModel, weights: Weights, batches: ValidationSet) -> float:
    """Mean pinball loss of `weights` on the batches; the model's own weights are restored.

    Each process of the training computes some of the batches. Raises RankError.
    """
    own = copy_weights(model)
    load_weights(model, weights)
    model.eval()
    with torch.inference_mode():
        losses = torch.zeros(len(batches), device=device_of(model))
        for number in range(rank(), len(batches), rank_count()):
            losses[number] = loss_of(model, *batches[number])
        loss = float(add_up(losses).double().mean())
    load_weights(model, own)
    return loss


def optimisation_step(
    tensors: TrainerTensors, gradients: Gradients, ready: Prepared, learning_rate: float
) -> torch.Tensor:
    """One step of AdamW with clipped gradients; returns the loss."""
    if not tensors.model.training:  # train() visits a thousand modules, which takes 2 % of a step
        tensors.model.train()
    for group in tensors.optimizer.param_groups:
        group["lr"] = learning_rate
    loss = gradients.compute(ready)
    torch.nn.utils.clip_grad_norm_(tensors.parameters, MAX_GRADIENT_NORM)
    tensors.optimizer.step()
    return loss


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """After one Ctrl-C the yielded function returns True; a second one raises KeyboardInterrupt."""
    requests: list[int] = []

    def on_interrupt(number: int, _frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        print("\nstopping after this batch and keeping the best model; Ctrl-C again to abort", file=sys.stderr)

    try:
        before = signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # outside the main thread no handler can be set
        yield lambda: False
        return
    try:
        yield lambda: bool(requests)
    finally:
        signal.signal(signal.SIGINT, before)
