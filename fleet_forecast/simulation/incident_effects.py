"""Effects of maintenance, incidents and outages on the states and metrics of a chunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fleet_forecast.simulation.incident_kinds import KINDS, LABELS
from fleet_forecast.simulation.incidents import Events
from fleet_forecast.simulation.metric_model import simulated
from fleet_forecast.simulation.outages import RESTART_MINUTES, Outages
from fleet_forecast.simulation.scenario import Chunk
from fleet_forecast.simulation.states import CRITICAL, MAINTENANCE, OFFLINE, RECOVERY

Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Servers = npt.NDArray[np.int64]  # [server] position in the fleet

RESTARTED_SECONDS = 90.0  # from the peak to the recovery, if the incident ends with a restart
# Changes on the scales of incident_kinds.py.
MAINTENANCE_EFFECTS = {
    "cpu_pct": -1.2,
    "disk_io_mb_s": 0.5,
    "net_in_mb_s": -1.2,
    "net_out_mb_s": -1.2,
    "latency_ms": 0.6,
}
RESTART_EFFECTS = {"mem_pct": -1.2, "disk_io_mb_s": 0.5, "latency_ms": 0.5}


def apply_maintenance(chunk: Chunk, at: npt.NDArray[np.bool_]) -> None:
    """Set the state MAINTENANCE and its effects where `at` [server, step] is true."""
    for position in np.flatnonzero(at.any(axis=1)):
        steps = np.flatnonzero(at[position])
        chunk.states[position, steps] = MAINTENANCE
        _apply(chunk.metrics[:, position], steps, MAINTENANCE_EFFECTS, np.float32(1))


def apply_incidents(chunk: Chunk, seconds: Floats, servers: Servers, events: Events) -> None:
    """Set states, labels and effects of incidents; seconds: [step] after the scenario's start."""
    active = np.flatnonzero((events.end > seconds[0]) & (events.onset <= seconds[-1]))
    for event in active[np.argsort(events.onset[active], kind="stable")]:
        first, last = np.searchsorted(seconds, (events.onset[event], events.end[event]))
        steps = np.arange(first, last)
        kind = KINDS[LABELS[events.kind[event]]]
        weights = phase_weights(events, int(event), seconds[steps])
        labelled = steps[seconds[steps] >= events.start[event]]
        state = np.where(seconds[labelled] < events.fade[event], CRITICAL, RECOVERY)
        for server in np.flatnonzero(servers == events.server[event]):
            for effects, weight in zip((kind.before, kind.worst, kind.after), weights, strict=True):
                _apply(chunk.metrics[:, server], steps, effects, np.float32(events.severity[event]) * weight)
            chunk.incidents[server, labelled] = events.kind[event]
            chunk.states[server, labelled] = state


def apply_outages(chunk: Chunk, seconds: Floats, servers: Servers, outages: Outages) -> None:
    """Remove the values of offline servers and set the effects of their restart; seconds: [step]."""
    restart = 60 * RESTART_MINUTES
    for outage in np.flatnonzero((outages.end + restart > seconds[0]) & (outages.start <= seconds[-1])):
        end = float(outages.end[outage])
        first, back, last = np.searchsorted(seconds, (outages.start[outage], end, end + restart))
        warm_up = np.arange(back, last)
        fading = (1 - (seconds[warm_up] - end) / restart).astype(np.float32)
        for server in np.flatnonzero(servers == outages.server[outage]):
            _apply(chunk.metrics[:, server], warm_up, RESTART_EFFECTS, fading)
            quiet = warm_up[chunk.states[server, warm_up] != CRITICAL]
            chunk.states[server, quiet] = RECOVERY
            chunk.states[server, first:back] = OFFLINE
            chunk.incidents[server, first:back] = -1
            chunk.metrics[:, server, first:back] = np.nan


class PhaseWeights(NamedTuple):
    """Weights of the three sets of effects of an incident, 0 to 1; arrays of the times' shape."""

    before: Float32
    worst: Float32
    after: Float32


def phase_weights(events: Events, position: int, seconds: Floats) -> PhaseWeights:
    """Weights over time: the precursor grows, the peak replaces it, and everything fades."""
    onset, start, peak, fade, end = (float(array[position]) for array in events[2:7])
    before = _ramp(seconds, onset, start) ** 1.5 * (1 - _ramp(seconds, start, peak))
    fading = 1 - _ramp(seconds, fade, end)
    restarted = bool(KINDS[LABELS[events.kind[position]]].after)
    easing = 1 - _ramp(seconds, fade, fade + RESTARTED_SECONDS) if restarted else fading**2
    worst = _ramp(seconds, start, peak) * easing
    after = _ramp(seconds, fade, fade + RESTARTED_SECONDS) * fading
    inside = (seconds >= onset) & (seconds < end)
    return PhaseWeights(*((array * inside).astype(np.float32) for array in (before, worst, after)))


def _ramp(seconds: Floats, low: float, high: float) -> Floats:
    """0 up to `low`, 1 from `high` on, linear between; a step at `high` if both are the same."""
    if high <= low:
        return (seconds >= high).astype(np.float64)
    return np.clip((seconds - low) / (high - low), 0.0, 1.0)


def _apply(
    metrics: Float32, steps: npt.NDArray[np.int64], effects: Mapping[str, float], weight: Float32 | np.float32
) -> None:
    """Change the metrics [metric, step] of a server at some steps: rates by a factor, percentages by their odds."""
    for name, effect in effects.items():
        metric = simulated().positions[name]
        factor = np.exp(np.float32(effect) * weight)
        value = metrics[metric, steps]
        if simulated().kinds[metric] == "percent":
            odds = value / np.maximum(np.float32(100) - value, np.float32(1e-4)) * factor
            metrics[metric, steps] = np.float32(100) * odds / (1 + odds)
        else:
            metrics[metric, steps] = value * factor
