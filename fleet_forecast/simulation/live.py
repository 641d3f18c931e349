"""A simulated fleet live: metrics tick by tick to a running daemon, nothing lost and nothing twice.

A tick counts as sent when the daemon has acknowledged it; until then it is sent again, with growing pauses. A sample
sent twice is one sample for the daemon, because a server has one row a time. With a position file, a stream that was
stopped goes on after the last acknowledged tick.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from fleet_forecast.contract.specs import METRICS
from fleet_forecast.simulation.fleet import PROFILE_ORDER, Fleet
from fleet_forecast.simulation.incidents import LABELS, injected_event
from fleet_forecast.simulation.physics import OFFLINE, STATE_NAMES, Chunk, Scenario, Simulator, World, portions
from fleet_forecast.simulation.randomness import uniform

RECORDS_IN_ONE_REQUEST = 10_000
RECORDS_IN_ONE_BACKFILL = 2_000  # overdue ticks are sent together up to about so many records
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
PATIENCE_AT_FIRST_SECONDS = 10.0  # a wrong address should not keep anyone waiting
PATIENCE_SECONDS = 3600.0  # a daemon that has answered before may be away for so long
TIMEOUT_SECONDS = 30.0

Say = Callable[[str], None]


class FeedError(RuntimeError):
    """The daemon cannot be reached or refuses the samples; the message names the address and the reason."""


@dataclass
class Feed:
    """POST /api/v1/metrics of one daemon, with retry and back-off.

    stopped: set it to end a wait. transport: another way to the daemon, for tests.
    """

    url: str
    say: Say
    stopped: threading.Event
    token: str | None = None
    transport: httpx.BaseTransport | None = None
    patience_at_first_seconds: float = PATIENCE_AT_FIRST_SECONDS
    accepted: int = 0
    rejected: int = 0
    retries: int = 0
    _client: httpx.Client = field(init=False, repr=False)
    _answered: bool = False

    def __post_init__(self) -> None:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS, transport=self.transport)

    def send(self, records: list[dict[str, Any]]) -> bool:
        """Send samples until they are acknowledged; False if `stopped` was set before that. Raises FeedError."""
        for first in range(0, len(records), RECORDS_IN_ONE_REQUEST):
            if not self._send_once_or_again(records[first : first + RECORDS_IN_ONE_REQUEST]):
                return False
        return True

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send_once_or_again(self, records: list[dict[str, Any]]) -> bool:
        began, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while not self.stopped.is_set():
            reason, wait = self._post(records)
            if reason is None:
                return True
            patience = PATIENCE_SECONDS if self._answered else self.patience_at_first_seconds
            if time.monotonic() - began > patience:
                msg = f"{self.url} does not take samples: {reason}; start the daemon, or correct the address"
                raise FeedError(msg)
            self.retries += 1
            wait = wait if wait is not None else pause
            self.say(f"{self.url}: {reason}; trying again in {wait:g} s")
            self.stopped.wait(wait)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return False

    def _post(self, records: list[dict[str, Any]]) -> tuple[str | None, float | None]:
        """None if acknowledged, else why not and for how long the daemon wants to be left alone. Raises FeedError."""
        address = self.url.rstrip("/") + "/api/v1/metrics"
        try:
            response = self._client.post(address, json={"records": records})
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as problem:
            raise FeedError(f"{self.url!r} is no address ({problem}); write http://host:port") from None
        except httpx.TransportError as problem:
            return f"{type(problem).__name__}: {problem}", None
        status = response.status_code
        if status in (408, 425, 429) or status >= 500:
            return f"status {status}", _retry_after(response)
        if status != httpx.codes.OK:
            raise FeedError(f"{address} refuses the samples with status {status}: {response.text[:300]}")
        self._answered = True
        self._count(address, response)
        return None, None

    def _count(self, address: str, response: httpx.Response) -> None:
        try:
            answer = response.json()
            accepted, rejected = int(answer["accepted"]), list(answer["rejected"])
        except (ValueError, KeyError, TypeError):
            msg = f"{address} does not answer like this project's daemon: {response.text[:100]!r}; correct the address"
            raise FeedError(msg) from None
        self.accepted += accepted
        self.rejected += len(rejected)
        if rejected:
            self.say(f"{len(rejected)} samples rejected, the first one: {rejected[0]}")


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return min(float(response.headers["retry-after"]), LONGEST_PAUSE_SECONDS)
    except (KeyError, ValueError):
        return None


class LiveFleet:
    """The servers of a scenario and those racked later, all at the same step."""

    def __init__(self, scenario: Scenario, first_step: int) -> None:
        self.scenario = scenario
        self._world = World.of(scenario)
        self._groups = [self._at_step(Simulator(self._world), first_step)]
        self.step = first_step
        self.racked: list[tuple[str, int]] = []  # profile and number of servers added

    @property
    def names(self) -> list[str]:
        """All servers."""
        return [name for group in self._groups for name in group.world.scenario.fleet.names]

    def rack(self, profile: str | None = None, number: int | None = None) -> str:
        """Add a server, of a random profile unless one is given; returns its name."""
        turn = len(self.racked)
        if profile is None:
            position = int(uniform(self.scenario.fleet.seed, turn, 123) * len(PROFILE_ORDER))
            profile = str(PROFILE_ORDER[position])
        if number is None:
            taken = self.scenario.fleet.composition().get(profile, 0)
            number = taken + 1 + sum(other == profile for other, _ in self.racked)
        fleet = Fleet.of({profile: 1}, self.scenario.fleet.seed, {profile: number})
        self._groups.append(self._at_step(Simulator(self._world.with_fleet(fleet)), self.step))
        self.racked.append((profile, number))
        return fleet.names[0]

    def inject(self, server_name: str, label: str, at_step: int | None = None) -> None:
        """Let an incident begin at a step, by default the next one. Raises ValueError for an unknown one."""
        step = self.step if at_step is None else at_step
        owner = next((group for group in self._groups if server_name in group.world.scenario.fleet.names), None)
        group = owner or self._groups[0]
        onset = float(step * self.scenario.step_seconds)
        group.add_events(injected_event(group.world.scenario.fleet, server_name, label, onset))

    def tick(self) -> list[dict[str, Any]]:
        """The next step of all servers, as records of the daemon's interface."""
        stamp = f"{self.scenario.timestamps(self.step, 1)[0]}Z"
        self.step += 1
        return [
            record for group in self._groups for record in _records(group.world.scenario.fleet, group.advance(1), stamp)
        ]

    def _at_step(self, simulator: Simulator, step: int) -> Simulator:
        for steps in portions(step, len(simulator.servers)):
            simulator.advance(steps)
        return simulator


def _records(fleet: Fleet, chunk: Chunk, stamp: str) -> Iterator[dict[str, Any]]:
    codes = zip(fleet.names, chunk.states[:, 0].tolist(), chunk.incidents[:, 0].tolist(), strict=True)
    for server, (name, state, incident) in enumerate(codes):
        values = (
            [None] * len(METRICS) if state == OFFLINE else [round(float(v), 2) for v in chunk.metrics[:, server, 0]]
        )
        yield {
            "timestamp": stamp,
            "server_name": name,
            "profile": str(fleet.profile(server)),
            "state": STATE_NAMES[state],
            "incident": None if incident < 0 else LABELS[incident],
            **dict(zip(METRICS, values, strict=True)),
        }


@dataclass(frozen=True)
class Pace:
    """When a tick is due: at its own time; before now at once, or `speed` times as fast as it happened."""

    first: np.datetime64
    speed: float | None
    began: float  # seconds since 1970

    def due(self, timestamp: np.datetime64) -> float:
        """Seconds since 1970."""
        own = float(timestamp.astype("datetime64[s]").astype(np.int64))
        if self.speed is None:
            return own
        replayed = self.began + float((timestamp - self.first).astype(np.int64)) / self.speed
        return max(own, replayed) if own > self.began else replayed


@dataclass
class Position:
    """How far a stream has come, in a file that is replaced as a whole after each acknowledged tick."""

    path: Path
    document: dict[str, Any]

    @classmethod
    def read(cls, path: Path, scenario: Scenario) -> Position:
        """The position in the file, or the beginning if there is none. Raises ValueError if it is another stream's."""
        own = {
            "start": f"{scenario.start}Z",
            "step_seconds": scenario.step_seconds,
            "seed": scenario.fleet.seed,
            "fleet": scenario.fleet.composition(),
        }
        if not path.exists():
            return cls(path, {"stream": own, "next_step": None, "racked": [], "injected": []})
        document = _position_document(path)
        if document["stream"] != own:
            msg = f"position file {path} is of another stream ({document['stream']}); use the same flags, or remove it"
            raise ValueError(msg)
        return cls(path, document)

    @staticmethod
    def start_of(path: Path) -> str | None:
        """When the stream in the file began, None where there is no file. Raises ValueError if it is damaged."""
        return str(_position_document(path)["stream"]["start"]) if path.exists() else None

    def write(self) -> None:
        """Replace the file."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.document), encoding="utf-8")
        temporary.replace(self.path)


def _position_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        known = {"stream", "next_step", "racked", "injected"} <= document.keys() and "start" in document["stream"]
    except (ValueError, TypeError, AttributeError):
        known = False
    if not known:
        msg = f"position file {path} is not one; give another path, or remove it"
        raise ValueError(msg)
    return dict(document)


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

    Ticks that are overdue go together in larger requests. on_ticks is called with the newest acknowledged time and the
    number of ticks since the last call. Raises FeedError if the daemon is lost, ValueError if the position file or an
    incident does not fit.
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
    """A stream under way."""

    def __init__(self, plan: StreamPlan, feed: Feed, clock: Callable[[], float]) -> None:
        self.plan, self.feed, self.clock = plan, feed, clock
        self.position = Position.read(plan.position_file, plan.scenario) if plan.position_file else None
        done = self.position.document if self.position else {"next_step": None, "racked": [], "injected": []}
        first = plan.first_step if done["next_step"] is None else done["next_step"]
        self.fleet = LiveFleet(plan.scenario, first)
        for profile, number in done["racked"]:
            self.fleet.rack(profile, number)
        for server_name, label, step in done["injected"]:
            self.fleet.inject(server_name, label, step)
        if done["next_step"] is not None:
            feed.say(f"going on after {self._time(first - 1)}")
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
            self._remember()
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
        return [record for record in records if not self.plan.sparse or record["state"] != STATE_NAMES[OFFLINE]]

    def _change_fleet(self, live: bool) -> None:
        """Incidents asked for begin with the first live tick; servers are racked from then on."""
        step, every = self.fleet.step, self.plan.new_server_every_steps
        if self.live_from is None and live:
            self.live_from = step
            begun = {(server_name, label) for server_name, label, _ in self.injected}
            for server_name, label in self.plan.inject:
                if (server_name, label) not in begun:
                    self.fleet.inject(server_name, label)
                    self.injected.append([server_name, label, step])
                    self.feed.say(f"{self._time(step)}: {label} begins on {server_name}")
        elif self.live_from is not None and every is not None and (step - self.live_from) % every == 0:
            self.feed.say(f"{self._time(step)}: racked {self.fleet.rack()}")

    def _remember(self) -> None:
        if self.position is not None:
            position = {"next_step": self.fleet.step, "racked": self.fleet.racked, "injected": self.injected}
            self.position.document |= position
            self.position.write()

    def _time(self, step: int) -> str:
        return f"{self.plan.scenario.timestamps(step, 1)[0]}Z"
