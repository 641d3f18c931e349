"""Counts and means of the written rows, for the metadata and the summary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.definitions import PROFILES
from fleet_forecast.contract.metadata import Metadata
from fleet_forecast.contract.specs import STATES
from fleet_forecast.iso_time import iso
from fleet_forecast.simulation.incident_kinds import LABELS
from fleet_forecast.simulation.metric_model import profile_order, simulated
from fleet_forecast.simulation.scenario import GENERATOR_VERSION, Scenario, World
from fleet_forecast.simulation.states import OFFLINE


class Rows(NamedTuple):
    """Rows of a group of servers, by server and time: arrays [row]."""

    step: npt.NDArray[np.int32]
    server: npt.NDArray[np.int32]  # position in the group
    states: npt.NDArray[np.int8]
    incidents: npt.NDArray[np.int8]
    metrics: npt.NDArray[np.float32]  # [metric, row]

    def where(self, chosen: slice | npt.NDArray[np.bool_]) -> Rows:
        return Rows(
            self.step[chosen],
            self.server[chosen],
            self.states[chosen],
            self.incidents[chosen],
            self.metrics[:, chosen],
        )


def _zeros(*shape: int) -> npt.NDArray[np.int64]:
    return np.zeros((len(profile_order()), *shape), dtype=np.int64)


@dataclass
class Tally:
    """Counts by profile: arrays [profile, ...]."""

    rows: npt.NDArray[np.int64] = field(default_factory=_zeros)
    states: npt.NDArray[np.int64] = field(default_factory=lambda: _zeros(len(STATES)))
    measured: npt.NDArray[np.int64] = field(default_factory=_zeros)  # rows that are not offline
    sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((len(profile_order()), len(simulated()))))

    def add(self, other: Tally) -> None:
        self.rows += other.rows
        self.states += other.states
        self.measured += other.measured
        self.sums += other.sums


def count_rows(scenario: Scenario, group: npt.NDArray[np.int64], rows: Rows) -> Tally:
    """Counts of the rows of a group; group: [server] position in the fleet."""
    tally, codes = Tally(), scenario.fleet.profile_codes[group]
    by_server = np.bincount(
        rows.server.astype(np.int64) * len(STATES) + rows.states, minlength=len(group) * len(STATES)
    ).reshape(len(group), len(STATES))
    np.add.at(tally.states, codes, by_server)
    np.add.at(tally.rows, codes, by_server.sum(axis=1))
    np.add.at(tally.measured, codes, by_server.sum(axis=1) - by_server[:, OFFLINE])
    ends = np.cumsum(by_server.sum(axis=1))
    for server, (first, last) in enumerate(zip(ends - by_server.sum(axis=1), ends, strict=True)):
        tally.sums[codes[server]] += np.nansum(rows.metrics[:, first:last], axis=1, dtype=np.float64)
    return tally


def metadata_of(world: World, tally: Tally, hours: float) -> Metadata:
    """Content of metrics_metadata.json of a simulated scenario; hours: its length as requested."""
    scenario, incidents = world.scenario, _incidents(world)
    states = tally.states.sum(axis=0)
    return Metadata(
        generator_version=GENERATOR_VERSION,
        seed=scenario.fleet.seed,
        start=iso(scenario.start),
        hours=hours,
        step_seconds=scenario.step_seconds,
        timezone=scenario.calendar.timezone,
        calendar=scenario.calendar.as_document(),
        fleet=scenario.fleet.composition(),
        rows=int(tally.rows.sum()),
        state_counts={name: int(count) for name, count in zip(STATES, states, strict=True) if count},
        incident_counts=dict(sorted(Counter(incident["incident"] for incident in incidents).items())),
        incidents=incidents,
    )


def _incidents(world: World) -> list[dict[str, str]]:
    scenario, events = world.scenario, world.events

    def at(seconds: float) -> str:
        return iso(scenario.start + np.timedelta64(round(float(seconds)), "s"))

    return [
        {
            "server_name": scenario.fleet.names[events.server[event]],
            "incident": LABELS[events.kind[event]],
            "onset": at(events.onset[event]),
            "start": at(events.start[event]),
            "peak": at(events.peak[event]),
            "recovery": at(events.fade[event]),
            "end": at(events.end[event]),
        }
        for event in np.flatnonzero(events.onset < scenario.seconds)
    ]


def summary(scenario: Scenario, tally: Tally) -> str:
    """Table of the means by profile, and the share of each state."""
    names = simulated().names
    width = max(12, *(len(metric) + 2 for metric in names))
    header = "".join(f"{metric:>{width}}" for metric in names)
    lines = [f"{'profile':<16}{'servers':>8}{'rows':>12}{header}"]
    for code, profile in enumerate(profile_order()):
        if tally.rows[code]:
            servers = int((scenario.fleet.profile_codes == code).sum())
            means = tally.sums[code] / max(1, tally.measured[code])
            has = [name in PROFILES[profile].baselines for name in names]
            cells = (f"{mean:.1f}" if given else "-" for mean, given in zip(means, has, strict=True))
            values = "".join(f"{cell:>{width}}" for cell in cells)
            lines.append(f"{profile:<16}{servers:>8}{tally.rows[code]:>12,}{values}")
    states = tally.states.sum(axis=0)
    shares = ", ".join(
        f"{name} {100 * count / states.sum():.2f} %" for name, count in zip(STATES, states, strict=True) if count
    )
    return "\n".join([*lines, f"states: {shares}"])
