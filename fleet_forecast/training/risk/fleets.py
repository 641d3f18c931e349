"""Labelled fleets to train and evaluate the risk model on: simulated ones, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.definitions import BUILT_IN_FLEET
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.peers import Peers
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.risk.alarms import Incidents, Scene
from fleet_forecast.risk.features import RiskInput, RiskSpec
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.incident_kinds import LABELS
from fleet_forecast.simulation.metric_model import simulated
from fleet_forecast.simulation.scenario import Scenario, World
from fleet_forecast.simulation.simulator import Simulator, portions
from server_profiles import PROFILES

START = np.datetime64("2026-09-14T00:00:00", "s")  # a Monday
SERVERS_OF_A_PROFILE = (13, 6, 20)  # of the fleets in turn: peers are few or many
SERVERS_WITHOUT_INCIDENTS = 3  # of a profile that has no incidents
EVEN_FLEETS = tuple(
    {str(profile): servers if spec.incidents else SERVERS_WITHOUT_INCIDENTS for profile, spec in PROFILES.items()}
    for servers in SERVERS_OF_A_PROFILE
)
HISTORY_HOURS = 24  # before the first sample


@dataclass(frozen=True)
class LabelledFleet:
    """A fleet with its incidents.

    rate: incidents per server and month. peers: observed servers of each profile. calendar: of business hours.
    """

    grid: FleetGrid
    incidents: Incidents
    rate: float
    peers: Peers
    calendar: BusinessCalendar

    @property
    def first_step(self) -> int:
        """First step with a whole day before it."""
        return HISTORY_HOURS * 3_600 // self.grid.step_seconds

    def scene(self) -> Scene:
        """The steps from `first_step` on, for the evaluation of alarms."""
        complete = self.grid.timestamps().astype(np.int64)[self.first_step :] + self.grid.step_seconds
        return Scene(len(self.grid.servers), complete.astype(np.float64), self.incidents, self.rate)

    def risk_input(self, spec: RiskSpec, step: int, rows: np.ndarray | slice = slice(None)) -> RiskInput:
        """Some servers at a step of the grid, with the history that the features use."""
        grid = self.grid
        columns = [grid.metrics.index(metric) for metric in spec.metrics]
        history = grid.values[rows, max(0, step + 1 - spec.day_steps) : step + 1][..., columns]
        origin = grid.start + np.timedelta64(step * grid.step_seconds, "s")
        profiles = np.array(grid.profiles, dtype=object)[rows].tolist()
        peers = Peers(self.peers.table, self.peers.members[rows])
        return RiskInput(history, profiles, np.full(len(history), origin), peers)


@dataclass(frozen=True)
class SimulatedFleets:
    """Which fleets are simulated.

    rate: incidents per server and month, many times the usual one so that few fleets have many incidents. without:
    kinds of incident that are left out. counts: servers by profile, of the fleets in turn.
    """

    metrics: tuple[str, ...]
    step_seconds: int
    calendar: BusinessCalendar
    days: float = 14.0
    rate: float = 12.0
    without: tuple[str, ...] = ()
    counts: tuple[Mapping[str, int], ...] = EVEN_FLEETS

    def fleets(self, seeds: Sequence[int]) -> Iterator[LabelledFleet]:
        """One fleet for each seed, one after the other."""
        for position, seed in enumerate(seeds):
            yield self._fleet(seed, self.counts[position % len(self.counts)])

    def _fleet(self, seed: int, counts: Mapping[str, int]) -> LabelledFleet:
        fleet = Fleet.of(counts, seed)
        steps = int((HISTORY_HOURS + 24 * self.days) * 3_600 // self.step_seconds)
        world = World.of(Scenario(fleet, START, steps, self.step_seconds, self.calendar, incident_rate=self.rate))
        unwanted = [LABELS.index(kind) for kind in self.without]
        kept = world.events.where(~np.isin(world.events.kind, unwanted))
        world = World(world.scenario, world.calendar, kept, world.outages)
        simulator = Simulator(world)
        values = np.concatenate([simulator.advance(n).metrics for n in portions(steps, len(fleet))], axis=2)
        chosen = [simulated().positions[metric] for metric in self.metrics]
        profiles = tuple(str(fleet.profile(server)) for server in range(len(fleet)))
        values = np.ascontiguousarray(values[chosen].transpose(1, 2, 0))
        grid = FleetGrid(fleet.names, profiles, self.metrics, START, self.step_seconds, values)
        began, events = float(START.astype(np.int64)), world.events
        onset, start, end = (began + array for array in (events.onset, events.start, events.end))
        incidents = Incidents(events.server, onset, start, end, np.array(LABELS, dtype=object)[events.kind])
        return LabelledFleet(grid, incidents, self.rate, grid.peers(), self.calendar)


def simulated_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """Those metrics on which the simulator's incidents have effects: the built-in ones."""
    return tuple(metric for metric in metrics if metric in BUILT_IN_FLEET.names)


def labelled_fleet(
    grid: FleetGrid, peers: Peers, records: Sequence[IncidentRecord], calendar: BusinessCalendar
) -> LabelledFleet:
    """The user's fleet with its known incidents; the onset of a precursor is not known."""
    row_of = {name: row for row, name in enumerate(grid.servers)}
    fields = [(row_of[record.server_name], record.start_seconds, record.end_seconds) for record in records]
    server, start, end = (np.array(column) for column in zip(*fields, strict=True))
    kinds = np.array([record.type for record in records], dtype=object)
    months = len(grid.servers) * grid.steps * grid.step_seconds / (30 * 86_400)
    return LabelledFleet(grid, Incidents(server, start, start, end, kinds), len(records) / months, peers, calendar)
