"""Contention: how many CPUs other processes leave free.

torch's threads wait for each other after each of some thousand operations of a training step. If another process uses
one of their CPUs, all threads wait for the end of its time slice. With one busy process on two CPUs a step took 990
to 1,180 ms with two threads and 370 to 550 ms with one (340 to 360 ms on an idle machine; three runs).
"""

from __future__ import annotations

import time
from pathlib import Path

STAT = Path("/proc/stat")  # proc(5): CPU time since boot, in total and for each CPU
IDLE = slice(3, 5)  # columns idle and iowait
ALL = slice(0, 8)  # columns user to steal; later columns are parts of these
SAMPLE_SECONDS = 0.5


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
        f"other work leaves {free:.1f} processors free, and {threads} threads wait for it after each operation: "
        f"training is faster with OMP_NUM_THREADS={advised}"
    )


def _processor_time(stat: Path) -> tuple[tuple[int, int], int] | None:
    """(idle time, total time) summed over CPUs, and the number of CPUs; None if `stat` cannot be read."""
    try:
        lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
    except OSError:
        return None
    numbers = [int(number) for number in lines[0][1:]]
    return (sum(numbers[IDLE]), sum(numbers[ALL])), len(lines) - 1
