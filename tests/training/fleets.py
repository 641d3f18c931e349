"""A small fleet for tests of batches and augmentation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.cold_start import SMALLEST_SCALE
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.peer_prior import PeerSample, fit_peer_prior
from fleet_forecast.features.scaling import FleetScaling, fit_scaling
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.training.batches.augmentation import DEFAULT_AUGMENTATION, Augmentation
from fleet_forecast.training.batches.sampler import BatchSampler
from fleet_forecast.training.batches.source import Batch, BatchPlan, WindowSelection, WindowSource

METRICS = ("cpu_pct", "mem_pct")
SPEC = WindowSpec(METRICS, 300, BusinessCalendar("UTC"), context_steps=48, horizon_steps=12)
START = np.datetime64("2026-03-02T00:00:00", "s")
PROFILES = ("database", "web_api") * 2
LAST_STEP = 599


class RecordingSource(WindowSource):
    """Records the selections it builds batches of."""

    values: np.ndarray
    selections: list[WindowSelection]

    def batch(self, selection: WindowSelection) -> Batch:
        self.selections.append(selection)
        return super().batch(selection)


def grid_of(values: np.ndarray) -> FleetGrid:
    return FleetGrid(tuple("abcd"), PROFILES, METRICS, START, 300, values)


def recording_source() -> RecordingSource:
    """Four servers, the last with a gap longer than a window."""
    values = np.random.default_rng(0).uniform(5, 90, (4, 700, 2)).astype(np.float32)
    values[3, 200:420] = np.nan
    source = RecordingSource(
        grid_of(values), SPEC, fit_scaling(values, dict.fromkeys(METRICS, "percent"), PROFILES, 48)
    )
    source.values, source.selections = values, []
    return source


def sampler_of(
    source: WindowSource, servers: list[int], augmentation: Augmentation = DEFAULT_AUGMENTATION
) -> BatchSampler:
    return BatchSampler(source, np.array(servers), LAST_STEP, 16, augmentation)


def plans_of(
    source: WindowSource, servers: list[int], seed: int, augmentation: Augmentation = DEFAULT_AUGMENTATION
) -> list[BatchPlan]:
    """All batches of an epoch."""
    return list(sampler_of(source, servers, augmentation).epoch(np.random.default_rng(seed)))


def batches_of(
    source: WindowSource, servers: list[int], seed: int, augmentation: Augmentation = DEFAULT_AUGMENTATION
) -> list[Batch]:
    return [source.augmented_batch(plan) for plan in plans_of(source, servers, seed, augmentation)]


def source_with_peers(grid: FleetGrid, spec: WindowSpec, scaling: FleetScaling) -> WindowSource:
    """A source in which every server is a peer of the others of its profile."""
    peers = grid.peers()
    sample = PeerSample(
        values=grid.values,
        bounds=scaling.bounds,
        servers=np.arange(len(grid.servers)),
        profile_rows=scaling.profile_rows(np.array(grid.profiles, dtype=object)),
        peers=peers.of_fleet(grid.profiles, scaling.bounds),
        first_step=grid.first_step,
        smallest_scale=SMALLEST_SCALE * scaling.scale,
    )
    prior = fit_peer_prior(sample, spec.lag_steps(spec.context_steps), spec.history_steps)
    assert prior is not None
    return WindowSource(grid, spec, replace(scaling, peer_prior=prior), peers)
