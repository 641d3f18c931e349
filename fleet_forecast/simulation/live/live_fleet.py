"""The servers of a scenario and those added later, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.contract.specs import STATES
from fleet_forecast.iso_time import iso
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.incident_kinds import LABELS
from fleet_forecast.simulation.incidents import injected_event
from fleet_forecast.simulation.metric_model import profile_order, simulated
from fleet_forecast.simulation.randomness import uniform
from fleet_forecast.simulation.scenario import Chunk, Scenario, World
from fleet_forecast.simulation.simulator import Simulator, portions
from fleet_forecast.simulation.states import OFFLINE


class LiveFleet:
    """The servers of a scenario and those added later, all at the same step."""

    def __init__(self, scenario: Scenario, first_step: int) -> None:
        self.scenario = scenario
        self._world = World.of(scenario)
        self._groups = [self._at_step(Simulator(self._world), first_step)]
        self.step = first_step
        self.added: list[tuple[str, int]] = []  # profile and number of the servers added later

    @property
    def names(self) -> list[str]:
        return [name for group in self._groups for name in group.world.scenario.fleet.names]

    def add_server(self, profile: str | None = None, number: int | None = None) -> str:
        """Add a server, with a random profile unless one is given; returns its name."""
        turn = len(self.added)
        if profile is None:
            choice = [name for name in profile_order() if PROFILES[name].baselines]
            profile = str(choice[int(uniform(self.scenario.fleet.seed, turn, 123) * len(choice))])
        if number is None:
            taken = self.scenario.fleet.composition().get(profile, 0)
            number = taken + 1 + sum(other == profile for other, _ in self.added)
        fleet = Fleet.of({profile: 1}, self.scenario.fleet.seed, {profile: number})
        self._groups.append(self._at_step(Simulator(self._world.with_fleet(fleet)), self.step))
        self.added.append((profile, number))
        return fleet.names[0]

    def inject(self, server_name: str, label: str, at_step: int | None = None) -> None:
        """Start an incident at a step, by default the next one. Raises ValueError for an unknown server or incident."""
        step = self.step if at_step is None else at_step
        owner = next((group for group in self._groups if server_name in group.world.scenario.fleet.names), None)
        group = owner or self._groups[0]
        onset = float(step * self.scenario.step_seconds)
        group.add_events(injected_event(group.world.scenario.fleet, server_name, label, onset))

    def tick(self) -> list[dict[str, Any]]:
        """The next step of all servers, as records for POST /api/v1/metrics."""
        stamp = iso(self.scenario.timestamps(self.step, 1)[0])
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
            [None] * len(simulated()) if state == OFFLINE else [_rounded(float(v)) for v in chunk.metrics[:, server, 0]]
        )
        yield {
            "timestamp": stamp,
            "server_name": name,
            "profile": str(fleet.profile(server)),
            "state": STATES[state],
            "incident": None if incident < 0 else LABELS[incident],
            **dict(zip(simulated().names, values, strict=True)),
        }


def _rounded(value: float) -> float | None:
    """None for a metric that the profile does not have."""
    return None if math.isnan(value) else round(value, 2)
