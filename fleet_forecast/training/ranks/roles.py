"""Roles of the processes of a training: the first one locks the models folder and writes to the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from fleet_forecast.inference.model_directory import only_writer
from fleet_forecast.training.ranks.group import is_first, joined, wait_for_ranks


@contextmanager
def training_process(models_dir: Path) -> Iterator[None]:
    """Join the other processes; the first one is the folder's only writer, the others print nothing but errors.

    Raises ModelError and OSError as only_writer does, and RankError.
    """
    with joined(), ExitStack() as stack:
        if is_first():
            stack.enter_context(only_writer(models_dir))
        else:
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        wait_for_ranks()
        yield
