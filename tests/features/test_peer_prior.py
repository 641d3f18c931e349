"""Peer prior: the scale of a window follows the deviation of its peers and its own, by the learned weights."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.features.fewer_peers import unknown_noise
from fleet_forecast.features.peer_prior import PeerPrior, relative_to_peers, scale_by_peers
from fleet_forecast.features.quantile_map import KNOT_LEVELS
from tests.features.fitted_prior import fitted_prior

CONTEXT, SERVERS, STEPS = 24, 8, 960


def prior_after(steps: int, **fields: float) -> PeerPrior:
    """Of one profile and metric, the same at every number of own steps up to `steps`."""
    by_steps = {name: np.full((2, 1, 1 + steps), value, dtype=np.float32) for name, value in fields.items()}
    quantiles = np.zeros((2, 1, 1 + steps, len(KNOT_LEVELS)), dtype=np.float32)
    return PeerPrior(**by_steps, quantiles=quantiles, noise=unknown_noise((2, 1)))


def test_the_scale_is_the_usual_error_by_the_deviation_of_the_peers_then_by_the_own() -> None:
    """Computed by hand, number by number."""
    random = np.random.default_rng(0)
    level, own = (random.normal(3, size, (3, CONTEXT, 1)).astype(np.float32) for size in (2, 0.5))
    level[1, :20] = np.nan
    own[0] = np.nan  # no history
    own[1, :-2] = np.nan
    prior = prior_after(
        CONTEXT, level_weight=0.3, error_scale=1.5, usual_deviation=1.2, peer_scale_weight=0.6, scale_weight=0.4
    )
    offset = np.array([[np.nan], [0.2], [-0.1]], dtype=np.float32)
    count = np.ones((3, 1), dtype=np.float32)
    found = scale_by_peers(prior, relative_to_peers(own, level, offset, count), np.ones(3, dtype=np.int64))

    def deviation(values: np.ndarray, usual: float) -> float:
        known = values[~np.isnan(values)].astype(float)
        squares = sum((value - known.mean()) ** 2 for value in known)
        return float(((squares + 2 * usual**2) / (len(known) + 2)) ** 0.5)

    for window in range(3):
        by_peers = 1.5 * (deviation(level[window], 1.2) / 1.2) ** 0.6
        expected = by_peers * (deviation(own[window], by_peers) / by_peers) ** 0.4
        assert found.scale[window, 0] == pytest.approx(expected, rel=1e-5)
        assert found.scale_position[window, 0] == pytest.approx(np.log(expected / 1.5), abs=1e-5)
        base, own_offset = np.nanmean(level[window]), 0.0 if window == 0 else offset[window, 0]
        assert found.loc[window, 0] == pytest.approx(base + 0.3 * own_offset, rel=1e-5)


def fitted(size_of_steps: np.ndarray) -> PeerPrior:
    """Of servers that share a random load of this size, step by step, and differ little from each other."""
    random = np.random.default_rng(1)
    load = 50 + size_of_steps * random.normal(0, 1, STEPS)
    values = (load[:, None] + random.normal(0, 0.2, (SERVERS, STEPS, 1))).astype(np.float32)
    return fitted_prior(values, CONTEXT)[1]


def test_the_weight_of_the_peers_deviation_is_high_where_calm_and_restless_weeks_alternate() -> None:
    weeks = np.arange(STEPS) // (3 * CONTEXT) % 2
    alternating, steady = fitted(np.where(weeks, 6.0, 1.0)), fitted(np.full(STEPS, 3.0))
    assert alternating.peer_scale_weight[1, 0, 0] > 0.5
    assert steady.peer_scale_weight[1, 0, 0] < 0.3
    assert steady.usual_deviation[1, 0, 0] == pytest.approx(steady.error_scale[1, 0, 0], rel=0.1)
