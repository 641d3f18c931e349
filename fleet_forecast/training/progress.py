"""The one progress display: a bar on a terminal, a line now and then where stderr is a file or a journal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from types import TracebackType

from tqdm import tqdm

REFRESH_SECONDS = 0.5
LINE_SECONDS = 30.0


class ProgressDisplay:
    """Shows how much of a run is over, what remains and some facts, on stderr."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._terminal = sys.stderr.isatty()
        self._every_seconds = REFRESH_SECONDS if self._terminal else LINE_SECONDS
        self._shown = float("-inf")
        self._bar = tqdm(total=1.0, file=sys.stderr, disable=not self._terminal, dynamic_ncols=True)

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, share: float, seconds: float, facts: Callable[[], str], last: bool = False) -> None:
        """Show that `share` of the run is over after `seconds`; `facts` is asked only when something is shown."""
        now = monotonic()
        if now - self._shown < self._every_seconds and not last:
            return
        self._shown = now
        text = f"{facts()}, {'took' if last else 'ETA'} {_clock(seconds if last else _remaining(share, seconds))}"
        if self._terminal:
            self._bar.n = 1.0 if last else min(share, 1.0)
            self._bar.bar_format = f"{self._title} {{percentage:3.0f}}%|{{bar}}| {text}"
            self._bar.refresh()
        else:
            print(f"{self._title} {100 * min(share, 1.0):3.0f} %: {text}", file=sys.stderr, flush=True)


def _remaining(share: float, seconds: float) -> float:
    return seconds * (1 - min(share, 1.0)) / share if share > 0 else float("inf")


def _clock(seconds: float) -> str:
    """h:mm:ss or m:ss, "unknown" before anything is known."""
    if seconds == float("inf"):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
