"""Chooses what the risk model of a run is trained on: the fleet's labelled incidents, or simulated fleets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.definitions import METRIC_SPECS
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference.risk_model import LABELS, RiskModel
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.training.risk.fit import RiskSettings, train, train_on_simulator
from fleet_forecast.training.risk.fleets import EVEN_FLEETS, LabelledFleet, labelled_fleet, simulated_metrics
from server_profiles import PROFILES, ServerProfile

FEWEST_INCIDENTS = 200  # with fewer labels a model trained on the simulator's thousands is the better one
HELD_OUT_EVERY = 4  # each fourth server is held out for the calibration and the curve
HELD_OUT_SERVERS = 90  # of a simulated fleet for the calibration and the curve
FEWEST_HELD_OUT = 20  # incidents of held-out servers


class KnownFleet(NamedTuple):
    """The user's fleet and its labelled incidents. calendar: of business hours."""

    grid: FleetGrid
    records: Sequence[IncidentRecord]
    calendar: BusinessCalendar


def risk_model_of(
    fleet: KnownFleet, settings: RiskSettings, notice: Callable[[str], object]
) -> tuple[RiskModel | None, str]:
    """The risk model, and what it was trained on or why there is none, for training_info.json.

    Trained on the labels of the fleet if they are many, otherwise on simulated fleets; never on both.
    """
    fleet = fleet._replace(grid=_without_values(fleet.grid))
    grid, labels = fleet.grid, len(fleet.records)
    held_out = np.arange(len(grid.servers)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    names = {grid.servers[row] for row in np.flatnonzero(held_out)}
    on_held_out = sum(record.server_name in names for record in fleet.records)
    if labels >= FEWEST_INCIDENTS and on_held_out >= FEWEST_HELD_OUT:
        notice(f"the risk model is trained on the {labels:,} incidents of this fleet")
        parts = [_part(fleet, rows) for rows in (np.flatnonzero(~held_out), np.flatnonzero(held_out))]
        return train(parts[:1], parts[1:], settings, LABELS), f"{labels} incidents of this fleet"
    metrics = simulated_metrics(grid.metrics)
    if not metrics:
        reason = f"no risk model: the data label {labels} incidents, and the simulator has none of its metrics"
        notice(f"{reason}; give at least {FEWEST_INCIDENTS} with --incidents")
        return None, reason
    reason = f"simulated fleets: the data label {labels:,} incidents, fewer than {FEWEST_INCIDENTS}"
    notice(f"the risk model is trained on {reason}")
    lacking = [metric for metric in grid.metrics if metric not in metrics]
    if lacking:
        notice(f"the risk model does not use {', '.join(lacking)}, which the simulator does not have")
    settings = replace(settings, held_out_counts=held_out_counts(grid.profiles))
    return train_on_simulator(metrics, grid.step_seconds, fleet.calendar, settings)[0], reason


def _without_values(grid: FleetGrid) -> FleetGrid:
    """The grid without metrics that may be negative: the features are logarithms."""
    unbounded = {name for name, spec in METRIC_SPECS.items() if spec.kind == "value"}
    kept = [place for place, metric in enumerate(grid.metrics) if metric not in unbounded]
    if len(kept) == len(grid.metrics):
        return grid
    return replace(grid, metrics=tuple(grid.metrics[place] for place in kept), values=grid.values[:, :, kept])


def held_out_counts(profiles: Sequence[str | None]) -> dict[str, int]:
    """Servers by profile of a simulated fleet with the user's shares of profiles: about HELD_OUT_SERVERS in all.

    A fleet without a built-in profile with incidents gets as many of each.
    """
    counts = Counter(str(profile) for profile in profiles if profile in set(PROFILES))
    if not any(PROFILES[ServerProfile(profile)].incidents for profile in counts):
        return dict(EVEN_FLEETS[0])
    share = HELD_OUT_SERVERS / counts.total()
    return {profile: max(1, round(share * count)) for profile, count in counts.items()}


def _part(fleet: KnownFleet, rows: np.ndarray) -> LabelledFleet:
    """Some servers of the fleet; their peers are among themselves."""
    grid = fleet.grid.select(rows)
    own = set(grid.servers)
    records = [record for record in fleet.records if record.server_name in own]
    return labelled_fleet(grid, grid.peers(), records, fleet.calendar)
