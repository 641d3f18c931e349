"""The course of a training as TensorBoard reads it; optional, the package is not among the run-time ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

TESTED_VERSION = "2.21.0"


class LogError(RuntimeError):
    """The log cannot be written; the message names the remedy."""


class TensorBoardLog:
    """Scalars by optimisation step in an event file below `directory`.

    Raises LogError if the package tensorboard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise LogError(
                f"--tensorboard: needs the package tensorboard (pip install tensorboard=={TESTED_VERSION}); "
                "install it or leave the flag out"
            ) from error
        self._writer = SummaryWriter(str(directory))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One value for each name, at this step; on disk when this returns."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self._writer.close()
