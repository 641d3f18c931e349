"""The simulated fleet that the flags of metrics_generator.py describe, and the values of its flags."""

from __future__ import annotations

import argparse
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from fleet_forecast.contract.fleet.business_calendar import business_calendar
from fleet_forecast.iso_time import iso
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.metric_model import profile_order
from fleet_forecast.simulation.scenario import Scenario
from fleet_forecast.usage import UsageError

START = "2026-09-14T00:00:00Z"  # a Monday, followed by ten weeks without a market holiday


HOURS = 720.0


LONGEST_HOURS = 87_660.0


def scenario_of(arguments: argparse.Namespace, hours: float, start_text: str) -> Scenario:
    """The scenario of the flags, with this length and start. Raises UsageError."""
    tick = arguments.tick_seconds
    check_length(hours, tick)
    if not 0 <= arguments.incident_rate <= 100:
        raise wrong("--incident_rate", arguments.incident_rate, "give incidents per server and month, 0 to 100")
    for flag in ("seed", "fork_seed"):
        if getattr(arguments, flag) < 0:
            raise wrong(f"--{flag}", getattr(arguments, flag), "give 0 or more")
    try:
        fleet = Fleet.of({profile: getattr(arguments, f"num_{profile}") for profile in profile_order()}, arguments.seed)
        start = instant("--start", start_text, tick)
        calendar = business_calendar(arguments.timezone)
    except UsageError:
        raise
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    steps = int(hours * 3600 / tick + 1e-6)  # whole steps, in spite of the rounding of hours
    return Scenario(
        fleet,
        start,
        steps,
        tick,
        calendar,
        incident_rate=arguments.incident_rate,
        fork_step=_fork_step(arguments, start, steps),
        fork_seed=arguments.fork_seed,
    )


def check_length(hours: float, tick_seconds: int) -> None:
    if tick_seconds <= 0:
        raise wrong("--tick_seconds", tick_seconds, "give a whole number of seconds above 0")
    if not 0 < hours <= LONGEST_HOURS:
        raise wrong("--hours", hours, f"give a number above 0, at most {LONGEST_HOURS:g} (ten years)")
    if tick_seconds > hours * 3600:
        longest = f"{hours:g} h = {hours * 3600:g} s"
        raise wrong("--tick_seconds", tick_seconds, f"give at most the length of the data, {longest}")


def _fork_step(arguments: argparse.Namespace, start: np.datetime64, steps: int) -> int | None:
    """The first step at or after --fork_at."""
    if arguments.fork_at is None:
        return None
    fork = instant("--fork_at", arguments.fork_at, 1)
    tick = arguments.tick_seconds
    step = -int((start - fork).astype("timedelta64[s]").astype(np.int64) // tick)
    if not 0 <= step < steps:
        last = start + np.timedelta64((steps - 1) * tick, "s")
        raise wrong("--fork_at", arguments.fork_at, f"give a time from {iso(start)} to {iso(last)}")
    if arguments.fork_seed == arguments.seed:
        raise wrong(
            "--fork_seed",
            arguments.fork_seed,
            "give another number than --seed",
        )
    return step


_RELATIVE = re.compile(r"now(?:-(\d+(?:\.\d+)?)h)?")


def instant(flag: str, text: str, tick_seconds: int) -> np.datetime64:
    """UTC seconds of "2026-09-14T00:00:00Z", of a date, or of "now-72h" on a whole tick. Raises UsageError."""
    relative = _RELATIVE.fullmatch(text)
    if relative:
        moment = datetime.now(UTC).timestamp() - 3600 * float(relative[1] or 0)
        return np.datetime64(int(moment // tick_seconds * tick_seconds), "s")
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise wrong(flag, text, "give a UTC time such as 2026-09-14T00:00:00Z, a date, or now-72h") from None
    utc = parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)
    if not 1971 <= utc.year < 2199:
        raise wrong(flag, text, "give a time from 1971 to 2198")
    return np.datetime64(int(utc.timestamp()), "s")


_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])")


def duration_seconds(flag: str, text: str) -> float:
    """Seconds of "90s", "10m" or "1h"."""
    parts = _DURATION.fullmatch(text)
    if not parts or not float(parts[1]):
        raise wrong(flag, text, "write a number above 0 with its unit, such as 90s, 10m or 1h")
    return float(parts[1]) * {"s": 1, "m": 60, "h": 3600}[parts[2]]


def read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise wrong("--token_file", path, f"it cannot be read ({problem}); give a file with the token") from None


def refuse_unwritable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"folder {folder} cannot be written; choose another with --out_dir, or change its permissions")


def wrong(flag: str, value: object, remedy: str) -> UsageError:
    return UsageError(f"{flag} is {value}; {remedy}")
