"""Training batches: the windows of an epoch, and their inputs and targets.

An epoch visits every server-hour of the training period once as a forecast origin, at a random minute of the hour, and
plans for each batch which windows it has and how they are augmented (augmentation.py). Plans are turned into batches
here, or on a GPU in gpu_batches.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
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
from fleet_forecast.training.augmentation import (
    DEFAULT_AUGMENTATION,
    Augmentation,
    add_position_noise,
    draw_history_with_peers,
    exchange_metrics,
    level_uncertainty,
    mean_level,
)

HOUR_SECONDS = 3_600
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


@dataclass(frozen=True)
class BatchSampler:
    """Plans the batches of epochs over some servers.

    servers: int64 [server], rows of the source. last_step: the last grid step of any target.
    """

    source: WindowSource
    servers: np.ndarray
    last_step: int
    batch_size: int
    augmentation: Augmentation = DEFAULT_AUGMENTATION

    @cached_property
    def level_uncertainty(self) -> np.ndarray:
        """Of the servers' profiles: float32 [1 + profile, metric]."""
        source = self.source
        levels = np.stack([mean_level(source.transformed[row, : self.last_step + 1]) for row in self.servers])
        return level_uncertainty(levels, source.profile_rows[self.servers], len(source.scaling.profiles))

    def epoch(self, random: np.random.Generator, first_batch: int = 0) -> Iterator[BatchPlan]:
        """One epoch from `first_batch` on, batches in random order.

        Each batch has its own random numbers, so that an epoch can be entered anywhere without planning what precedes.
        """
        spec = self.source.spec
        server, origin, hour = self._server_hours()
        origin = np.minimum(origin + random.integers(0, hour, origin.shape), self.last_step - spec.horizon_steps)
        kept = random.permutation(np.flatnonzero(self.source.has_targets(server, origin)))
        seed = int(random.integers(2**63))
        for number in range(first_batch, -(-len(kept) // self.batch_size)):
            chosen = kept[number * self.batch_size : (number + 1) * self.batch_size]
            batch_random = np.random.default_rng([seed, number])
            yield self._plan(number, server[chosen], origin[chosen], origin, batch_random)

    def _plan(
        self,
        number: int,
        rows: np.ndarray,
        origins: np.ndarray,
        origins_of_epoch: np.ndarray,
        random: np.random.Generator,
    ) -> BatchPlan:
        """Draws the augmentation of a batch; the order of the draws is part of a run's identity."""
        source, augmentation = self.source, self.augmentation
        spec, size, metrics = source.spec, len(rows), len(source.spec.metrics)
        synthetic_share = augmentation.synthetic_share(len(self.servers))
        drawn = draw_history_with_peers(spec, source.may_have_peers(rows), random, augmentation)
        known_steps = drawn.known_steps
        masked = random.random(size) < augmentation.masked_profile_share
        profiles = source.profiles_of(rows, masked)
        eligible = (profiles == 0) & (known_steps >= spec.context_steps)  # for synthetic servers
        exchanged, other_calendar = eligible & (random.random((2, size)) < synthetic_share)
        calendar_origins = np.where(other_calendar, random.choice(origins_of_epoch, size), origins)
        deviation = augmentation.position_noise * synthetic_share
        noise = random.normal(0, deviation, (size, 2 * metrics)).astype(np.float32)
        order = np.tile(np.arange(metrics), (size, 1))
        order[exchanged] = random.permuted(order[exchanged], axis=1)
        has_peers = source.may_have_peers(rows, masked)
        if drawn.masked_peers is not None:
            has_peers &= ~drawn.masked_peers
        missing_share = np.where(has_peers, 0.0, np.maximum(1.0 - known_steps / spec.context_steps, 0.0))[:, None]
        deviation_of_shift = augmentation.level_uncertainty * self.level_uncertainty[profiles] * missing_share
        shift = (deviation_of_shift * random.normal(0, 1, deviation_of_shift.shape)).astype(np.float32)
        selection = WindowSelection(
            rows=rows,
            origins=origins,
            encoder_steps=drawn.encoder_steps,
            known_steps=known_steps,
            masked_profile=masked,
            calendar_origins=calendar_origins,
            level_shift=shift,
            masked_peers=drawn.masked_peers,
        )
        return BatchPlan(number, selection, noise, order)

    def batches_per_epoch(self) -> int:
        """Number of batches, at least 1; with gaps in the data, random minutes may make it one more or fewer."""
        server, hours, _ = self._server_hours()
        return max(1, -(-int(self.source.has_targets(server, hours).sum()) // self.batch_size))

    def _server_hours(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Server and first step of each server-hour whose targets end by last_step, int64 [window]; steps per hour."""
        spec = self.source.spec
        hour = max(1, HOUR_SECONDS // spec.step_seconds)
        hours = np.arange(0, self.last_step - spec.horizon_steps + 1, hour)
        server, origin = (part.ravel() for part in np.meshgrid(self.servers, hours, indexing="ij"))
        return server, origin, hour
