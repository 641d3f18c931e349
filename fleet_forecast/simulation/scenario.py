"""A scenario to simulate, the calendar and incidents that its servers share, and the simulated values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.calendar import DEFAULT_CALENDAR, BusinessCalendar
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.incidents import Events, Period, join_events, schedule_events
from fleet_forecast.simulation.outages import Outages, schedule_outages
from fleet_forecast.simulation.rhythm import Calendar

GENERATOR_VERSION = "1.1.0"  # rises when the values of a seed change
_LEAD_MINUTES = 60  # the calendar reaches this far beyond the scenario, more than any server's phase


@dataclass(frozen=True)
class Scenario:
    """Servers, time and incident rates of a simulation.

    Steps from `fork_step` on draw all their random numbers from `fork_seed`.
    """

    fleet: Fleet
    start: np.datetime64  # of the first row, seconds, UTC
    steps: int
    step_seconds: int
    calendar: BusinessCalendar = DEFAULT_CALENDAR
    incident_rate: float = 1.0  # incidents a server and month
    outage_rate: float = 1.0  # relative to incidents.OUTAGES_PER_MONTH
    fork_step: int | None = None
    fork_seed: int = 0

    @property
    def seconds(self) -> float:
        return float(self.steps * self.step_seconds)

    def timestamps(self, first: int = 0, steps: int | None = None) -> npt.NDArray[np.datetime64]:
        """UTC times of steps, datetime64[s]."""
        count = self.steps - first if steps is None else steps
        return self.start + (first + np.arange(count)) * np.timedelta64(self.step_seconds, "s")


class Chunk(NamedTuple):
    """Some steps of a group of servers."""

    first_step: int
    metrics: npt.NDArray[np.float32]  # [metric, server, step], NaN where offline; of metric_model.simulated()
    states: npt.NDArray[np.int8]  # [server, step] position in STATES
    incidents: npt.NDArray[np.int8]  # [server, step] position in incident_kinds.LABELS, -1 for none


class Trace(NamedTuple):
    """A whole simulation."""

    timestamps: npt.NDArray[np.datetime64]  # [step]
    metrics: npt.NDArray[np.float32]  # [server, step, metric], NaN where offline
    states: npt.NDArray[np.int8]  # [server, step]
    incidents: npt.NDArray[np.int8]  # [server, step]


@dataclass(frozen=True)
class World:
    """What the servers of a scenario share: the calendar, the incidents and the outages."""

    scenario: Scenario
    calendar: Calendar
    events: Events
    outages: Outages

    @classmethod
    def of(cls, scenario: Scenario) -> World:
        """Calendar, incidents and outages of a scenario."""
        first = int(scenario.start.astype("datetime64[m]").astype(np.int64)) - _LEAD_MINUTES
        last = first + 2 * _LEAD_MINUTES + int(scenario.seconds // 60) + 1
        return cls(scenario, Calendar.between(first, last, scenario.calendar), *_schedule(scenario))

    def with_fleet(self, fleet: Fleet) -> World:
        """The same time with other servers and their incidents and outages."""
        scenario = replace(self.scenario, fleet=fleet)
        events, outages = _schedule(scenario)
        return replace(self, scenario=scenario, events=events, outages=outages)

    def of_servers(self, servers: npt.NDArray[np.int64]) -> World:
        """The same world with the events and outages of some servers only."""
        events = self.events.where(np.isin(self.events.server, servers))
        return replace(self, events=events, outages=self.outages.where(np.isin(self.outages.server, servers)))


def _schedule(scenario: Scenario) -> tuple[Events, Outages]:
    """Incidents and outages; of those before a fork, only the ones that begin before it are kept."""
    fleet, rate = scenario.fleet, scenario.incident_rate
    whole = Period(0.0, scenario.seconds)
    events = schedule_events(fleet, fleet.seed, rate, whole)
    outages = schedule_outages(fleet, fleet.seed, scenario.outage_rate, whole)
    if scenario.fork_step is None:
        return events, outages
    fork = float(scenario.fork_step * scenario.step_seconds)
    events, outages = events.where(events.onset < fork), outages.where(outages.start < fork)
    after_fork, busy = Period(fork, scenario.seconds), np.full(len(fleet), fork)
    np.maximum.at(busy, events.server, events.end)
    later_events = schedule_events(fleet, scenario.fork_seed, rate, after_fork, busy)
    later_outages = schedule_outages(fleet, scenario.fork_seed, scenario.outage_rate, after_fork)
    joined = Outages._make(np.concatenate(pair) for pair in zip(outages, later_outages, strict=True))
    return join_events(events, later_events), joined
