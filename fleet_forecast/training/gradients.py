"""Loss and gradients of a batch: on a processor step by step, on a GPU as a recording that is replayed.

On a processor a batch is cut in a thread of its own while the gradients of the one before are computed, which hides it
where torch leaves a processor free (benchmarks/training.py says what it gains).

A step of training is some two thousand small operations, which a GPU has done sooner than a processor can ask for them.
So what a batch of each encoder length asks for is recorded once (a CUDA graph), cutting its windows included, and
replayed for every further batch. Nothing in a recording may wait for the GPU or change its shape; batches of another
size, the last of an epoch, are computed without.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fleet_forecast.features.windows import Windows
from fleet_forecast.network.model import ForecastModel, importance, pinball_loss, window_tensors
from fleet_forecast.training.gpu_batches import ResidentPlan, ResidentWindows
from fleet_forecast.training.sampling import Batch, Plan, WindowSource
from fleet_forecast.training.trainer_state import device_of

UNRECORDED = 2  # batches of a length before it is recorded, in which libraries choose and set up their kernels
STEPS_AHEAD = 2  # that the processor may ask for before they are done, so that clock and Ctrl-C mean what they say

Ready = Any  # a plan with what could be done for it beforehand


class Gradients(NamedTuple):
    """prepare: to be called one plan ahead. compute: sets every parameter's gradient and returns the loss."""

    prepare: Callable[[Plan], Ready]
    compute: Callable[[Ready], Tensor]

    def one_ahead(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Ready]]:
        """Each plan, made ready, once the next one is being prepared."""
        waiting: deque[tuple[Plan, Ready]] = deque()
        for plan in plans:
            waiting.append((plan, self.prepare(plan)))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting


@contextmanager
def gradients_of(
    model: ForecastModel, trained: Sequence[Tensor], source: WindowSource, batch_size: int
) -> Iterator[Gradients]:
    """How to compute them where the model is; batch_size: of all batches but an epoch's last.

    trained: trainer_state.TrainerTensors.parameters of the model.

    On a GPU the work of the whole block queues on a stream of its own, as recordings must, and products round their
    factors to TF32's ten bits.
    """
    device = device_of(model)
    if device.type != "cuda":
        keep_freed_memory()

        def compute(cut: Future[Batch]) -> Tensor:
            for tensor in trained:
                tensor.grad.zero_()  # type: ignore[union-attr]  # side by side, they have one
            return _backward(model, *loss_arguments(cut.result(), device))

        with ThreadPoolExecutor(1, "windows") as thread:
            yield Gradients(lambda plan: thread.submit(source.cut, plan), compute)
        return
    stream, outer, precision = (
        torch.cuda.Stream(device),
        torch.cuda.current_stream(),
        torch.get_float32_matmul_precision(),
    )
    windows = ResidentWindows(source, device)
    model.network.largest_input = windows.largest_input()
    torch.set_float32_matmul_precision("high")
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield Gradients(lambda plan: plan, _Recorded(model, trained, windows, batch_size))
    finally:
        outer.wait_stream(stream)
        torch.set_float32_matmul_precision(precision)
        model.network.largest_input = None  # later measurements may be larger


def loss_arguments(batch: Batch, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Window tensors and targets of a batch, on the device."""
    return window_tensors(batch.windows, device), torch.from_numpy(batch.targets).to(device)


def loss_of(model: ForecastModel, windows: list[Tensor], targets: Tensor) -> Tensor:
    """Mean pinball loss in compressed window units, wide windows weighing a little more."""
    spread = windows[Windows._fields.index("spread")]
    return pinball_loss(model.compressed_quantiles(*windows), targets, importance(spread))


def _backward(model: ForecastModel, windows: list[Tensor], targets: Tensor) -> Tensor:
    loss = loss_of(model, windows, targets)
    loss.backward()
    return loss.detach()


@dataclass
class _Recording:
    """A recorded step: what it reads, what it leaves behind."""

    graph: torch.cuda.CUDAGraph
    plan: ResidentPlan
    loss: Tensor
    gradients: list[Tensor | None]


class _Recorded:
    """Gradients on a GPU."""

    def __init__(
        self, model: ForecastModel, trained: Sequence[Tensor], windows: ResidentWindows, batch_size: int
    ) -> None:
        self.model, self.parameters, self.windows, self.batch_size = model, trained, windows, batch_size
        self.recordings: dict[int, _Recording] = {}
        self.seen: Counter[int] = Counter()
        self.memory = torch.cuda.graph_pool_handle()
        self.queued: deque[torch.cuda.Event] = deque()

    def __call__(self, plan: Plan) -> Tensor:
        """As Gradients.compute."""
        self._keep_pace()
        resident, length = self.windows.plan(plan), plan.encoder_steps
        if len(plan) != self.batch_size:
            return self._compute(resident, length)
        if length not in self.recordings:
            self.seen[length] += 1
            if self.seen[length] <= UNRECORDED:
                return self._compute(resident, length)
            self.recordings[length] = self._record(resident, length)
        recording = self.recordings[length]
        recording.plan.take_over(resident)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.loss

    def _compute(self, plan: ResidentPlan, length: int) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None  # so that a recording sets it instead of adding to it
        return _backward(self.model, *self.windows.cut(plan, length))

    def _record(self, plan: ResidentPlan, length: int) -> _Recording:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.memory, stream=torch.cuda.current_stream()):
            loss = self._compute(plan, length)
        return _Recording(graph, plan, loss, [parameter.grad for parameter in self.parameters])

    def _keep_pace(self) -> None:
        event = torch.cuda.Event()
        event.record()
        self.queued.append(event)
        if len(self.queued) > STEPS_AHEAD:
            self.queued.popleft().synchronize()


TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """From here on, for all of this process; does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)  # large blocks come from the heap as well
        mallopt(TRIM_THRESHOLD, NEVER)  # whose end is not given back
