"""The test of changed losses on simulated days: false alarms in a quarter, and days until a change is found.

    OMP_NUM_THREADS=1 python benchmarks/life/drift.py                 # 100 quarters of each kind, about 5 minutes
    OMP_NUM_THREADS=1 python benchmarks/life/drift.py --quarters 20

A day has log(model loss / baseline loss) of each profile and metric: parts that all, or those of a profile, have in
common, and one of its own. In some quarters days depend on the day before (autocorrelation) or on the weekday, or have
heavy tails. Nine days are known from the test period; changes begin when 9, 30 or 60 days are known. Markdown goes to
stdout; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fleet_forecast.drift.detector import QUARTER_DAYS, ChangeDetector, Day, Stream  # noqa: E402

REFERENCE_DAYS = 9
PROFILES, METRICS = 7, 6
NORMAL = math.inf  # degrees of freedom
KINDS = {  # of stationary quarters: correlation from day to day, addition at weekends, degrees of freedom of the losses
    "independent days": (0.0, 0.0, NORMAL),
    "correlation 0.3": (0.3, 0.0, NORMAL),
    "correlation 0.5": (0.5, 0.0, NORMAL),
    "correlation 0.3, weekends 0.1 higher": (0.3, 0.1, NORMAL),
    "correlation 0.3, heavy tails (Student t, 4 degrees of freedom)": (0.3, 0.0, 4.0),
}
CHANGES: dict[str, tuple[float, Any]] = {  # added to the logarithm, where: [day, profile, metric]
    "all by 0.2": (0.2, np.s_[:, :]),
    "one profile by 0.5": (0.5, np.s_[2, :]),
    "one metric of one profile by 0.8": (0.8, np.s_[2, 1]),
}
KNOWN_DAYS = (9, 30, 60)
LONGEST_DELAY = 25
REPEATS = 15


def losses(
    random: np.random.Generator, days: int, correlation: float = 0.3, weekend: float = 0.0, degrees: float = NORMAL
) -> np.ndarray:
    """Losses [day, profile, metric]."""

    def drawn(deviation: float, *shape: int) -> np.ndarray:
        """Of this standard deviation, whatever the degrees of freedom."""
        if degrees == NORMAL:
            return random.normal(0, deviation, shape)
        return deviation * np.sqrt((degrees - 2) / degrees) * random.standard_t(degrees, shape)

    common = np.zeros(days)
    for day, new in enumerate(drawn(0.03, days)):
        common[day] = new + (correlation * common[day - 1] if day else 0)
    own = drawn(0.05, days, PROFILES, 1) + drawn(0.06, days, PROFILES, METRICS)
    return -0.3 + common[:, None, None] + own + weekend * (np.arange(days) % 7 >= 5)[:, None, None]


def first_alarm(values: np.ndarray) -> int | None:
    """Day of the first alarm, None without one."""
    streams = [[Stream(f"profile{i}", f"metric{j}") for j in range(METRICS)] for i in range(PROFILES)]
    days = [
        Day(
            number,
            {streams[i][j]: float(of_day[i, j]) for i in range(PROFILES) for j in range(METRICS)},
            off=number % 7 >= 5,
        )
        for number, of_day in enumerate(values)
    ]
    detector = ChangeDetector.after(days[:REFERENCE_DAYS])
    for day in days[REFERENCE_DAYS:]:
        detector.add(day)
        if detector.changed:
            return day.number
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quarters", type=int, default=100, help="of each kind (%(default)s)")
    quarters = parser.parse_args(argv).quarters
    alarms = {kind: false_alarms(kind, quarters) for kind in KINDS}
    print(f"| stationary quarter | with a false alarm, of {quarters} |\n|---|---|")
    print("\n".join(f"| {kind} | {count} |" for kind, count in alarms.items()), end="\n\n")
    delays = {change: {known: delays_of(change, known) for known in KNOWN_DAYS} for change in CHANGES}
    print(f"| change | days known | days to the alarm, median | found within {LONGEST_DELAY} days, of {REPEATS} |")
    print("|---|---|---|---|")
    for change, by_known in delays.items():
        for known, values in by_known.items():
            found = [value for value in values if value is not None]
            median = f"{np.median(found):.0f}" if found else "-"
            print(f"| {change} | {known} | {median} | {len(found)} |")
    print(json.dumps({"quarters": quarters, "false_alarms": alarms, "delays": delays}))
    return 0


def false_alarms(kind: str, quarters: int) -> int:
    """Number of stationary quarters with an alarm."""
    random = np.random.default_rng([0, list(KINDS).index(kind)])
    days = REFERENCE_DAYS + round(QUARTER_DAYS)
    return sum(first_alarm(losses(random, days, *KINDS[kind])) is not None for _ in range(quarters))


def delays_of(change: str, known: int) -> list[int | None]:
    """Days from the change to the alarm; None if it was not found, or if an alarm came before it."""
    size, where = CHANGES[change]
    random = np.random.default_rng([1, list(CHANGES).index(change), known])
    delays = []
    for _ in range(REPEATS):
        values = losses(random, known + LONGEST_DELAY)
        values[(slice(known, None), *where)] += size
        found = first_alarm(values)
        delays.append(None if found is None or found < known else found - known + 1)
    return delays


if __name__ == "__main__":
    sys.exit(main())
