"""The processes of one training: the first one decides and writes, the gradients of all are summed.

DistributedDataParallel is not used: it averages the gradients of losses that each process normalises by itself, and the
loss here is normalised by the sum of weights over the whole batch. On a CPU all gradients are one tensor already
(trainer_state.py), so that adding them up is one call.

torch.distributed's group belongs to the process, so these functions need no argument for it. Without torchrun there is
one process, and they do nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

LONGEST_WAIT = timedelta(days=1)  # of the others, while one reads the data; a process that died is noticed at once
_told_to_end: list[int] = []


class RankError(RuntimeError):
    """Another process of this training ended, or was started otherwise. The message names the remedy."""


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started with this one, for the time of the block; those of Ray Train are joined.

    Raises RankError.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        yield
        return
    try:
        dist.init_process_group(_backend(), timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as problem:
        raise RankError(
            f"WORLD_SIZE={count}: the other processes cannot be reached ({problem}); start all of them by torchrun"
        ) from problem
    _told_to_end.clear()
    yield
    dist.destroy_process_group()  # after an error it could wait for a process that is gone


def _backend() -> str:
    """On CPUs gloo, on GPUs nccl, and gloo where processes share a GPU."""
    if not torch.cuda.is_available():
        return "gloo"
    local_rank, local_count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    torch.cuda.set_device(local_rank % torch.cuda.device_count())
    return "cpu:gloo,cuda:nccl" if local_count <= torch.cuda.device_count() else "gloo"


def rank() -> int:
    """Number of this process among those of the training, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def rank_count() -> int:
    """Number of processes of the training."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process reads, evaluates, writes and shows progress."""
    return rank() == 0


def is_first_of_machine() -> bool:
    """Whether this process is the first one of its machine."""
    return rank_count() == 1 or os.environ["LOCAL_RANK"] == "0"


def first_rank_of_machine() -> int:
    """Number of the first process of this process's machine. Machines of one name, as in containers, differ in it."""
    return 0 if rank_count() == 1 else rank() - int(os.environ["LOCAL_RANK"])


def wait_for_ranks() -> None:
    """Return when all processes have called this. Raises RankError."""
    first_says(None)  # gloo's barrier does not notice that a process is gone
    add_up(torch.zeros(1))


def first_says(value: Any) -> Any:
    """The value that the first process gives, in all of them. JSON can represent it. Raises RankError."""
    if rank_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    length = torch.tensor(len(text))
    _exchange(lambda: dist.broadcast(length, 0))
    content = torch.from_numpy(text.copy()) if is_first() else torch.empty(int(length), dtype=torch.uint8)
    _exchange(lambda: dist.broadcast(content, 0))
    return json.loads(content.numpy().tobytes())


def add_up(tensor: Tensor) -> Tensor:
    """The tensor with the sum over all processes, in place. Raises RankError."""
    if rank_count() > 1:
        _exchange(lambda: dist.all_reduce(tensor))
    return tensor


def add_up_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the gradients of parameters over all processes, in place. Raises RankError."""
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    if len(gradients) == 1:
        add_up(gradients[0])
        return
    flat = add_up(torch.cat([each.flatten() for each in gradients]))
    for parameter, gradient, total in zip(
        parameters, gradients, flat.split([each.numel() for each in gradients]), strict=True
    ):
        parameter.grad = total.view_as(gradient)


def _exchange(exchange: Callable[[], object]) -> None:
    try:
        exchange()
    except RuntimeError as problem:
        # It begins with a line of the library's source, and ends with advice to its developers.
        reason = re.sub(r"^\[\S*\] ", "", str(problem).splitlines()[0]).split(". ")[0]
        raise RankError(_lost(reason)) from problem
    if _told_to_end:
        raise RankError(_lost("SIGTERM"))


def _lost(reason: str) -> str:
    return (
        f"another process of this training ended, so this one ends too ({reason}); start the training again with "
        "--resume, with any number of processes"
    )


@contextmanager
def ends_at_exchange() -> Iterator[None]:
    """SIGTERM, by which torchrun ends the others when one process failed, raises RankError at the next exchange.

    The state of the training is whole there and can be saved.
    """
    if rank_count() == 1:
        yield
        return

    def on_end(number: int, _frame: FrameType | None) -> None:
        _told_to_end.append(number)

    try:
        before = signal.signal(signal.SIGTERM, on_end)
    except ValueError:  # outside the main thread no handler can be set
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
