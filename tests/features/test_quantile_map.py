"""Window quantiles: empirical, drawn toward the prior; and the quantile map of normal scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fleet_forecast.features.quantile_map import KNOT_LEVELS, NORMAL_SCORES, PRIOR_STEPS, SMALLEST_GAP, window_quantiles
from fleet_forecast.network.head import ordered
from fleet_forecast.network.quantile_map import map_scores, map_scores_asinh

DAY = 288
NORMAL = np.array(NORMAL_SCORES, dtype=np.float32)


def quantiles_of(units: np.ndarray, prior: np.ndarray = NORMAL) -> np.ndarray:
    """Window quantiles with the same prior for every metric."""
    return window_quantiles(units, np.broadcast_to(prior, (len(units), units.shape[2], len(KNOT_LEVELS))))


def bursts(steps: int = DAY) -> np.ndarray:
    """Windows of idle servers with bursts and gaps, two metrics: [window, step, metric]."""
    random = np.random.default_rng(2)
    units = random.gamma(0.7, 1.0, (5, steps, 2)).astype(np.float32)
    units[random.random(units.shape) < 0.2] = np.nan
    return units


@pytest.mark.parametrize("steps", [12, 144, DAY])
def test_window_quantiles_are_the_empirical_ones_drawn_toward_the_prior(steps: int) -> None:
    units, prior = bursts(steps), np.array([-2, -1, -0.5, 0, 1, 2, 5], dtype=np.float32)
    own = np.moveaxis(np.nanquantile(units, KNOT_LEVELS, axis=1), 0, -1)
    known = (~np.isnan(units)).sum(axis=1)[..., None]
    expected = (known * own + PRIOR_STEPS * prior) / (known + PRIOR_STEPS)
    np.testing.assert_allclose(quantiles_of(units, prior), expected, atol=1e-4)


@pytest.mark.parametrize("units", [np.full((2, 1, 3), np.nan, np.float32), np.full((2, 288, 3), np.nan, np.float32)])
def test_without_history_the_window_quantiles_are_the_prior(units: np.ndarray) -> None:
    prior = np.sort(np.random.default_rng(5).normal(size=7)).astype(np.float32) * 4
    np.testing.assert_allclose(quantiles_of(units, prior), np.broadcast_to(prior, (2, 3, 7)), atol=1e-5)


def test_the_knots_are_normal_scores() -> None:
    np.testing.assert_allclose(NORMAL_SCORES, norm.ppf(KNOT_LEVELS))


def test_a_constant_window_keeps_its_quantiles_apart() -> None:
    quantiles = quantiles_of(np.zeros((1, 288, 1), np.float32))
    assert (np.diff(quantiles) >= SMALLEST_GAP - 1e-6).all()


def test_between_the_knots_scores_are_interpolated_linearly() -> None:
    quantiles = quantiles_of(bursts())
    scores = torch.linspace(NORMAL_SCORES[0], NORMAL_SCORES[-1], 97).expand(5, 2, 7, 97)
    units = map_scores(scores, torch.from_numpy(quantiles)).numpy()
    for window, metric in np.ndindex(5, 2):
        expected = np.interp(scores[0, 0, 0].numpy(), NORMAL_SCORES, quantiles[window, metric])
        np.testing.assert_allclose(units[window, metric, 3], expected, atol=1e-4)


def test_beyond_the_outermost_knots_scores_grow_as_sinh() -> None:
    quantiles = torch.tensor(NORMAL_SCORES).expand(1, 1, 7)
    distance = np.array([0.1, 1.0, 5.0])
    outermost = NORMAL_SCORES[-1]
    scores = torch.from_numpy(np.concatenate([-outermost - distance, outermost + distance])).float()
    beyond = outermost + np.sinh(distance)
    found = map_scores(scores.expand(1, 1, 1, 6), quantiles)[0, 0, 0].numpy()
    np.testing.assert_allclose(found, np.concatenate([-beyond, beyond]), rtol=1e-5)


@given(st.lists(st.floats(-20, 20, width=32), min_size=7, max_size=7), st.integers(1, 288))
def test_quantiles_never_cross_for_any_raw_output(raw: list[float], steps: int) -> None:
    quantiles = torch.from_numpy(quantiles_of(bursts(steps)))
    units = map_scores(ordered(torch.tensor(raw)[:, None].expand(5, 2, 7, 1)), quantiles)
    assert torch.isfinite(units).all()
    assert (units.diff(dim=2) >= 0).all()


def test_the_fast_map_for_the_loss_equals_the_plain_one_and_its_gradient() -> None:
    quantiles = torch.from_numpy(quantiles_of(bursts()))
    scores = torch.linspace(-9, 9, 5 * 2 * 4 * 50).view(5, 2, 4, 50).double().requires_grad_()
    plain = torch.asinh(map_scores(scores, quantiles.double()))
    (expected,) = torch.autograd.grad(plain.square().sum(), scores)
    fast = map_scores_asinh(scores, quantiles.double())
    (found,) = torch.autograd.grad(fast.square().sum(), scores)
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(found, expected)
    single = map_scores_asinh(scores.detach().float(), quantiles)
    torch.testing.assert_close(single, plain.detach().float(), atol=1e-4, rtol=1e-4)
