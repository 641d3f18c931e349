"""Loss and gradients of a batch: step by step on a CPU, as a captured CUDA graph on a GPU.

On a CPU the next batch is built in a thread of its own while the gradients of the current one are computed
(benchmarks/training.py measures the effect).

A training step is some two thousand small operations, which a GPU executes faster than a CPU can launch them. So the
operations of a batch of each encoder length, building its windows included, are captured once in a CUDA graph and
replayed for every further batch. Nothing in a graph may wait for the GPU or change its shape; batches of another size,
the last of an epoch, are computed without.

Of several processes (ranks/), each computes its share of a batch, and the gradients are added up. The loss is
normalised by the weights of the whole batch, so that the sum is the gradient of the whole batch. On GPUs the shares are
computed without graphs.
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

from fleet_forecast.network.loss import WeightSums, pinball_loss, sample_weight
from fleet_forecast.network.model import ForecastModel, WindowTensors, window_tensors
from fleet_forecast.training.batches.gpu import GpuBatches
from fleet_forecast.training.batches.gpu_parts import GpuPlan
from fleet_forecast.training.batches.source import Batch, BatchPlan, TrainingBatch, WindowSource
from fleet_forecast.training.ranks.group import add_up, add_up_gradients, rank, rank_count
from fleet_forecast.training.trainer_state import device_of

UNCAPTURED_BATCHES = 2  # of a length before its capture, in which libraries choose and set up their kernels
QUEUED_STEPS = 2  # at most, so that the clock and Ctrl-C act without delay

Prepared = Any  # a plan, or a batch that is being built


class Gradients(NamedTuple):
    """prepare: call it one plan ahead. compute: sets the gradient of every parameter and returns the loss.

    Both are of the whole batch, whatever the number of processes.
    """

    prepare: Callable[[BatchPlan], Prepared]
    compute: Callable[[Prepared], Tensor]

    def prefetch(self, plans: Iterable[BatchPlan]) -> Iterator[tuple[BatchPlan, Prepared]]:
        """Each plan, prepared, while the next one is being prepared."""
        waiting: deque[tuple[BatchPlan, Prepared]] = deque()
        for plan in plans:
            waiting.append((plan, self.prepare(plan)))
            if len(waiting) > 1:
                yield waiting.popleft()
        yield from waiting


@contextmanager
def gradients_of(
    model: ForecastModel, trained: Sequence[Tensor], source: WindowSource, batch_size: int
) -> Iterator[Gradients]:
    """Gradients on the model's device.

    trained: parameters that are optimised. batch_size: of all batches except an epoch's last. On a GPU the work of the
    whole block is queued on a stream of its own, as CUDA graphs require, and matrix products use TF32 (ten bits).
    """
    device = device_of(model)
    if device.type != "cuda" or source.fleet.row_distances is not None:  # GPU batches do not interpolate
        keep_freed_memory()

        def prepare(plan: BatchPlan) -> Future[Batch] | None:
            own = own_share(plan)
            return thread.submit(source.augmented_batch, own) if len(own) else None

        def compute(built: Future[Batch] | None) -> Tensor:
            for tensor in trained:
                tensor.grad.zero_()  # type: ignore[union-attr]  # flattened parameters have one
            return _backward(model, trained, None if built is None else to_device(built.result(), device))

        with ThreadPoolExecutor(1, "windows") as thread:
            yield Gradients(prepare, compute)
        return
    stream, outer, precision = (
        torch.cuda.Stream(device),
        torch.cuda.current_stream(),
        torch.get_float32_matmul_precision(),
    )
    batches = GpuBatches(source, device)
    torch.set_float32_matmul_precision("high")
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield Gradients(own_share, _CapturedGradients(model, trained, batches, batch_size))
    finally:
        outer.wait_stream(stream)
        torch.set_float32_matmul_precision(precision)


def own_share(plan: BatchPlan) -> BatchPlan:
    """What this process computes of a batch: all of it, or its share among the processes of the training."""
    return plan if rank_count() == 1 else plan.share(rank(), rank_count())


def to_device(batch: Batch, device: torch.device) -> TrainingBatch[Tensor]:
    """The batch as tensors on the device."""
    return TrainingBatch(window_tensors(batch.windows, device), torch.from_numpy(batch.targets).to(device))


def loss_of(model: ForecastModel, windows: WindowTensors, targets: Tensor, largest_input: int | None = None) -> Tensor:
    """Weighted mean pinball loss of asinh standardised values; largest_input: see FleetTFT.forward."""
    quantiles = model.asinh_quantiles(windows, largest_input)
    return pinball_loss(quantiles, targets, sample_weight(windows.target_scale.scale))


def _backward(
    model: ForecastModel,
    trained: Sequence[Tensor],
    batch: TrainingBatch[Tensor] | None,
    largest_input: int | None = None,
) -> Tensor:
    """Sets the gradients, and returns the loss, of the whole batch. batch: this process's share; None: no window."""
    if rank_count() > 1:
        return _backward_of_share(model, trained, batch, largest_input)
    if batch is None:
        raise ValueError("batch: without windows; a plan has at least one")
    loss = loss_of(model, *batch, largest_input)
    loss.backward()
    return loss.detach()


def _backward_of_share(
    model: ForecastModel, trained: Sequence[Tensor], batch: TrainingBatch[Tensor] | None, largest_input: int | None
) -> Tensor:
    """As _backward, of one of several processes. Raises RankError."""
    metrics, loss = model.targets, torch.zeros((), device=device_of(model))
    if batch is None:
        add_up(loss.new_zeros(1 + 2 * metrics))
    else:
        scale = batch.windows.target_scale.scale
        sums = add_up(torch.cat([*WeightSums.of(scale, batch.targets)]))
        whole = WeightSums(*sums.split([1, metrics, metrics]))
        quantiles = model.asinh_quantiles(batch.windows, largest_input)
        share = pinball_loss(quantiles, batch.targets, sample_weight(scale, whole), whole.total_weight)
        share.backward()
        loss += share.detach()
    add_up_gradients(trained)
    return add_up(loss)


@dataclass
class _Graph:
    """A captured step with the memory of its input and its results."""

    graph: torch.cuda.CUDAGraph
    plan: GpuPlan
    loss: Tensor
    gradients: list[Tensor | None]


class _CapturedGradients:
    """Gradients on a GPU."""

    def __init__(self, model: ForecastModel, trained: Sequence[Tensor], batches: GpuBatches, batch_size: int) -> None:
        self.model, self.parameters, self.batches, self.batch_size = model, trained, batches, batch_size
        self.largest_input = batches.largest_input()
        self.graphs: dict[int, _Graph] = {}
        self.computed: Counter[int] = Counter()
        self.memory = torch.cuda.graph_pool_handle()
        self.queued: deque[torch.cuda.Event] = deque()

    def __call__(self, plan: BatchPlan) -> Tensor:
        """As Gradients.compute."""
        self._limit_queue()
        if not len(plan):
            return self._compute(None, 0)
        gpu_plan, length = self.batches.plan(plan), plan.selection.encoder_steps
        if len(plan) != self.batch_size or rank_count() > 1:
            return self._compute(gpu_plan, length)
        if length not in self.graphs:
            self.computed[length] += 1
            if self.computed[length] <= UNCAPTURED_BATCHES:
                return self._compute(gpu_plan, length)
            self.graphs[length] = self._capture(gpu_plan, length)
        graph = self.graphs[length]
        graph.plan.copy_(gpu_plan)
        graph.graph.replay()
        for parameter, gradient in zip(self.parameters, graph.gradients, strict=True):
            parameter.grad = gradient
        return graph.loss

    def _compute(self, plan: GpuPlan | None, length: int) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None  # so that a graph sets it instead of adding to it
        batch = None if plan is None else self.batches.batch(plan, length)
        return _backward(self.model, self.parameters, batch, self.largest_input)

    def _capture(self, plan: GpuPlan, length: int) -> _Graph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.memory, stream=torch.cuda.current_stream()):
            loss = self._compute(plan, length)
        return _Graph(graph, plan, loss, [parameter.grad for parameter in self.parameters])

    def _limit_queue(self) -> None:
        event = torch.cuda.Event()
        event.record()
        self.queued.append(event)
        if len(self.queued) > QUEUED_STEPS:
            self.queued.popleft().synchronize()


TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Allocator settings of this process: freed memory is kept for reuse. Does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)  # large blocks come from the heap as well
        mallopt(TRIM_THRESHOLD, NEVER)  # the end of the heap is not returned
