"""A simulated fleet, live, to a running daemon: metrics_generator.py --stream URL."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from fleet_forecast.commands.generator.scenario_of_flags import (
    check_length,
    duration_seconds,
    instant,
    read_token,
    scenario_of,
    wrong,
)
from fleet_forecast.simulation.incidents import injected_event
from fleet_forecast.simulation.live.feed import Feed
from fleet_forecast.simulation.live.playback import StreamPlan
from fleet_forecast.simulation.live.playback import stream as play
from fleet_forecast.simulation.live.position import Position
from fleet_forecast.simulation.scenario import Scenario
from fleet_forecast.usage import UsageError

LONGEST_STREAM_HOURS = 366 * 24.0


def stream(arguments: argparse.Namespace) -> dict[str, object]:
    """Send a simulated fleet live to a daemon until Ctrl-C, SIGTERM or the end of --hours."""
    plan = stream_plan(arguments)
    token, stopped = read_token(arguments.token_file), threading.Event()
    with _until_asked_to_stop(stopped), tqdm(unit="tick", desc="streaming", disable=None, leave=False) as bar:
        feed = Feed(arguments.stream, lambda text: tqdm.write(text, file=sys.stderr), stopped, token)
        try:
            counts = play(plan, feed, lambda timestamp, ticks: _show_ticks(bar, timestamp, ticks))
        finally:
            feed.close()
    return {**counts, "url": arguments.stream}


def stream_plan(arguments: argparse.Namespace) -> StreamPlan:
    """The plan of the flags. Raises UsageError, and ValueError for a damaged position file."""
    tick, position_file = arguments.tick_seconds, arguments.position_file
    hours = LONGEST_STREAM_HOURS if arguments.hours is None else arguments.hours
    check_length(hours, tick)
    if arguments.speed is not None and not 0 < arguments.speed < float("inf"):
        raise wrong("--speed", arguments.speed, "give a multiple of real time, above 0")
    if not 0 <= arguments.backfill_hours < float("inf"):
        raise wrong("--backfill_hours", arguments.backfill_hours, "give 0 or more")
    start = arguments.start
    if start is None and position_file:
        start = Position.start_of(position_file)
    if start is None:
        start = f"now-{arguments.backfill_hours:f}h"
    elapsed = time.time() - float(instant("--start", start, tick).astype(np.int64))
    if elapsed < 0:
        raise wrong("--start", start, "a stream cannot begin in the future; give an earlier time, or now")
    first = max(0, math.ceil((elapsed - arguments.backfill_hours * 3600) / tick))
    scenario = scenario_of(arguments, first * tick / 3600 + hours, start)
    every = duration_seconds("--new_server_every", arguments.new_server_every) if arguments.new_server_every else None
    return StreamPlan(
        scenario,
        first,
        scenario.steps,
        arguments.speed,
        new_server_every_steps=max(1, round(every / tick)) if every else None,
        inject=tuple(_injections(scenario, arguments.inject)),
        sparse=arguments.offline_mode == "sparse",
        position_file=position_file,
    )


def _show_ticks(bar: tqdm[NoReturn], timestamp: str, ticks: int) -> None:
    bar.set_postfix_str(timestamp, refresh=False)
    bar.update(ticks)


@contextmanager
def _until_asked_to_stop(stopped: threading.Event) -> Iterator[None]:
    """On Ctrl-C and SIGTERM the current tick is still acknowledged; the earlier handlers are restored afterwards."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _injections(scenario: Scenario, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        server_name, colon, label = text.partition(":")
        if not colon:
            raise wrong("--inject", text, "write SERVER:INCIDENT, such as ppdb003:lock_contention")
        try:
            injected_event(scenario.fleet, server_name, label, 0.0)
        except ValueError as problem:
            raise UsageError(f"--inject {text}: {problem}") from None
        yield server_name, label
