"""Fleets for the lives: which servers are measured on which day, and what changes when.

A simulated fleet that grows and shrinks over 12 weeks, and two real ones. Days are counted from the first one of the
data. Whatever a world hides of a server (the time before it appears, the time after it is removed) is not measured.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_contract import read_metrics  # noqa: E402
from fleet_forecast.features.grid import FleetGrid  # noqa: E402
from fleet_forecast.simulation import scenario  # noqa: E402
from fleet_forecast.simulation.fleet import Fleet  # noqa: E402
from fleet_forecast.simulation.metric_model import simulated  # noqa: E402
from fleet_forecast.simulation.simulator import Simulator, portions  # noqa: E402

DATA = ROOT / "../shared/data"
DAY_SECONDS, WEEK_DAYS = 86_400, 7
HISTORY_DAYS = 9  # before an origin: more than a window reads


@dataclass(frozen=True)
class World:
    """A fleet and its life.

    periods: the days of each reported column, by its name. training_days: length of what a training gets. first_day:
    of the life; the first training has the days before. appeared: int64 [server], first day of each server.
    retraining_days: those on which the policy "regular" trains. changes: day of each real change, by name.
    """

    name: str
    grid: FleetGrid
    timezone: str
    periods: Mapping[str, tuple[int, ...]]
    training_days: int
    retraining_days: tuple[int, ...]
    changes: Mapping[str, int] = field(default_factory=dict)

    @property
    def first_day(self) -> int:
        return min(min(days) for days in self.periods.values())

    @property
    def days(self) -> list[int]:
        """The days of the life, in order."""
        return sorted(day for days in self.periods.values() for day in days)

    @property
    def day_steps(self) -> int:
        return DAY_SECONDS // self.grid.step_seconds

    @property
    def appeared(self) -> np.ndarray:
        """First day on which each server was measured: int64 [server]."""
        return np.asarray((~np.isnan(self.grid.values).all(axis=2)).argmax(axis=1)) // self.day_steps

    @property
    def epoch_day(self) -> int:
        """Day 0, in days since 1970."""
        return int(self.grid.start.astype("datetime64[D]").astype(np.int64))

    def around(self, day: int) -> tuple[FleetGrid, int]:
        """The grid from HISTORY_DAYS before a day to the day after it, and the step at which the day begins."""
        first = max(0, day - HISTORY_DAYS) * self.day_steps
        part = slice(first, (day + 2) * self.day_steps)
        start = self.grid.start + np.timedelta64(first * self.grid.step_seconds, "s")
        return replace(self.grid, start=start, values=self.grid.values[:, part]), day * self.day_steps - first

    def rows_until(self, day: int) -> pd.DataFrame:
        """Rows of the data contract: the last training_days before a day, of the servers that are measured then."""
        first, end = max(0, day - self.training_days) * self.day_steps, day * self.day_steps
        values = self.grid.values[:, first:end]
        server, step = np.nonzero(~np.isnan(values).all(axis=2))
        frame = pd.DataFrame({"timestamp": pd.to_datetime(self.grid.timestamps()[first:end][step], utc=True)})
        for name, labels in (("server_name", self.grid.servers), ("profile", self.grid.profiles)):
            kinds = sorted({str(label) for label in labels})
            codes = np.array([kinds.index(str(label)) for label in labels])
            frame[name] = pd.Categorical.from_codes(codes[server].tolist(), pd.Index(kinds))
        for index, metric in enumerate(self.grid.metrics):
            frame[metric] = values[server, step, index]
        return frame

    def measured_on(self, day: int) -> np.ndarray:
        """Rows of the servers that were measured on a day: int64."""
        part = self.grid.values[:, day * self.day_steps : (day + 1) * self.day_steps]
        return np.flatnonzero(~np.isnan(part).all(axis=(1, 2)))


# --- simulated ------------------------------------------------------------------------------------------------------

START = np.datetime64("2026-03-02T00:00:00", "s")  # a Monday
SIMULATED_TRAINING_DAYS, WEEKS = 21, 12
SERVERS = {"ml_compute": 6, "database": 7, "web_api": 9, "conductor_mgmt": 5, "data_ingest": 6, "generic": 5}
NEW_A_WEEK, REMOVED_A_WEEK = 3, 2
CHANGE_DAY = 2  # of a week: Wednesday
NEW_TYPE, NEW_TYPE_WEEK, NEW_TYPE_SERVERS = "risk_analytics", 8, 5
MOVED, MOVED_WEEK, MOVED_MINUTES = "web_api", 10, 300


@dataclass(frozen=True)
class Lifetime:
    """A server of a simulated fleet: its first day, and the day before which it is removed (None: never)."""

    profile: str
    number: int
    first: int
    end: int | None = None


def lifetimes() -> list[Lifetime]:
    """Each week new servers of known profiles appear and the oldest ones of others are removed, in turn."""
    known = list(SERVERS)
    servers = [Lifetime(profile, number, 0) for profile in known for number in range(1, SERVERS[profile] + 1)]
    for week in range(1, WEEKS + 1):
        day = day_of(week)
        for turn in range(NEW_A_WEEK):
            profile = known[(NEW_A_WEEK * week + turn) % len(known)]
            number = 1 + sum(each.profile == profile for each in servers)
            servers.append(Lifetime(profile, number, day))
        for turn in range(REMOVED_A_WEEK):
            profile = known[(REMOVED_A_WEEK * week + turn + 1) % len(known)]
            oldest = next(each for each in servers if each.profile == profile and each.end is None)
            servers[servers.index(oldest)] = replace(oldest, end=day)
        if week == NEW_TYPE_WEEK:
            servers += [Lifetime(NEW_TYPE, number, day) for number in range(1, NEW_TYPE_SERVERS + 1)]
    return servers


def day_of(week: int) -> int:
    """The day of a week of the life, from 1, on which the fleet changes."""
    return SIMULATED_TRAINING_DAYS + (week - 1) * WEEK_DAYS + CHANGE_DAY


def simulated_world(step_seconds: int, seed: int = 11) -> World:
    """The simulated fleet; its means over `step_seconds`."""
    servers, days = lifetimes(), SIMULATED_TRAINING_DAYS + WEEKS * WEEK_DAYS
    counts = dict.fromkeys([*SERVERS, NEW_TYPE], 0)
    for each in servers:
        counts[each.profile] += 1
    fleet = Fleet.of(counts, seed)
    day_steps = DAY_SECONDS // step_seconds
    usual = _values(fleet, days, step_seconds)
    is_moved = np.array([fleet.profile(row) == MOVED for row in range(len(fleet))])
    phase = fleet.traits.phase_minutes + MOVED_MINUTES * is_moved
    moved = _values(replace(fleet, traits=replace(fleet.traits, phase_minutes=phase)), days, step_seconds)
    from_step = day_of(MOVED_WEEK) * day_steps
    values = np.where((np.arange(usual.shape[1]) >= from_step)[None, :, None], moved, usual)
    by_key = {(each.profile, each.number): each for each in servers}
    for row in range(len(fleet)):
        life = by_key[str(fleet.profile(row)), int(fleet.numbers[row])]
        values[row, : life.first * day_steps] = np.nan
        values[row, days * day_steps if life.end is None else life.end * day_steps :] = np.nan
    profiles = tuple(str(fleet.profile(row)) for row in range(len(fleet)))
    grid = FleetGrid(fleet.names, profiles, simulated().names, START, step_seconds, values)
    first = SIMULATED_TRAINING_DAYS
    weeks = [tuple(range(begin, begin + WEEK_DAYS)) for begin in range(first, days, WEEK_DAYS)]
    changes = {f"new type {NEW_TYPE}": day_of(NEW_TYPE_WEEK), f"moved rhythm of {MOVED}": day_of(MOVED_WEEK)}
    periods = {f"week {number}": week for number, week in enumerate(weeks, start=1)}
    regular = tuple(week[0] for week in weeks[1:])
    return World("simulated", grid, "America/New_York", periods, SIMULATED_TRAINING_DAYS, regular, changes)


def _values(fleet: Fleet, days: int, step_seconds: int) -> np.ndarray:
    """float32 [server, step, metric]. The calendar has a day more, as the days of moved servers begin earlier."""
    steps = days * DAY_SECONDS // step_seconds
    longer = scenario.Scenario(fleet, START, steps + DAY_SECONDS // step_seconds, step_seconds)
    simulator = Simulator(scenario.World.of(longer))
    parts = [simulator.advance(part).metrics for part in portions(steps, len(fleet))]
    return np.concatenate(parts, axis=2).transpose(1, 2, 0)


# --- real -----------------------------------------------------------------------------------------------------------

FLEETS_TRAINING_DAYS, NEW_SERVERS_DAY, NEW_SHARE = 20, 30, 0.25
SLICES_FIRST_TEST = np.datetime64("2011-04-09")
SLICES_HOSTS_SHARE = 0.12


def fleets_world(path: Path = DATA / "fleets_public.parquet") -> World:
    """Load-balanced fleets: a quarter of each profile's servers appears on NEW_SERVERS_DAY, without a history."""
    data = read_metrics(path)
    grid = FleetGrid.from_frame(data.frame, data.metrics, 300)
    random, rows = np.random.default_rng(0), []
    for profile in sorted({str(profile) for profile in grid.profiles}):
        of_profile = np.flatnonzero(np.array(grid.profiles) == profile)
        if len(of_profile) > 2:
            rows.append(random.permutation(of_profile)[: max(1, round(NEW_SHARE * len(of_profile)))])
    hidden = np.zeros((len(grid.servers), grid.steps), dtype=bool)
    hidden[np.concatenate(rows), : NEW_SERVERS_DAY * DAY_SECONDS // 300] = True
    days = grid.steps * 300 // DAY_SECONDS
    begins = range(FLEETS_TRAINING_DAYS, days, WEEK_DAYS)
    weeks = [tuple(range(begin, min(begin + WEEK_DAYS, days))) for begin in begins]
    periods = {f"week {number}": week for number, week in enumerate(weeks, start=1)}
    regular = tuple(week[0] for week in weeks[1:])
    return World("fleets", grid.without(hidden), "UTC", periods, FLEETS_TRAINING_DAYS, regular)


def slices_world(path: Path = DATA / "slices_public.parquet") -> World:
    """PlanetLab machines by application, measured on ten days: trained on six, lived through four."""
    data = read_metrics(path)
    hosts = data.frame["server_name"].astype(str).str.partition(":")[0]
    names = np.random.default_rng(0).permutation(np.unique(hosts))
    frame = data.frame[hosts.isin(names[: round(SLICES_HOSTS_SHARE * len(names))])]
    grid = FleetGrid.from_frame(frame, data.metrics, 300)
    first = grid.start.astype("datetime64[D]")
    grid = replace(grid, start=first.astype("datetime64[s]"), values=_from_midnight(grid))
    measured = np.unique((frame["timestamp"].to_numpy(dtype="datetime64[D]") - first).astype(np.int64))
    later = [int(day) for day in measured if first + day >= SLICES_FIRST_TEST]
    periods = {str(first + day): (day,) for day in later}
    return World("slices", grid, "UTC", periods, int(measured[-1]) + 1, tuple(later[1:]))


def _from_midnight(grid: FleetGrid) -> np.ndarray:
    """The values with steps that were not measured from the midnight before the first step on."""
    lead = int((grid.start - grid.start.astype("datetime64[D]")) / np.timedelta64(grid.step_seconds, "s"))
    return np.pad(grid.values, ((0, 0), (lead, 0), (0, 0)), constant_values=np.nan)
