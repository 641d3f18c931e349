"""CPU contention: how many CPUs other processes leave free.

torch's threads wait for each other after each of some thousand operations of a training step. If another process uses
one of their CPUs, all threads wait for the end of its time slice. With one busy process on two CPUs a step took 990
to 1,180 ms with two threads and 370 to 550 ms with one (340 to 360 ms on an idle machine; three runs).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STAT = Path("/proc/stat")  # proc(5): CPU time since boot, in total and for each CPU
IDLE = slice(3, 5)  # columns idle and iowait
ALL = slice(0, 8)  # columns user to steal; later columns are parts of these
SAMPLE_SECONDS = 0.5
WATCH_SECONDS = 30.0  # between two checks while this process works


def free_processors(sample_seconds: float = SAMPLE_SECONDS, stat: Path = STAT) -> float:
    """Mean number of idle CPUs while this process sleeps; inf on systems without /proc/stat."""
    before = _processor_time(stat)
    time.sleep(sample_seconds)
    after = _processor_time(stat)
    if before is None or after is None:
        return float("inf")
    (idle, total), processors = (now - then for now, then in zip(after[0], before[0], strict=True)), after[1]
    return processors * idle / total if total > 0 else float("inf")


def contention_advice(threads: int, free: float) -> str | None:
    """The number of threads to use instead, as a sentence; None if `threads` is right for `free` CPUs."""
    advised = threads if free >= threads else max(1, round(free))
    if advised == threads:
        return None
    return (
        f"other processes leave {free:.1f} processors free, and {threads} threads wait for them after each operation: "
        f"training is faster with OMP_NUM_THREADS={advised}"
    )


class ContentionWatch:
    """Detects that contention begins while this process works. Its own CPU time counts as free."""

    def __init__(self, threads: int, stat: Path = STAT) -> None:
        self._threads, self._stat = threads, stat
        self._contended = True  # contention at the start is for free_processors, which this process does not hide
        self._before = self._reading()

    def advice(self) -> str | None:
        """contention_advice for the time since the previous call; None if there was some at the previous call too."""
        before, self._before = self._before, self._reading()
        if before is None or self._before is None:
            return None
        (idle, total, own, at), processors = zip(before[0], self._before[0], strict=True), self._before[1]
        if total[1] == total[0] or at[1] == at[0]:
            return None
        free = processors * (idle[1] - idle[0]) / (total[1] - total[0]) + (own[1] - own[0]) / (at[1] - at[0])
        advice, contended = contention_advice(self._threads, free), self._contended
        self._contended = advice is not None
        return None if contended else advice

    def _reading(self) -> tuple[tuple[float, ...], int] | None:
        """(idle time, total time, CPU time of this process, clock), and the number of CPUs."""
        if (found := _processor_time(self._stat)) is None:
            return None
        return (*found[0], time.process_time(), time.monotonic()), found[1]


@contextmanager
def contention_notes(threads: int, note: Callable[[str], None]) -> Iterator[None]:
    """Calls `note` with an advice each time that contention begins while the block runs."""
    if threads < 2:
        yield
        return
    ended, watch = threading.Event(), ContentionWatch(threads)

    def run() -> None:
        while not ended.wait(WATCH_SECONDS):
            if advice := watch.advice():
                note(advice)

    thread = threading.Thread(target=run, name="contention", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _processor_time(stat: Path) -> tuple[tuple[int, int], int] | None:
    """(idle time, total time) summed over CPUs, and the number of CPUs; None if `stat` cannot be read."""
    try:
        lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
    except OSError:
        return None
    numbers = [int(number) for number in lines[0][1:]]
    return (sum(numbers[IDLE]), sum(numbers[ALL])), len(lines) - 1
