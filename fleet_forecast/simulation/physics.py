"""Time into metrics: the load of each server, its six metrics, states and incidents, a chunk of steps after the other.

Each server has eight sources of noise, each a first-order autoregression with its own correlation time and innovations
that are independent of all others: a slow and a fast one make the server's load, six belong to the metrics. A metric
mixes load and its own noise, so that the metrics of a server move together without being copies. Recursions run step by
step over all servers of a group at once; every number is the same whatever the group or the chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fleet_forecast.simulation.calibration import (
    BURST_FROM,
    BURST_STRENGTH,
    CPU,
    MEM,
    METRIC_COUNT,
    SOFT_LIMIT,
    Calibration,
    calibrate,
    noise_mean,
)
from fleet_forecast.simulation.fleet import PROFILE_ORDER, Fleet
from fleet_forecast.simulation.incidents import (
    KINDS,
    LABELS,
    METRIC_POSITIONS,
    RESTART_MINUTES,
    Events,
    Outages,
    join_events,
    schedule_events,
    schedule_outages,
    shape,
)
from fleet_forecast.simulation.randomness import noise_stream
from fleet_forecast.simulation.rhythm import DAY_MINUTES, Calendar, tables

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

HEALTHY, HEAVY_LOAD, MORNING_SPIKE, CRITICAL, IDLE, MAINTENANCE, RECOVERY, OFFLINE = range(8)
STATE_NAMES = (
    "healthy",
    "heavy_load",
    "morning_spike",
    "critical_issue",
    "idle",
    "maintenance",
    "recovery",
    "offline",
)

# Correlation times in minutes: load slow and fast, then one for each metric's own noise.
CORRELATION_MINUTES = np.array([300.0, 25.0, 12.0, 1440.0, 15.0, 12.0, 12.0, 15.0])
# Share of a source's variance that is gone by the next sample: sampling noise.
JITTER = np.array([0.0, 0.0, 0.12, 0.01, 0.2, 0.15, 0.15, 0.15])
SLOW_SHARE = 0.6  # of the variance of load
LOAD_WEIGHTS = np.array([0.75, 0.3, 0.6, 0.65, 0.65, 0.55], dtype=np.float32)  # correlation of a metric with load
NET_TOGETHER = np.float32(0.6)  # correlation of what goes out with what comes in, beyond load

HEAVY_FROM, HEAVY_UNTIL = 1.75, 1.0  # slow load, in deviations: hysteresis, so that states last
IDLE_FROM, IDLE_UNTIL = -1.7, -1.0

# Effects of maintenance and of the time after an outage, on the scales of incidents.py.
MAINTENANCE_EFFECTS = {
    "cpu_pct": -1.2,
    "disk_io_mb_s": 0.5,
    "net_in_mb_s": -1.2,
    "net_out_mb_s": -1.2,
    "latency_ms": 0.6,
}
RESTART_EFFECTS = {"mem_pct": -1.2, "disk_io_mb_s": 0.5, "latency_ms": 0.5}

_DECIMALS = np.float32(100)  # metrics are rounded to hundredths, as agents report them
_LEAD_MINUTES = 60  # the calendar reaches this far beyond the scenario, more than any server's phase


@dataclass(frozen=True)
class Scenario:
    """What to simulate. Steps from `fork_step` on draw all their randomness from `fork_seed`."""

    fleet: Fleet
    start: np.datetime64  # of the first row, seconds, UTC
    steps: int
    step_seconds: int
    timezone: str = "America/New_York"
    incident_rate: float = 1.0  # incidents a server and month
    outage_rate: float = 1.0  # relative to incidents.OUTAGES_PER_MONTH
    fork_step: int | None = None
    fork_seed: int = 0

    @property
    def seconds(self) -> float:
        """Length."""
        return float(self.steps * self.step_seconds)

    def timestamps(self, first: int = 0, steps: int | None = None) -> npt.NDArray[np.datetime64]:
        """UTC times of steps, datetime64[s]."""
        count = self.steps - first if steps is None else steps
        return self.start + (first + np.arange(count)) * np.timedelta64(self.step_seconds, "s")


class Chunk(NamedTuple):
    """Some steps of a group of servers."""

    first_step: int
    metrics: Float32  # [metric, server, step], NaN where offline
    states: npt.NDArray[np.int8]  # [server, step] position in STATE_NAMES
    incidents: npt.NDArray[np.int8]  # [server, step] position in incidents.LABELS, -1 for none


class Trace(NamedTuple):
    """A whole simulation."""

    timestamps: npt.NDArray[np.datetime64]  # [step]
    metrics: Float32  # [server, step, metric], NaN where offline
    states: npt.NDArray[np.int8]  # [server, step]
    incidents: npt.NDArray[np.int8]  # [server, step]


@dataclass(frozen=True)
class World:
    """What the servers of a scenario share: the calendar and the plan of what goes wrong."""

    scenario: Scenario
    calendar: Calendar
    events: Events
    outages: Outages

    @classmethod
    def of(cls, scenario: Scenario) -> World:
        """Lay out the calendar and draw the plan. Raises ValueError for an unknown time zone."""
        first = int(scenario.start.astype("datetime64[m]").astype(np.int64)) - _LEAD_MINUTES
        last = first + 2 * _LEAD_MINUTES + int(scenario.seconds // 60) + 1
        return cls(scenario, Calendar.between(first, last, scenario.timezone), *_plan(scenario))

    def with_fleet(self, fleet: Fleet) -> World:
        """The same time with other servers, and what goes wrong with them."""
        scenario = replace(self.scenario, fleet=fleet)
        events, outages = _plan(scenario)
        return replace(self, scenario=scenario, events=events, outages=outages)

    def of_servers(self, servers: npt.NDArray[np.int64]) -> World:
        """The same world with the events and outages of some servers only."""
        events = self.events.where(np.isin(self.events.server, servers))
        return replace(self, events=events, outages=self.outages.where(np.isin(self.outages.server, servers)))


def _plan(scenario: Scenario) -> tuple[Events, Outages]:
    """What goes wrong; beyond a fork only what had begun before it stays."""
    fleet, rate = scenario.fleet, scenario.incident_rate
    events = schedule_events(fleet, fleet.seed, rate, 0.0, scenario.seconds)
    outages = schedule_outages(fleet, fleet.seed, scenario.outage_rate, 0.0, scenario.seconds)
    if scenario.fork_step is None:
        return events, outages
    fork = float(scenario.fork_step * scenario.step_seconds)
    events, outages = events.where(events.onset < fork), outages.where(outages.start < fork)
    busy = np.full(len(fleet), fork)
    np.maximum.at(busy, events.server, events.end)
    later_events = schedule_events(fleet, scenario.fork_seed, rate, fork, scenario.seconds, busy)
    later_outages = schedule_outages(fleet, scenario.fork_seed, scenario.outage_rate, fork, scenario.seconds)
    joined = Outages._make(np.concatenate(pair) for pair in zip(outages, later_outages, strict=True))
    return join_events(events, later_events), joined


class _Parameters(NamedTuple):
    """Of a group of servers: what turns noise into metrics; [server, 1] unless said otherwise."""

    centre: Float32  # [metric, server, 1] level and habit together; for rates divided by the mean of the noise factor
    within: Float32  # [metric, server, 1]
    rhythm: Float32
    phase: npt.NDArray[np.int64]  # [server]
    backup_start: npt.NDArray[np.int64]
    backup_minutes: npt.NDArray[np.int64]
    backup_gain: Float32
    keep: Float32  # [server * source] autoregression coefficient


def _parameters(fleet: Fleet, servers: npt.NDArray[np.int64], step_seconds: int) -> _Parameters:
    habits, codes = fleet.habits, fleet.profile_codes[servers]
    centre, within = np.empty((2, METRIC_COUNT, len(servers)))
    calibrations = {code: calibrate(PROFILE_ORDER[code]) for code in np.unique(codes)}
    nervous = habits.nervousness[servers].astype(np.float64)
    for metric in range(METRIC_COUNT):
        centre[metric] = [calibrations[code].centre[metric] for code in codes]
        centre[metric] += (
            np.array([calibrations[code].between[metric] for code in codes]) * habits.level[servers, metric]
        )
        within[metric] = np.array([calibrations[code].within[metric] for code in codes]) * nervous
        if metric not in (CPU, MEM):
            # Habits and noise leave the mean of a rate as it is.
            centre[metric] -= np.log(noise_mean(within[metric]))
            centre[metric] -= np.log(_rhythm_means(calibrations, codes, habits.rhythm_strength[servers]))
    disk = METRIC_POSITIONS["disk_io_mb_s"]
    backup_share = habits.backup_minutes[servers] / (24 * 60)
    centre[disk] -= np.log1p(habits.backup_strength[servers] * backup_share)
    memory_minutes = CORRELATION_MINUTES[None, :] * habits.time_scale[servers, None]
    keep = np.exp(-step_seconds / 60 / memory_minutes)

    def column(values: npt.NDArray[np.generic]) -> Float32:
        return values[..., None].astype(np.float32)

    return _Parameters(
        column(centre),
        column(within),
        column(habits.rhythm_strength[servers]),
        habits.phase_minutes[servers],
        habits.backup_start_minute[servers],
        habits.backup_minutes[servers],
        column(np.log1p(habits.backup_strength[servers])),
        keep.astype(np.float32).ravel(),
    )


def _rhythm_means(
    calibrations: Mapping[np.int8, Calibration], codes: npt.NDArray[np.int8], strengths: Float32
) -> npt.NDArray[np.float64]:
    means = np.ones(len(codes))
    for code, calibration in calibrations.items():
        chosen = codes == code
        means[chosen] = np.interp(strengths[chosen], calibration.rhythm_strengths, calibration.rhythm_means)
    return means


class Simulator:
    """A group of servers of a world, from its first step on; `advance` gives the next steps."""

    def __init__(self, world: World, servers: npt.NDArray[np.int64] | None = None) -> None:
        scenario = world.scenario
        self.servers = np.arange(len(scenario.fleet)) if servers is None else np.asarray(servers)
        self.world = world.of_servers(self.servers)
        self.step = 0
        self._parameters = _parameters(scenario.fleet, self.servers, scenario.step_seconds)
        self._streams = self._noise_streams(scenario.fleet.seed)
        sources = len(CORRELATION_MINUTES)
        first = [stream.standard_normal(sources, dtype=np.float32) for stream in self._streams]
        self._noise = np.concatenate(first)  # [server * source]
        keep = self._parameters.keep.astype(np.float64)
        innovation = np.sqrt(1 - keep**2)
        jitter = np.tile(np.sqrt(JITTER), len(self.servers))
        # smooth * x + jitter * e has variance 1: x and its newest innovation e are correlated by `innovation`.
        smooth = -jitter * innovation + np.sqrt(1 - jitter**2 + (jitter * innovation) ** 2)
        self._innovation, self._jitter = innovation.astype(np.float32), jitter.astype(np.float32)
        self._smooth = smooth.astype(np.float32)
        self._heavy = np.zeros(len(self.servers), dtype=np.bool_)  # load states at the newest step
        self._idle = np.zeros(len(self.servers), dtype=np.bool_)

    def _noise_streams(self, seed: int) -> list[np.random.Generator]:
        return [noise_stream(seed, int(key)) for key in self.world.scenario.fleet.keys[self.servers]]

    def add_events(self, events: Events) -> None:
        """Let further incidents happen; those with an onset in the past show from the next step on."""
        self.world = replace(self.world, events=join_events(self.world.events, events))

    def advance(self, steps: int) -> Chunk:
        """The next `steps` steps."""
        scenario = self.world.scenario
        first, fork = self.step, scenario.fork_step
        if fork is not None and first < fork < first + steps:
            before = self._advance_noise(fork - first)
            self._streams = self._noise_streams(scenario.fork_seed)
            noise = np.concatenate([before, self._advance_noise(first + steps - fork)], axis=2)
        else:
            if fork is not None and first == fork:
                self._streams = self._noise_streams(scenario.fork_seed)
            noise = self._advance_noise(steps)
        self.step = first + steps
        return self._observe(first, noise)

    def forks(self, steps: int, seeds: Sequence[int]) -> Float32:
        """Futures of the present: float32 [fork, server, step, metric]; the simulator itself stays where it is.

        A fork has what `fork_step=self.step, fork_seed=seed` gives, but nothing goes wrong in it that has not begun.
        Together the forks are draws from the true predictive distribution.
        """
        now = float(self.step * self.world.scenario.step_seconds)
        events, outages = self.world.events, self.world.outages
        begun = replace(self.world, events=events.where(events.onset < now), outages=outages.where(outages.start < now))
        futures = []
        for seed in seeds:
            fork = copy.copy(self)
            fork.world = begun
            fork._streams = self._noise_streams(seed)
            futures.append(
                np.concatenate([fork.advance(n).metrics for n in portions(steps, len(self.servers))], axis=2)
            )
        return np.stack(futures).transpose(0, 2, 3, 1)

    def _advance_noise(self, steps: int) -> Float32:
        """Noise with variance 1: [source, server, step]."""
        count, sources = len(self.servers), len(CORRELATION_MINUTES)
        innovations = np.empty((steps, count, sources), dtype=np.float32)
        for position, stream in enumerate(self._streams):
            innovations[:, position] = stream.standard_normal((steps, sources), dtype=np.float32)
        rows = innovations.reshape(steps, count * sources)
        noise = rows * self._innovation
        previous, kept = self._noise, np.empty_like(self._noise)
        keep = self._parameters.keep
        for row in noise:  # x[t] = keep * x[t - 1] + innovation * e[t], all servers and sources at once
            np.multiply(previous, keep, out=kept)
            np.add(row, kept, out=row)
            previous = row
        self._noise = previous.copy()
        noise *= self._smooth
        rows *= self._jitter
        noise += rows
        return np.ascontiguousarray(noise.reshape(steps, count, sources).transpose(2, 1, 0))

    def _observe(self, first: int, noise: Float32) -> Chunk:
        scenario = self.world.scenario
        steps = noise.shape[2]
        clock = scenario.timestamps(first, steps)
        curves = self._curves(clock.astype("datetime64[m]").astype(np.int64) - self.world.calendar.first_minute)
        states = self._load_states(noise[0])
        states[curves.spike] = MORNING_SPIKE
        incidents = np.full(states.shape, -1, dtype=np.int8)
        chunk = Chunk(first, self._metrics(noise, curves), states, incidents)
        seconds: Floats = np.arange(first, first + steps, dtype=np.float64) * scenario.step_seconds
        self._apply_maintenance(chunk, curves.maintenance)
        self._apply_events(chunk, seconds)
        self._apply_outages(chunk, seconds)
        np.multiply(chunk.metrics, _DECIMALS, out=chunk.metrics)
        np.rint(chunk.metrics, out=chunk.metrics)
        np.divide(chunk.metrics, _DECIMALS, out=chunk.metrics)
        return chunk

    def _curves(self, minute: npt.NDArray[np.int64]) -> _Curves:
        """What the rhythms ask for at each server's own clock."""
        calendar, parameters, table = self.world.calendar, self._parameters, tables()
        # Where several steps fall into a minute, the arithmetic is done once a minute.
        per_minute = np.arange(minute[0], minute[-1] + 1) if minute[-1] - minute[0] + 1 < minute.size else minute
        code = self.world.scenario.fleet.profile_codes[self.servers, None].astype(np.int64)
        case = calendar.case[per_minute + parameters.phase[:, None]].astype(np.int64)  # [server, minute]
        since_backup = (case - parameters.backup_start[:, None]) % DAY_MINUTES
        # Maintenance is the operators' business and keeps to the clock.
        clock = (
            calendar.day_of_week[per_minute].astype(np.int64) * DAY_MINUTES + calendar.case[per_minute] % DAY_MINUTES
        )
        curves = _Curves(
            table.log_demand[code, case] * parameters.rhythm,
            table.memory_drive[code, case],
            np.where(since_backup < parameters.backup_minutes[:, None], parameters.backup_gain, np.float32(0)),
            table.spike[code, case],
            table.maintenance[code, clock],
        )
        if per_minute is minute:
            return curves
        return _Curves._make(np.take(curve, minute - minute[0], axis=1) for curve in curves)

    def _metrics(self, noise: Float32, curves: _Curves) -> Float32:
        """[metric, server, step] before anything goes wrong; uses up `noise`."""
        slow, fast, own = noise[0], noise[1], noise[2:]
        load = np.float32(SLOW_SHARE**0.5) * slow + np.float32((1 - SLOW_SHARE) ** 0.5) * fast
        metrics = np.empty((METRIC_COUNT, *load.shape), dtype=np.float32)
        net_in, net_out = METRIC_POSITIONS["net_in_mb_s"], METRIC_POSITIONS["net_out_mb_s"]
        own[net_out] *= np.sqrt(1 - NET_TOGETHER**2)
        own[net_out] += NET_TOGETHER * own[net_in]
        for metric in range(METRIC_COUNT):
            value: Float32 = metrics[metric]
            weight = LOAD_WEIGHTS[metric]
            np.multiply(load, weight, out=value)
            own[metric] *= np.sqrt(1 - weight**2)
            value += own[metric]
            if metric not in (CPU, MEM):
                _stretch_bursts(value, scratch=own[metric])
            value *= self._parameters.within[metric]
            if metric == CPU:
                value += curves.log_demand
                value += self._parameters.centre[metric]
                _percentage(value)
            elif metric == MEM:
                value += curves.memory
                value += self._parameters.centre[metric]
                _percentage(value)
            else:
                np.exp(value, out=value)
                np.multiply(value, np.float32(1 / SOFT_LIMIT), out=own[metric])
                own[metric] += np.float32(1)
                value /= own[metric]
                np.add(curves.log_demand, self._parameters.centre[metric], out=own[metric])
                if metric == METRIC_POSITIONS["disk_io_mb_s"]:
                    own[metric] += curves.backup
                np.exp(own[metric], out=own[metric])
                value *= own[metric]
        return metrics

    def _load_states(self, slow: Float32) -> npt.NDArray[np.int8]:
        """HEALTHY, HEAVY_LOAD or IDLE by the slow part of load, with hysteresis: [server, step]."""
        heavy = _hysteresis(slow >= HEAVY_FROM, slow < HEAVY_UNTIL, self._heavy)
        idle = _hysteresis(slow <= IDLE_FROM, slow > IDLE_UNTIL, self._idle)
        self._heavy, self._idle = heavy[:, -1].copy(), idle[:, -1].copy()
        states = np.zeros(slow.shape, dtype=np.int8)
        states[heavy] = HEAVY_LOAD
        states[idle] = IDLE
        return states

    def _apply_maintenance(self, chunk: Chunk, at: npt.NDArray[np.bool_]) -> None:
        for position in np.flatnonzero(at.any(axis=1)):
            steps = np.flatnonzero(at[position])
            chunk.states[position, steps] = MAINTENANCE
            _apply(chunk.metrics[:, position], steps, MAINTENANCE_EFFECTS, np.float32(1))

    def _apply_events(self, chunk: Chunk, seconds: Floats) -> None:
        events = self.world.events
        shown = np.flatnonzero((events.end > seconds[0]) & (events.onset <= seconds[-1]))
        for event in shown[np.argsort(events.onset[shown], kind="stable")]:
            first, last = np.searchsorted(seconds, (events.onset[event], events.end[event]))
            steps = np.arange(first, last)
            kind = KINDS[LABELS[events.kind[event]]]
            weights = shape(events, int(event), seconds[steps])
            labelled = steps[seconds[steps] >= events.start[event]]
            state = np.where(seconds[labelled] < events.fade[event], CRITICAL, RECOVERY)
            for server in np.flatnonzero(self.servers == events.server[event]):
                for effects, weight in zip((kind.before, kind.worst, kind.after), weights, strict=True):
                    _apply(chunk.metrics[:, server], steps, effects, np.float32(events.severity[event]) * weight)
                chunk.incidents[server, labelled] = events.kind[event]
                chunk.states[server, labelled] = state

    def _apply_outages(self, chunk: Chunk, seconds: Floats) -> None:
        outages, restart = self.world.outages, 60 * RESTART_MINUTES
        for outage in np.flatnonzero((outages.end + restart > seconds[0]) & (outages.start <= seconds[-1])):
            end = float(outages.end[outage])
            first, back, last = np.searchsorted(seconds, (outages.start[outage], end, end + restart))
            warm_up = np.arange(back, last)
            fading = (1 - (seconds[warm_up] - end) / restart).astype(np.float32)
            for server in np.flatnonzero(self.servers == outages.server[outage]):
                _apply(chunk.metrics[:, server], warm_up, RESTART_EFFECTS, fading)
                quiet = warm_up[chunk.states[server, warm_up] != CRITICAL]
                chunk.states[server, quiet] = RECOVERY
                chunk.states[server, first:back] = OFFLINE
                chunk.incidents[server, first:back] = -1
                chunk.metrics[:, server, first:back] = np.nan


class _Curves(NamedTuple):
    """What the rhythms ask for, [server, step]."""

    log_demand: Float32
    memory: Float32
    backup: Float32
    spike: npt.NDArray[np.bool_]
    maintenance: npt.NDArray[np.bool_]


def _stretch_bursts(noise: Float32, scratch: Float32) -> None:
    """calibration.burst in place."""
    np.subtract(noise, np.float32(BURST_FROM), out=scratch)
    np.maximum(scratch, np.float32(0), out=scratch)
    np.multiply(scratch, scratch, out=scratch)
    scratch *= np.float32(BURST_STRENGTH)
    noise += scratch


def _percentage(log_odds: Float32) -> None:
    """100 / (1 + exp(-x)) in place."""
    np.negative(log_odds, out=log_odds)
    np.exp(log_odds, out=log_odds)
    log_odds += np.float32(1)
    np.divide(np.float32(100), log_odds, out=log_odds)


def _apply(
    metrics: Float32, steps: npt.NDArray[np.int64], effects: Mapping[str, float], weight: Float32 | np.float32
) -> None:
    """Change the metrics [metric, step] of a server at some steps: rates by a factor, percentages by their odds."""
    for name, effect in effects.items():
        metric = METRIC_POSITIONS[name]
        factor = np.exp(np.float32(effect) * weight)
        value = metrics[metric, steps]
        if metric in (CPU, MEM):
            odds = value / np.maximum(np.float32(100) - value, np.float32(1e-4)) * factor
            metrics[metric, steps] = np.float32(100) * odds / (1 + odds)
        else:
            metrics[metric, steps] = value * factor


def _hysteresis(
    on: npt.NDArray[np.bool_], off: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """A switch that stays as it is between `on` and `off`: [server, step]; `before` [server] is its first position."""
    newest = np.where(on | off, np.arange(on.shape[1], dtype=np.int32), np.int32(-1))
    np.maximum.accumulate(newest, axis=1, out=newest)
    switched = np.take_along_axis(on, np.maximum(newest, 0), axis=1)
    return np.where(newest < 0, before[:, None], switched)


def simulate(scenario: Scenario, first_step: int = 0) -> Trace:
    """A whole scenario in memory, from `first_step` on."""
    world = World.of(scenario)
    simulator = Simulator(world)
    if first_step:
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
    """Cut steps into chunks."""
    portion = chunk_steps(servers)
    for first in range(0, steps, portion):
        yield min(portion, steps - first)


def chunk_steps(servers: int) -> int:
    """Steps to advance at a time so that the arrays stay in the cache; no result depends on it."""
    return max(1, 32_768 // max(1, servers))
