"""Epochs: which windows each training batch has, and how they are augmented.

An epoch visits every server-hour of the training period once as a forecast origin, at a random minute of the hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fleet_forecast.training.batches.augmentation import (
    DEFAULT_AUGMENTATION,
    Augmentation,
    draw_history_with_peers,
    level_uncertainty,
    mean_level,
)
from fleet_forecast.training.batches.source import BatchPlan, WindowSelection, WindowSource

HOUR_SECONDS = 3_600


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
