"""Batches of windows: the selected windows of a fleet with their targets, as planned in sampler.py or by a caller.

Plans of augmented batches are turned into batches here, or on a GPU in gpu.py.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NamedTuple

import numpy as np

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.history import row_distances
from fleet_forecast.features.masked_statistics import repeat_over_steps
from fleet_forecast.features.peers import Peers
from fleet_forecast.features.scaling import FleetScaling
from fleet_forecast.features.window_batch import Array, WindowBatch
from fleet_forecast.features.windows import (
    Calendar,
    FleetArrays,
    WindowRequest,
    WindowSpec,
    asinh,
    build_windows,
    may_have_peers,
    servers_with_peers,
)
from fleet_forecast.mapped_arrays import IN_MEMORY, ArraysInMemory
from fleet_forecast.training.batches.augmentation import add_position_noise, exchange_metrics

_SERVERS_AT_ONCE = 256  # bounds memory


class TrainingBatch(NamedTuple, Generic[Array]):
    """Windows and their targets: float32 (B, H, M), asinh of standardised values, NaN = not measured."""

    windows: WindowBatch[Array]
    targets: Array


Batch = TrainingBatch[np.ndarray]


@dataclass(frozen=True)
class WindowSelection:
    """Windows of a fleet's grid.

    rows, origins: int64 [window], server and grid step. encoder_steps: of all of them. known_steps: int64 [window],
    steps of history that may be used. masked_profile: boolean [window], where the profile is unknown (nowhere).
    calendar_origins: int64 [window], grid step whose calendar the origin has (its own). level_shift: float32 [window,
    metric], added to the server's transformed values (0). masked_peers: boolean [window], where the peers are unknown
    (nowhere).
    """

    rows: np.ndarray
    origins: np.ndarray
    encoder_steps: int
    known_steps: np.ndarray
    masked_profile: np.ndarray | None = None
    calendar_origins: np.ndarray | None = None
    level_shift: np.ndarray | None = None
    masked_peers: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.rows)

    def windows(self, chosen: slice) -> WindowSelection:
        """Some of the windows."""
        fields: dict[str, Any] = {
            name: value[chosen] if isinstance(value, np.ndarray) else value for name, value in vars(self).items()
        }
        return WindowSelection(**fields)


@dataclass(frozen=True)
class BatchPlan:
    """An augmented batch of an epoch.

    number: of the batch in its epoch. position_noise: float32 [window, 2 * metric], see add_position_noise.
    metric_order: int64 [window, metric], see exchange_metrics.
    """

    number: int
    selection: WindowSelection
    position_noise: np.ndarray
    metric_order: np.ndarray

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.selection)

    def share(self, part: int, parts: int) -> BatchPlan:
        """The part-th of about equal parts, from 0; without windows if there are fewer than parts."""
        chosen = slice(part * len(self) // parts, (part + 1) * len(self) // parts)
        return replace(
            self,
            selection=self.selection.windows(chosen),
            position_noise=self.position_noise[chosen],
            metric_order=self.metric_order[chosen],
        )


class WindowSource:
    """Builds batches of windows from a fleet in memory.

    fleet: the arrays that windows are built from. profile_rows: int64 [server]. first_step: of the grid, since the
    epoch. peers: of the grid's servers (none). arrays: where the transformed values are.
    """

    def __init__(
        self,
        grid: FleetGrid,
        spec: WindowSpec,
        scaling: FleetScaling,
        peers: Peers | None = None,
        arrays: ArraysInMemory = IN_MEMORY,
    ) -> None:
        self.first_step = grid.first_step
        calendar = Calendar.over(
            self.first_step - spec.context_steps,
            self.first_step + grid.steps + spec.horizon_steps,
            grid.step_seconds,
            spec.calendar,
        )
        of_fleet = peers.of_fleet(grid.profiles, scaling.bounds) if peers is not None else None
        distances = row_distances(grid.values, spec.day_steps)
        transformed = arrays.new(grid.values.shape, partial(_transform, grid.values, scaling))
        self.fleet = FleetArrays(spec, scaling, calendar, transformed, of_fleet, distances)
        self.profile_rows = scaling.profile_rows(np.array(grid.profiles, dtype=object))

    @property
    def spec(self) -> WindowSpec:
        """Lengths of the windows."""
        return self.fleet.spec

    @property
    def scaling(self) -> FleetScaling:
        """Scaling of the windows."""
        return self.fleet.scaling

    @property
    def transformed(self) -> np.ndarray:
        """The fleet's transformed values: float32 [server, step, metric]."""
        return self.fleet.transformed

    def without_profiles(self) -> WindowSource:
        """The same windows with unknown profiles; the transformed values are shared."""
        source = copy(self)
        source.fleet = self.fleet._replace(scaling=self.scaling.without_profiles())
        source.profile_rows = np.zeros_like(self.profile_rows)
        return source

    def request(self, selection: WindowSelection) -> WindowRequest:
        """The selection in the terms of build_windows."""
        rows, shift = selection.rows, selection.level_shift
        calendar_origins = selection.origins if selection.calendar_origins is None else selection.calendar_origins
        return WindowRequest(
            rows=rows,
            origins=selection.origins,
            calendar_steps=self.first_step + calendar_origins,
            profile_rows=self.profiles_of(rows, selection.masked_profile),
            encoder_steps=selection.encoder_steps,
            known_steps=selection.known_steps,
            level_shift=shift if shift is not None and shift.any() else None,
            masked_peers=selection.masked_peers,
        )

    def profiles_of(self, rows: np.ndarray, masked: np.ndarray | None) -> np.ndarray:
        """Profile rows that the network receives, 0 = unknown or masked: int64 [window]."""
        return self.profile_rows[rows] if masked is None else np.where(masked, 0, self.profile_rows[rows])

    @property
    def has_peers(self) -> bool:
        """Whether any window may have peers."""
        return self.fleet.peers is not None and self.scaling.peer_prior is not None

    def peer_rows(self, request: WindowRequest) -> tuple[np.ndarray, np.ndarray]:
        """Of each window: row in the peer table, -1 without peers, int64 [window]; whether it is a member, boolean."""
        peers, servers = self.fleet.peers, servers_with_peers(self.fleet, request)
        if peers is None or servers is None:
            return np.full(len(request.rows), -1), np.zeros(len(request.rows), dtype=bool)
        return np.where(servers >= 0, peers.rows[servers], -1), (servers >= 0) & peers.members[servers]

    def may_have_peers(self, rows: np.ndarray, masked_profile: np.ndarray | None = None) -> np.ndarray:
        """Whether windows of these servers have peers: boolean [window]."""
        return may_have_peers(self.fleet, rows, self.profiles_of(rows, masked_profile))

    def batch(self, selection: WindowSelection) -> Batch:
        """The selected windows with their targets."""
        request = self.request(selection)
        windows = build_windows(self.fleet, request)
        index = request.origins[:, None] + np.arange(1, self.spec.horizon_steps + 1)
        future = self.transformed[request.rows[:, None], index]
        if request.level_shift is not None:
            future += request.level_shift[:, None]
        future -= windows.target_scale.loc
        future /= repeat_over_steps(windows.target_scale.scale, self.spec.horizon_steps)
        return TrainingBatch(windows, asinh(future))

    def augmented_batch(self, plan: BatchPlan) -> Batch:
        """The planned batch."""
        batch = self.batch(plan.selection)
        windows = add_position_noise(batch.windows, plan.position_noise)
        return TrainingBatch(*exchange_metrics(windows, batch.targets, plan.metric_order))

    def has_targets(self, rows: np.ndarray, origins: np.ndarray) -> np.ndarray:
        """True for windows with at least one measured target: boolean [window]."""
        found = np.zeros(len(rows), dtype=bool)
        order = np.argsort(rows, kind="stable")
        for first in range(0, len(self.transformed), _SERVERS_AT_ONCE):
            measured = ~np.isnan(self.transformed[first : first + _SERVERS_AT_ONCE]).all(axis=2)
            counts = np.zeros((len(measured), measured.shape[1] + 1), dtype=np.int32)
            np.cumsum(measured, axis=1, out=counts[:, 1:])
            here = order[slice(*np.searchsorted(rows, [first, first + len(measured)], sorter=order))]
            row, origin = rows[here] - first, origins[here]
            found[here] = counts[row, origin + 1 + self.spec.horizon_steps] > counts[row, origin + 1]
        return found


def _transform(values: np.ndarray, scaling: FleetScaling, transformed: np.ndarray) -> None:
    """Fill `transformed`, some servers at a time."""
    for first in range(0, len(values), _SERVERS_AT_ONCE):
        part = slice(first, first + _SERVERS_AT_ONCE)
        transformed[part] = scaling.bounds.transform(values[part])
