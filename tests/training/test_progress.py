"""The progress display on a terminal and in a file: completed share, summary, remaining time."""

from __future__ import annotations

import io
import re
import sys

import pytest

from fleet_forecast.training import progress
from fleet_forecast.training.progress import ProgressDisplay


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: seconds[0])
    return seconds


def test_a_file_gets_one_line_per_interval(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    called_at: list[float] = []

    def summary() -> str:
        called_at.append(clock[0])
        return f"fact {clock[0]:.0f}"

    with ProgressDisplay("training") as display:
        for second in range(101):
            clock[0] = float(second)
            display.update(second / 200, float(second), summary)
        display.update(1.0, 3700.0, lambda: "the end", last=True)
    assert written.getvalue().splitlines() == [
        "training   0 %: fact 0, ETA unknown",
        "training  15 %: fact 30, ETA 2:50",
        "training  30 %: fact 60, ETA 2:20",
        "training  45 %: fact 90, ETA 1:50",
        "training 100 %: the end, took 1:01:40",
    ]
    assert called_at == [0, 30, 60, 90], "the summary may wait for the GPU, so it is called only when it is shown"


def test_a_terminal_gets_one_bar_with_the_summary(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    written = Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    with ProgressDisplay("training") as display:
        clock[0] = 60.0
        display.update(0.25, 60.0, lambda: "215 windows/s")
        clock[0] = 61.0
        display.update(0.5, 61.0, lambda: "216 windows/s")
    assert "\n" not in written.getvalue().rstrip("\n"), "one line, overwritten"
    shown = [text for text in re.split(r"[\r\n]", written.getvalue()) if "windows/s" in text]
    assert "training  25%" in shown[0]
    assert "215 windows/s, ETA 3:00" in shown[0]
    assert "216 windows/s, ETA 1:01" in shown[-1]
