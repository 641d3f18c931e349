"""Fewer peers than usual: wider forecasts that stay calibrated, and the own level has more weight."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.features.fewer_peers import (
    PeerNoise,
    level_variance,
    median_variance,
    own_weight,
    unknown_noise,
    wider_error,
)
from fleet_forecast.features.peer_prior import PeerPrior, relative_to_peers, scale_by_peers
from fleet_forecast.features.quantile_map import KNOT_LEVELS
from fleet_forecast.features.scaling import FleetScaling
from tests.features.fitted_prior import fitted_prior

CONTEXT, SERVERS, STEPS, USUAL = 24, 30, 1_440, 29
ROW = np.ones(1, dtype=np.int64)


def noise_of(usual: float) -> PeerNoise:
    return PeerNoise(*(np.full((2, 1), value, dtype=np.float32) for value in (usual, 0.5)))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 40])
def test_the_variance_of_a_median_is_that_of_simulated_medians(count: int) -> None:
    medians = np.median(np.random.default_rng(0).normal(size=(40_000, count)), axis=1)
    # Two values have a mean as their median, which no smooth function of the number knows.
    assert median_variance(np.array(count)) == pytest.approx(medians.var(), rel=0.3 if count == 2 else 0.12)


@pytest.mark.parametrize("count", [0.0, 8.0, 20.0])
def test_nothing_changes_without_peers_or_with_the_usual_number(count: int) -> None:
    assert level_variance(noise_of(8), np.full((1, 1), count, dtype=np.float32), ROW) == 1.0
    assert level_variance(unknown_noise((2, 1)), np.ones((1, 1), dtype=np.float32), ROW) == 1.0


def test_the_fewer_peers_the_more_a_servers_level_varies_around_theirs() -> None:
    counts = np.arange(8, 0, -1, dtype=np.float32)[:, None]
    variance = level_variance(noise_of(8), counts, np.ones(8, dtype=np.int64))
    assert (np.diff(variance[:, 0]) > 0).all()
    random = np.random.default_rng(1).normal(size=(40_000, 9))
    one, eight = ((random[:, 0] - np.median(random[:, 1 : 1 + count], axis=1)).var() for count in (1, 8))
    assert variance[-1, 0] == pytest.approx(one / eight, rel=0.03)


def test_weight_and_error_are_those_of_a_normal_posterior() -> None:
    """Of a level with variance B around the peers, seen through own steps with an error of variance O."""
    usual_variance, own_variance, ratio, rest = 4.0, 2.5, 1.7, 3.0
    weights = [variance / (variance + own_variance) for variance in (usual_variance, ratio * usual_variance)]
    assert own_weight(np.array(weights[0]), np.array(ratio)) == pytest.approx(weights[1])
    posterior = [1 / (1 / variance + 1 / own_variance) for variance in (usual_variance, ratio * usual_variance)]
    error = wider_error(
        np.array(np.sqrt(posterior[0] + rest)), np.array(usual_variance), tuple(map(np.array, weights)), np.array(ratio)
    )
    assert error == pytest.approx(np.sqrt(posterior[1] + rest))


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    """Servers of one profile: a common level that wanders slowly, differences between servers, and short noise."""
    random = np.random.default_rng(3)
    common = np.cumsum(random.normal(0, 1.0, STEPS // CONTEXT))
    common = np.repeat(common - common.mean(), CONTEXT)
    of_servers = random.normal(0, 4, (SERVERS, 1))
    return (50 + common + of_servers + random.normal(0, 1.5, (SERVERS, STEPS)))[..., None].astype(np.float32)


@pytest.fixture(scope="module")
def fitted(levels: np.ndarray) -> tuple[FleetScaling, PeerPrior]:
    return fitted_prior(levels, CONTEXT)


def covered(scaling: FleetScaling, prior: PeerPrior, levels: np.ndarray, count: int, own_steps: int) -> float:
    """Share of what follows within the 80 % band of the prior, over many draws of peers and of one other server."""
    random, found = np.random.default_rng(count), []
    transformed = scaling.bounds.transform(levels)
    low, high = (int(np.argmin(np.abs(np.array(KNOT_LEVELS) - level))) for level in (0.1, 0.9))
    by_steps = prior.by_steps(CONTEXT)
    for _ in range(1_500):
        server, *peers = random.permutation(SERVERS)[: 1 + count]
        origin = int(random.integers(STEPS // 2, STEPS - 8))
        past = slice(origin - CONTEXT, origin)
        level, own = np.median(transformed[peers, past], axis=0)[None], transformed[[server], past].copy()
        own[:, : CONTEXT - own_steps] = np.nan
        offset = np.nanmean(own - level, axis=1) if own_steps else np.full((1, 1), np.nan)
        relative = relative_to_peers(own, level, offset, np.full((1, 1), count, dtype=np.float32))
        scale = scale_by_peers(by_steps, relative, ROW)
        standardised = (transformed[server, origin : origin + 8, 0] - scale.loc[0, 0]) / scale.scale[0, 0]
        band = scale.quantiles[0, 0]
        found.append(np.mean((standardised >= band[low]) & (standardised <= band[high])))
    return float(np.mean(found))


@pytest.mark.parametrize("own_steps", [0, 1])
def test_bands_stay_calibrated_with_one_peer(levels: np.ndarray, fitted: tuple, own_steps: int) -> None:
    scaling, prior = fitted
    usual = covered(scaling, prior, levels, USUAL, own_steps)
    without_widening = prior._replace(noise=unknown_noise((2, 1)))
    assert covered(scaling, prior, levels, 1, own_steps) > usual - 0.05
    assert covered(scaling, prior, levels, 2, own_steps) > usual - 0.05
    if own_steps == 0:
        assert covered(scaling, without_widening, levels, 1, 0) < usual - 0.08, "it matters in this fleet"


def test_the_noise_is_that_of_the_simulated_fleet(levels: np.ndarray, fitted: tuple) -> None:
    scaling, prior = fitted
    transformed = scaling.bounds.transform(levels)[:, STEPS // 2 :, 0]
    between = transformed.mean(axis=1).var()
    assert prior.noise.usual_count[1, 0] == USUAL
    assert prior.noise.level_share[1, 0] == pytest.approx(between / prior.error_scale[1, 0, 0] ** 2, rel=0.3)
