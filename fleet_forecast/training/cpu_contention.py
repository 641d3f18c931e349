"""How busy other work keeps the processors a training is about to take.

torch's threads wait for each other after each of some thousand operations a step. If another process has one of their
processors, all of them wait for its turn to end: two threads beside one busy process take two to three times as long as
a single one (steps of 990 to 1,180 ms, of 340 to 360 undisturbed, of 370 to 550 in one thread; three runs).
"""

from __future__ import annotations

import time
from pathlib import Path

STAT = Path("/proc/stat")  # proc(5): processor time since the start of the machine, in all and of each processor
IDLE = slice(3, 5)  # of the numbers in a line: idle, iowait
COUNTED = slice(0, 8)  # and all that are not part of another: user .. steal
WATCHED_SECONDS = 0.5


def free_processors(watched_seconds: float = WATCHED_SECONDS, stat: Path = STAT) -> float:
    """How many processors do nothing while this process sleeps; inf where the system does not tell."""
    before = _processor_time(stat)
    time.sleep(watched_seconds)
    after = _processor_time(stat)
    if before is None or after is None:
        return float("inf")
    (idle, total), processors = (now - then for now, then in zip(after[0], before[0], strict=True)), after[1]
    return processors * idle / total if total > 0 else float("inf")


def in_the_way(threads: int, free: float) -> str | None:
    """What to tell who trains on so many threads where so many processors are free, if anything."""
    advised = threads if free >= threads else max(1, round(free))
    if advised == threads:
        return None
    return (
        f"other work leaves {free:.1f} processors free, and {threads} threads wait for it after each operation: "
        f"OMP_NUM_THREADS={advised} trains faster beside it"
    )


def _processor_time(stat: Path) -> tuple[tuple[int, int], int] | None:
    """Idle and all time of all processors together, and how many there are; None if `stat` cannot be read."""
    try:
        lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
    except OSError:
        return None
    numbers = [int(number) for number in lines[0][1:]]
    return (sum(numbers[IDLE]), sum(numbers[COUNTED])), len(lines) - 1
