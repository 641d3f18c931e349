"""Free CPUs from /proc/stat, and advice only where more threads than free CPUs would be used."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from fleet_forecast.cpu_contention import STAT, ContentionWatch, contention_advice, contention_notes, free_processors

# user nice system idle iowait irq softirq steal guest guest_nice; guest time is part of user time
BEFORE = "cpu  100 0 50 1000 50 0 0 0 90 0\ncpu0 50 0 25 500 25 0 0 0 45 0\ncpu1 50 0 25 500 25 0 0 0 45 0\nintr 1 2\n"
AFTER = "cpu  160 0 60 1110 60 0 0 10 150 0\ncpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 3 4\n"


def test_time_that_is_neither_idle_nor_iowait_is_busy(tmp_path: Path) -> None:
    """Of 200 ticks of two CPUs, 120 are idle or iowait, 60 user, 10 system and 10 steal."""
    stat = tmp_path / "stat"
    stat.write_text(BEFORE)
    replaced = threading.Timer(0.1, stat.write_text, [AFTER])
    replaced.start()
    assert free_processors(0.4, stat) == pytest.approx(2 * 120 / 200)
    replaced.join()


def test_without_proc_stat_there_is_no_advice(tmp_path: Path) -> None:
    assert contention_advice(64, free_processors(0.0, tmp_path / "none")) is None


@pytest.mark.skipif(not STAT.exists(), reason="needs Linux's /proc/stat")
def test_a_busy_process_occupies_a_cpu() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(0.2)
        try:
            assert free_processors(0.5) < os.cpu_count() - 0.5
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("threads", "free", "advised"),
    [(2, 1.9, None), (2, 1.0, 1), (2, 0.0, 1), (8, 8.1, None), (16, 11.8, 12), (1, 0.0, None)],
)
def test_advice_is_given_for_more_threads_than_free_cpus(threads: int, free: float, advised: int | None) -> None:
    advice = contention_advice(threads, free)
    assert advice is None if advised is None else advice is not None and advice.endswith(f"OMP_NUM_THREADS={advised}")


class Clock(NamedTuple):
    """Stands for the module `time`."""

    own: list[float]
    seconds: list[float]

    def process_time(self) -> float:
        return self.own[0]

    def monotonic(self) -> float:
        return self.seconds[0]


@pytest.mark.parametrize("own_cpus", [0.0, 1.5])
def test_advice_comes_each_time_that_other_processes_begin_to_use_the_cpus(
    own_cpus: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four CPUs, other processes use all (already at the start), none, all, all, none and all but two."""
    clock = Clock([0.0], [100.0])
    monkeypatch.setattr("fleet_forecast.cpu_contention.time", clock)
    stat, idle, busy = tmp_path / "stat", 0.0, 0.0

    def write() -> None:
        lines = [f"{name} {busy:.0f} 0 0 {idle:.0f} 0 0 0 0 0 0" for name in ("cpu", "cpu0", "cpu1", "cpu2", "cpu3")]
        stat.write_text("\n".join(lines))

    write()
    watch, advised = ContentionWatch(3, stat), []
    for others in (4 - own_cpus, 0, 4 - own_cpus, 4 - own_cpus, 0, 2):
        clock.seconds[0] += 10
        clock.own[0] += 10 * own_cpus
        busy += 1000 * (others + own_cpus)
        idle += 1000 * (4 - others - own_cpus)
        write()
        advised.append(watch.advice())
    assert [advice is not None for advice in advised] == [False, False, True, False, False, True]
    assert advised[5].startswith("other processes leave 2.0 processors free, and 3 threads wait")


def test_notes_are_written_while_the_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr("fleet_forecast.cpu_contention.WATCH_SECONDS", 0.01)
    monkeypatch.setattr(ContentionWatch, "advice", lambda watch: "fewer threads")
    with contention_notes(2, notes.append):
        time.sleep(0.5)
    written = len(notes)
    assert set(notes) == {"fewer threads"}
    time.sleep(0.1)
    assert len(notes) == written, "the watch ends with the block"


def test_one_thread_is_never_advised() -> None:
    before = threading.active_count()
    with contention_notes(1, pytest.fail):
        assert threading.active_count() == before


def test_without_proc_stat_nothing_is_advised_during_work(tmp_path: Path) -> None:
    assert ContentionWatch(2, tmp_path / "none").advice() is None
