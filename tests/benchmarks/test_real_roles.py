"""Ablations of live peers: each changes what it names in the windows of servers with peers, and nothing afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.real_roles import PARTS, without
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.window_batch import WindowBatch
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.training import job
from fleet_forecast.training.batches.source import WindowSelection
from tests.training.fleets import METRICS, START, source_with_peers

SERVERS, STEPS, HISTORY = 6, 480, 4
SPEC = WindowSpec(METRICS, 1800, BusinessCalendar("UTC"), context_steps=48, horizon_steps=12)
FIELDS_CHANGED = {
    "the prior from peers": {"static", "encoder", "decoder", "loc", "scale", "window_quantiles"},
    "peers in the encoder": {"encoder"},
    "the peers' earlier days": {"static", "encoder", "decoder", "loc", "scale", "window_quantiles"},
    "learned weights": {"static", "encoder", "decoder", "loc", "scale", "window_quantiles"},
}


def windows_with_peers() -> WindowBatch[np.ndarray]:
    """Servers of one profile with four steps of history, under a common daily load."""
    random = np.random.default_rng(0)
    load = 40 + 15 * np.sin(2 * np.pi * np.arange(STEPS) / 48)[:, None] + random.normal(0, 2, (STEPS, 2))
    values = (load + random.normal(0, 4, (SERVERS, 1, 2)) + random.normal(0, 1, (SERVERS, STEPS, 2))).astype(np.float32)
    profiles = ("web_api",) * SERVERS
    grid = FleetGrid(tuple("abcdef"), profiles, METRICS, START, 1800, values)
    source = source_with_peers(grid, SPEC, fit_scaling(values, dict.fromkeys(METRICS, "percent"), profiles, 48))
    rows = np.arange(SERVERS)
    return source.batch(WindowSelection(rows, np.full(SERVERS, 450), 48, np.full(SERVERS, HISTORY))).windows


@pytest.mark.parametrize("part", PARTS)
def test_training_without_a_part_of_the_peers_changes_what_it_names(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The training calls it by the name that `without` replaces.
    monkeypatch.setattr(
        "tests.training.fleets.fit_peer_prior", lambda *arguments: vars(job)["fit_peer_prior"](*arguments)
    )
    before = windows_with_peers().fields()
    with without(part):
        changed = windows_with_peers().fields()
    after = windows_with_peers().fields()
    differ = {name for name, value in before.items() if not np.array_equal(value, changed[name])}
    assert differ == FIELDS_CHANGED[part]
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
