"""Streams a simulated fleet tick by tick to a running daemon.

A tick is sent until the daemon has acknowledged it. A sample that is sent twice is stored once, because a server has
one row per time. With a position file, a stream that was stopped continues after the last acknowledged tick.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fleet_forecast.contract.specs import STATES
from fleet_forecast.iso_time import iso
from fleet_forecast.simulation.live.feed import Feed
from fleet_forecast.simulation.live.live_fleet import LiveFleet
from fleet_forecast.simulation.live.position import Position
from fleet_forecast.simulation.scenario import Scenario
from fleet_forecast.simulation.states import OFFLINE

RECORDS_IN_ONE_BACKFILL = 2_000  # overdue ticks are sent together up to about this number of records


@dataclass(frozen=True)
class Pace:
    """Due time of a tick: its own time, or for past ticks at once or `speed` times as fast as real time."""

    first: np.datetime64
    speed: float | None
    began: float  # seconds since 1970

    def due(self, timestamp: np.datetime64) -> float:
        """Due time in seconds since 1970."""
        own = float(timestamp.astype("datetime64[s]").astype(np.int64))
        if self.speed is None:
            return own
        replayed = self.began + float((timestamp - self.first).astype(np.int64)) / self.speed
        return max(own, replayed) if own > self.began else replayed


@dataclass(frozen=True)
class StreamPlan:
    """What to stream; steps count from the scenario's start."""

    scenario: Scenario
    first_step: int
    last_step: int
    speed: float | None
    new_server_every_steps: int | None = None
    inject: tuple[tuple[str, str], ...] = ()
    sparse: bool = False
    position_file: Path | None = None


def stream(
    plan: StreamPlan, feed: Feed, on_ticks: Callable[[str, int], None], clock: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Send tick by tick until the plan's last step or until the feed is stopped; returns counts for the report.

    Overdue ticks are sent together in larger requests. on_ticks is called with the newest acknowledged time and the
    number of ticks since the last call. Raises FeedError if the daemon stays unreachable, ValueError if the position
    file or an incident does not fit the plan.
    """
    began, playback = time.monotonic(), _Playback(plan, feed, clock)
    ticks = playback.run(on_ticks)
    return {
        "ticks": ticks,
        "servers": len(playback.fleet.names),
        "records": feed.accepted + feed.rejected,
        "accepted": feed.accepted,
        "rejected": feed.rejected,
        "retries": feed.retries,
        "seconds": round(time.monotonic() - began, 1),
    }


class _Playback:
    """A running stream."""

    def __init__(self, plan: StreamPlan, feed: Feed, clock: Callable[[], float]) -> None:
        self.plan, self.feed, self.clock = plan, feed, clock
        self.position = Position.read(plan.position_file, plan.scenario) if plan.position_file else None
        done = self.position.document if self.position else {"next_step": None, "added": [], "injected": []}
        first = plan.first_step if done["next_step"] is None else done["next_step"]
        self.fleet = LiveFleet(plan.scenario, first)
        for profile, number in done["added"]:
            self.fleet.add_server(profile, number)
        for server_name, label, step in done["injected"]:
            self.fleet.inject(server_name, label, step)
        if done["next_step"] is not None:
            feed.report(f"resuming after {self._time(first - 1)}")
        self.injected = list(done["injected"])
        self.pace = Pace(plan.scenario.timestamps(first, 1)[0], plan.speed, clock())
        self.live_from: int | None = None  # first step after the backfill

    def run(self, on_ticks: Callable[[str, int], None]) -> int:
        """Play to the end; returns the number of acknowledged ticks."""
        fleet, ticks, waiting = self.fleet, 0, 0
        records: list[dict[str, Any]] = []
        while fleet.step < self.plan.last_step and not self.feed.stopped.is_set():
            wait = self._wait()
            self._change_fleet(live=wait > 0 or self.plan.speed is not None)
            if wait > 0 and self.feed.stopped.wait(wait):
                break
            records += self._tick()
            waiting += 1
            if self._is_behind() and len(records) < RECORDS_IN_ONE_BACKFILL:
                continue
            if not self.feed.send(records):
                break
            self._save_position()
            on_ticks(self._time(fleet.step - 1), waiting)
            ticks += waiting
            records, waiting = [], 0
        return ticks

    def _wait(self) -> float:
        return self.pace.due(self.plan.scenario.timestamps(self.fleet.step, 1)[0]) - self.clock()

    def _is_behind(self) -> bool:
        return self.plan.speed is None and self.fleet.step < self.plan.last_step and self._wait() <= 0

    def _tick(self) -> list[dict[str, Any]]:
        records = self.fleet.tick()
        return [record for record in records if not self.plan.sparse or record["state"] != STATES[OFFLINE]]

    def _change_fleet(self, live: bool) -> None:
        """Start requested incidents at the first live tick, and add servers from then on."""
        step, every = self.fleet.step, self.plan.new_server_every_steps
        if self.live_from is None and live:
            self.live_from = step
            begun = {(server_name, label) for server_name, label, _ in self.injected}
            for server_name, label in self.plan.inject:
                if (server_name, label) not in begun:
                    self.fleet.inject(server_name, label)
                    self.injected.append([server_name, label, step])
                    self.feed.report(f"{self._time(step)}: {label} begins on {server_name}")
        elif self.live_from is not None and every is not None and (step - self.live_from) % every == 0:
            self.feed.report(f"{self._time(step)}: added server {self.fleet.add_server()}")

    def _save_position(self) -> None:
        if self.position is not None:
            position = {"next_step": self.fleet.step, "added": self.fleet.added, "injected": self.injected}
            self.position.document |= position
            self.position.write()

    def _time(self, step: int) -> str:
        return iso(self.plan.scenario.timestamps(step, 1)[0])
