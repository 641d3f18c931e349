"""Progress of a training run: a display on stderr and, optionally, a TensorBoard log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from types import TracebackType

from tqdm import tqdm

REFRESH_SECONDS = 0.5  # of the bar on a terminal
LINE_SECONDS = 30.0  # between two lines where stderr is a file or a journal
TESTED_TENSORBOARD_VERSION = "2.21.0"  # not in requirements.txt, as the log is optional


class LogError(RuntimeError):
    """The log cannot be written. The message gives the remedy."""


class ProgressDisplay:
    """Completed share, remaining time and a summary of a run: a bar on a terminal, otherwise single lines."""

    def __init__(self, title: str, shown: bool = True) -> None:
        self._title, self._shown = title, shown
        self._terminal = sys.stderr.isatty()
        self._interval_seconds = REFRESH_SECONDS if self._terminal else LINE_SECONDS
        self._shown_at = float("-inf")
        self._bar = tqdm(total=1.0, file=sys.stderr, disable=not (self._terminal and shown), dynamic_ncols=True)

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, share: float, seconds: float, summary: Callable[[], str], last: bool = False) -> None:
        """Show that `share` of the run is complete after `seconds`, at most once per interval.

        `summary` is called only when something is shown, as it may wait for the GPU.
        """
        now = monotonic()
        if not self._shown or (now - self._shown_at < self._interval_seconds and not last):
            return
        self._shown_at = now
        text = f"{summary()}, {'took' if last else 'ETA'} {_clock(seconds if last else _remaining(share, seconds))}"
        if self._terminal:
            self._bar.n = 1.0 if last else min(share, 1.0)
            self._bar.bar_format = f"{self._title} {{percentage:3.0f}}%|{{bar}}| {text}"
            self._bar.refresh()
        else:
            print(f"{self._title} {100 * min(share, 1.0):3.0f} %: {text}", file=sys.stderr, flush=True)


class TensorBoardLog:
    """Scalars by optimisation step in an event file in `directory`.

    Raises LogError if the package tensorboard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise LogError(
                "--tensorboard: needs the package tensorboard (pip install "
                f"tensorboard=={TESTED_TENSORBOARD_VERSION}); install it or omit the flag"
            ) from error
        self._writer = SummaryWriter(str(directory))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one value per name and flush to disk."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _remaining(share: float, seconds: float) -> float:
    return seconds * (1 - min(share, 1.0)) / share if share > 0 else float("inf")


def _clock(seconds: float) -> str:
    """h:mm:ss or m:ss; "unknown" for infinity."""
    if seconds == float("inf"):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
