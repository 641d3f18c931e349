"""Simulates a group of servers, a chunk of steps at a time; no value depends on the group or the chunk."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fleet_forecast.simulation.incident_effects import apply_incidents, apply_maintenance, apply_outages
from fleet_forecast.simulation.incidents import Events, join_events
from fleet_forecast.simulation.noise import NoiseSources
from fleet_forecast.simulation.physics import healthy_metrics, parameters_of, rhythm_curves, round_metrics
from fleet_forecast.simulation.scenario import Chunk, Scenario, Trace, World
from fleet_forecast.simulation.states import MORNING_SPIKE, LoadStates

Float32 = npt.NDArray[np.float32]


class Simulator:
    """A group of servers of a world, from its first step on; `advance` returns the next steps."""

    def __init__(self, world: World, servers: npt.NDArray[np.int64] | None = None) -> None:
        scenario = world.scenario
        self.servers = np.arange(len(scenario.fleet)) if servers is None else np.asarray(servers)
        self.world = world.of_servers(self.servers)
        self.step = 0
        self.noise = NoiseSources(scenario.fleet, self.servers, scenario.step_seconds)
        self._parameters = parameters_of(scenario.fleet, self.servers)
        self._load_states = LoadStates(len(self.servers))

    def add_events(self, events: Events) -> None:
        """Add incidents; those with an onset in the past take effect from the next step on."""
        self.world = replace(self.world, events=join_events(self.world.events, events))

    def advance(self, steps: int) -> Chunk:
        """The next `steps` steps."""
        scenario = self.world.scenario
        first, fork = self.step, scenario.fork_step
        if fork is not None and first < fork < first + steps:
            before = self.noise.advance(fork - first)
            self.noise.reseed(scenario.fork_seed)
            noise = np.concatenate([before, self.noise.advance(first + steps - fork)], axis=2)
        else:
            if fork is not None and first == fork:
                self.noise.reseed(scenario.fork_seed)
            noise = self.noise.advance(steps)
        self.step = first + steps
        return self._observe(first, noise)

    def forks(self, steps: int, seeds: Sequence[int]) -> Float32:
        """Possible futures from the present step: float32 [fork, server, step, metric]; the simulator is unchanged.

        A fork equals a scenario with `fork_step=self.step, fork_seed=seed`, without incidents that begin later. The
        forks are draws from the true predictive distribution.
        """
        now = float(self.step * self.world.scenario.step_seconds)
        events, outages = self.world.events, self.world.outages
        begun = replace(self.world, events=events.where(events.onset < now), outages=outages.where(outages.start < now))
        futures = []
        for seed in seeds:
            fork = copy.copy(self)
            fork.world, fork.noise = begun, self.noise.fork(seed)
            fork._load_states = copy.copy(self._load_states)
            futures.append(
                np.concatenate([fork.advance(n).metrics for n in portions(steps, len(self.servers))], axis=2)
            )
        return np.stack(futures).transpose(0, 2, 3, 1)

    def _observe(self, first: int, noise: Float32) -> Chunk:
        """The chunk from step `first` on; overwrites `noise` [source, server, step]."""
        scenario, world = self.world.scenario, self.world
        steps = noise.shape[2]
        clock = scenario.timestamps(first, steps)
        minute = clock.astype("datetime64[m]").astype(np.int64) - world.calendar.first_minute
        curves = rhythm_curves(minute, world.calendar, self._parameters)
        states = self._load_states.advance(noise[0])
        states[curves.spike] = MORNING_SPIKE
        incidents = np.full(states.shape, -1, dtype=np.int8)
        chunk = Chunk(first, healthy_metrics(noise, curves, self._parameters), states, incidents)
        seconds = np.arange(first, first + steps, dtype=np.float64) * scenario.step_seconds
        apply_maintenance(chunk, curves.maintenance)
        apply_incidents(chunk, seconds, self.servers, world.events)
        apply_outages(chunk, seconds, self.servers, world.outages)
        round_metrics(chunk.metrics)
        return chunk


def simulate(scenario: Scenario, first_step: int = 0) -> Trace:
    """A whole scenario in memory, from `first_step` on."""
    simulator = Simulator(World.of(scenario))
    for steps in portions(first_step, len(scenario.fleet)):
        simulator.advance(steps)
    chunks = [simulator.advance(steps) for steps in portions(scenario.steps - first_step, len(scenario.fleet))]
    return Trace(
        scenario.timestamps(first_step),
        np.concatenate([chunk.metrics for chunk in chunks], axis=2).transpose(1, 2, 0),
        np.concatenate([chunk.states for chunk in chunks], axis=1),
        np.concatenate([chunk.incidents for chunk in chunks], axis=1),
    )


def portions(steps: int, servers: int) -> Iterator[int]:
    """Lengths of the chunks into which steps are cut."""
    portion = chunk_steps(servers)
    for first in range(0, steps, portion):
        yield min(portion, steps - first)


def chunk_steps(servers: int) -> int:
    """Steps to advance at a time so that the arrays stay in the processor's cache; no value depends on it."""
    return max(1, 32_768 // max(1, servers))
