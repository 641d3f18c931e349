"""The shape of a window: its own quantiles, its profile's without history, and scores that are read on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fleet_forecast.features.quantile_map import LEVELS, NARROWEST_GAP, NORMAL_SCORES, PRIOR_STEPS, window_shape
from fleet_forecast.network.model import ordered
from fleet_forecast.network.quantile_map import compressed_window_units, in_window_units

DAY = 288
NORMAL = np.array(NORMAL_SCORES, dtype=np.float32)


def shape_of(units: np.ndarray, prior: np.ndarray = NORMAL) -> np.ndarray:
    """Of windows drawn toward this shape in every metric."""
    return window_shape(units, np.broadcast_to(prior, (len(units), units.shape[2], len(LEVELS))))


def bursts(steps: int = DAY) -> np.ndarray:
    """Windows of idle servers with bursts, in two metrics, some of it not measured: [window, step, metric]."""
    random = np.random.default_rng(2)
    units = random.gamma(0.7, 1.0, (5, steps, 2)).astype(np.float32)
    units[random.random(units.shape) < 0.2] = np.nan
    return units


@pytest.mark.parametrize("steps", [12, 144, DAY])
def test_a_window_has_its_own_quantiles_drawn_toward_its_prior_ones(steps: int) -> None:
    units, prior = bursts(steps), np.array([-2, -1, -0.5, 0, 1, 2, 5], dtype=np.float32)
    own = np.moveaxis(np.nanquantile(units, LEVELS, axis=1), 0, -1)
    known = (~np.isnan(units)).sum(axis=1)[..., None]
    expected = (known * own + PRIOR_STEPS * prior) / (known + PRIOR_STEPS)
    np.testing.assert_allclose(shape_of(units, prior), expected, atol=1e-4)


@pytest.mark.parametrize("units", [np.full((2, 1, 3), np.nan, np.float32), np.full((2, 288, 3), np.nan, np.float32)])
def test_without_history_the_shape_is_the_prior_one(units: np.ndarray) -> None:
    prior = np.sort(np.random.default_rng(5).normal(size=7)).astype(np.float32) * 4
    np.testing.assert_allclose(shape_of(units, prior), np.broadcast_to(prior, (2, 3, 7)), atol=1e-5)


def test_the_scores_are_those_of_the_normal_distribution() -> None:
    np.testing.assert_allclose(NORMAL_SCORES, norm.ppf(LEVELS))


def test_a_constant_window_keeps_its_quantiles_apart() -> None:
    shape = shape_of(np.zeros((1, 288, 1), np.float32))
    assert (np.diff(shape) >= NARROWEST_GAP - 1e-6).all()


def test_scores_are_read_as_interpolation_between_the_quantiles_says() -> None:
    shape = shape_of(bursts())
    scores = torch.linspace(NORMAL_SCORES[0], NORMAL_SCORES[-1], 97).expand(5, 2, 7, 97)
    units = in_window_units(scores, torch.from_numpy(shape)).numpy()
    for window, metric in np.ndindex(5, 2):
        expected = np.interp(scores[0, 0, 0].numpy(), NORMAL_SCORES, shape[window, metric])
        np.testing.assert_allclose(units[window, metric, 3], expected, atol=1e-4)


def test_beyond_the_outermost_quantiles_scores_grow_as_sinh() -> None:
    shape = torch.tensor(NORMAL_SCORES).expand(1, 1, 7)
    distance = np.array([0.1, 1.0, 5.0])
    outermost = NORMAL_SCORES[-1]
    scores = torch.from_numpy(np.concatenate([-outermost - distance, outermost + distance])).float()
    beyond = outermost + np.sinh(distance)
    found = in_window_units(scores.expand(1, 1, 1, 6), shape)[0, 0, 0].numpy()
    np.testing.assert_allclose(found, np.concatenate([-beyond, beyond]), rtol=1e-5)


@given(st.lists(st.floats(-20, 20, width=32), min_size=7, max_size=7), st.integers(1, 288))
def test_quantiles_never_cross_whatever_the_network_says(raw: list[float], steps: int) -> None:
    shape = torch.from_numpy(shape_of(bursts(steps)))
    units = in_window_units(ordered(torch.tensor(raw)[:, None].expand(5, 2, 7, 1)), shape)
    assert torch.isfinite(units).all()
    assert (units.diff(dim=2) >= 0).all()


def test_a_network_that_says_nothing_says_what_the_last_day_was_like() -> None:
    """Raw outputs of zero, as a fresh network's are nearly: about the window's own quantiles."""
    shape = shape_of(bursts())
    said = in_window_units(ordered(torch.zeros(5, 2, 7, 1)), torch.from_numpy(shape)).numpy()[..., 0]
    np.testing.assert_allclose(said[..., 1:-1], shape[..., 1:-1], rtol=0.2, atol=0.05)


def test_the_loss_reads_scores_as_the_forecast_does_and_has_its_gradient() -> None:
    shape = torch.from_numpy(shape_of(bursts()))
    scores = torch.linspace(-9, 9, 5 * 2 * 4 * 50).view(5, 2, 4, 50).double().requires_grad_()
    plain = torch.asinh(in_window_units(scores, shape.double()))
    (expected,) = torch.autograd.grad(plain.square().sum(), scores)
    fast = compressed_window_units(scores, shape.double())
    (found,) = torch.autograd.grad(fast.square().sum(), scores)
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(found, expected)
    single = compressed_window_units(scores.detach().float(), shape)
    torch.testing.assert_close(single, plain.detach().float(), atol=1e-4, rtol=1e-4)
