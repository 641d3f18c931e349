"""A training by Ray Train: its workers are the processes of the training, as those that torchrun starts.

Each worker runs the trainer's script with the same arguments, in the folder where the command was given. Ray Train
joins them to one group of torch.distributed. What they print appears here.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import queue
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue

from fleet_forecast.scale.ray_cluster import cores_of_cluster, gpus_of_cluster

LOOK_SECONDS = 0.2


class _Task(NamedTuple):
    """What each worker does: `run(arguments)` of a script, in a folder; its output goes into a queue."""

    script: str
    arguments: argparse.Namespace
    folder: str
    is_terminal: bool
    output: Queue


class _EndedError(RuntimeError):
    """A worker's run ended with an exit code other than 0, after it printed why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)

    def __str__(self) -> str:
        return f"exit code {self.args[0]}"


def train_on_ray(script: str, arguments: argparse.Namespace, with_gpus: bool, longest_wait: timedelta) -> int:
    """Run `run(arguments)` of a script in the workers of Ray Train; returns the exit code of the first one.

    Without arguments.workers there is one for each GPU, or for each core without GPUs. If one of them fails, all end.
    longest_wait: of the workers for each other. Raises OSError if arguments.models_dir cannot be written.
    """
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # it would show each line twice
    on_gpus = with_gpus and gpus_of_cluster() > 0
    count = arguments.workers or (gpus_of_cluster() if on_gpus else cores_of_cluster())
    output = Queue(actor_options={"num_cpus": 0})
    task = _Task(script, arguments, str(Path.cwd()), sys.stderr.isatty(), output)
    arguments.models_dir.mkdir(parents=True, exist_ok=True)
    failures: Any = FailureConfig(max_failures=0, max_preemption_failures=0)
    with tempfile.TemporaryDirectory(prefix=".ray-", dir=arguments.models_dir.absolute()) as folder:
        # Ray Train checks that all machines see this folder. The trainer's types are those of its first version.
        run_config: Any = RunConfig(storage_path=folder, failure_config=failures)
        trainer = _Trainer(
            _train,
            train_loop_config={"task": task},
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout_s=int(longest_wait.total_seconds())
            ),
            scaling_config=ScalingConfig(num_workers=count, use_gpu=on_gpus),
            run_config=run_config,
        )
        return _fit(trainer, output)


def _train(config: dict[str, Any]) -> None:
    """A worker. Raises _EndedError, which ends the others too."""
    task: _Task = config["task"]
    if not Path(task.folder).is_dir():
        raise FileNotFoundError(
            f"{task.folder}: no such folder on this machine; start the command in a folder that all machines share"
        )
    os.chdir(task.folder)
    streams = [_Stream(task, name) for name in ("stdout", "stderr")]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        code: int = importlib.import_module(task.script).run(task.arguments)
        for stream in streams:
            stream.flush()
    if os.environ["RANK"] == "0":
        task.output.put(("code", code))
    if code:
        raise _EndedError(code)


class _Stream(io.TextIOBase):
    """stdout or stderr of a worker: sends whole lines, and the states of a progress bar, to the command's process."""

    def __init__(self, task: _Task, name: str) -> None:
        self._task, self._name, self._waiting = task, name, ""

    def isatty(self) -> bool:
        return self._task.is_terminal

    def write(self, text: str) -> int:
        self._waiting += text
        if "\n" in text or "\r" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        text, self._waiting = self._waiting, ""
        if text:
            self._task.output.put((self._name, text))


class _Trainer(TorchTrainer):
    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C as it is: it raises KeyboardInterrupt, and the workers end when the cluster is left."""


class _Screen:
    """Shows what the workers print, from a thread, for the time of a block; afterwards the first one's exit code."""

    def __init__(self, output: Queue) -> None:
        self.code: int | None = None
        self._output, self._ended = output, Event()
        self._thread = Thread(target=self._show, daemon=True)

    def __enter__(self) -> _Screen:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()  # before the cluster is left

    def _show(self) -> None:
        while True:
            last_look = self._ended.is_set()
            try:
                name, content = self._output.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if last_look:
                    return
                continue
            if name == "code":
                self.code = int(content)
            else:
                print(content, end="", file=getattr(sys, name), flush=True)


def _fit(trainer: TorchTrainer, output: Queue) -> int:
    """Run the training, show what its workers print; returns the exit code."""
    problem = None
    with _Screen(output) as screen:
        try:
            trainer.fit()
        except TrainingFailedError as failed:
            problem = failed
    if screen.code is not None:
        return screen.code
    print(f"error: {_lost(problem)}; start the training again with --resume", file=sys.stderr)
    return 1


def _lost(problem: TrainingFailedError | None) -> str:
    """Why the first worker has no exit code."""
    failures = getattr(problem, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        gone = isinstance(failure, RayActorError)
        reason = "killed, out of memory, or its machine is lost" if gone else str(failure).strip().splitlines()[-1]
        return f"process {rank} of this training ended ({reason})"
    return str(problem or "the training ended without a result")
