"""The bound width of a metric follows from its distribution, whatever its unit."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from fleet_forecast.features.bound_width import (
    DEFAULT_PERCENT,
    DEFAULT_RATE,
    MAX_VALUES,
    PERCENT_BOUND_WIDTHS,
    RATE_BOUND_WIDTHS,
    choose_bound_width,
)
from fleet_forecast.features.bounded_transform import BoundedTransform
from fleet_forecast.features.quantile_map import window_quantiles
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.window_batch import TargetScale
from fleet_forecast.network.head import QuantileHead

SHAPE = (8, 2880)  # servers, steps
WINDOW_STEPS = 288


def log_normal(deviation: float) -> np.ndarray:
    return np.exp(np.random.default_rng(0).normal(0, deviation, SHAPE)).astype(np.float32)


def normal(mean: float, deviation: float) -> np.ndarray:
    return np.maximum(np.random.default_rng(0).normal(mean, deviation, SHAPE), 0).astype(np.float32)


def chosen_share(values: np.ndarray) -> float:
    """The chosen width of a rate, as a share of its typical level."""
    typical = float(np.median(values[values > 0]))
    return choose_bound_width(values, False, typical, WINDOW_STEPS) / typical


@pytest.mark.parametrize("deviation", [0.7, 1.0, 2.0])
def test_log_normal_rates_have_a_wide_bound(deviation: float) -> None:
    assert chosen_share(log_normal(deviation)) >= 2.0


@pytest.mark.parametrize("deviation", [0.05, 0.1, 0.3])
def test_normal_rates_far_from_zero_have_a_narrow_bound(deviation: float) -> None:
    assert chosen_share(normal(1.0, deviation)) == pytest.approx(DEFAULT_RATE)


def test_percentages_close_to_a_bound_have_a_narrower_bound_than_those_in_the_middle() -> None:
    assert choose_bound_width(0.3 * log_normal(2.0), True, 1.0, WINDOW_STEPS) == PERCENT_BOUND_WIDTHS[0]
    assert choose_bound_width(100 - 0.3 * log_normal(2.0), True, 99.0, WINDOW_STEPS) == PERCENT_BOUND_WIDTHS[0]
    assert choose_bound_width(normal(50, 5), True, 50.0, WINDOW_STEPS) == DEFAULT_PERCENT


@pytest.mark.parametrize("unit", [1e-6, 1e3, 1e9])
@pytest.mark.parametrize(
    "values", [log_normal(1.0), log_normal(0.3), normal(1.0, 0.3)], ids=["wide", "medium", "narrow"]
)
def test_the_share_does_not_depend_on_the_unit(values: np.ndarray, unit: float) -> None:
    assert chosen_share(values * np.float32(unit)) == pytest.approx(chosen_share(values), rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, 0.0, 5.0])
def test_a_metric_that_never_varies_has_the_default(value: float) -> None:
    constant = np.full(SHAPE, value, dtype=np.float32)
    assert choose_bound_width(constant, False, 5.0, WINDOW_STEPS) == 5.0 * DEFAULT_RATE
    assert choose_bound_width(constant, True, 5.0, WINDOW_STEPS) == DEFAULT_PERCENT


def test_measurements_at_a_bound_and_gaps_have_no_effect() -> None:
    values = log_normal(1.0)
    left_out = np.random.default_rng(1).random(SHAPE) < 0.5
    typical = float(np.median(values))
    widths = [
        choose_bound_width(np.where(left_out, replacement, values).astype(np.float32), False, typical, WINDOW_STEPS)
        for replacement in (0.0, np.nan)
    ]
    assert widths[0] == widths[1] == pytest.approx(2.0 * typical)


def test_windows_longer_than_the_data_and_single_steps_are_accepted() -> None:
    values = log_normal(1.0)
    assert choose_bound_width(values, False, 1.0, 10_000) in RATE_BOUND_WIDTHS
    assert choose_bound_width(values[:, :1], False, 1.0, WINDOW_STEPS) == DEFAULT_RATE


def test_large_fleets_are_sampled() -> None:
    large = np.tile(log_normal(1.0), (100, 1))  # 2.3 million values
    assert large.size > 10 * MAX_VALUES
    started = time.perf_counter()
    choose_bound_width(large, False, 1.0, WINDOW_STEPS)
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize(
    ("percent", "width"),
    [*((True, width) for width in PERCENT_BOUND_WIDTHS), *((False, 50 * share) for share in RATE_BOUND_WIDTHS)],
)
def test_every_transform_of_the_family_is_increasing_finite_and_invertible(percent: bool, width: float) -> None:
    transform = BoundedTransform(np.array([percent]), np.array([width], dtype=np.float32))
    values = np.concatenate([[0.0], np.geomspace(1e-3, 99.99 if percent else 1e6, 2000), [100.0] if percent else []])
    transformed = transform.transform(values.astype(np.float32)[:, None])
    assert np.isfinite(transformed).all()
    assert (np.diff(transformed, axis=0) >= 0).all()
    back = transform.inverse(transformed)[:, 0]
    np.testing.assert_allclose(back, values, rtol=1e-3, atol=1e-4 * width)
    assert back[0] == 0.0
    extremes = transform.inverse(np.array([[-1e6], [1e6]], dtype=np.float32))
    assert extremes.min() == 0.0
    assert np.isfinite(extremes).all()
    assert extremes.max() <= (100.0 if percent else np.inf)


@pytest.mark.parametrize(("percent", "width"), [(True, 5.0), (True, 60.0), (False, 0.1), (False, 40.0)])
def test_the_log_derivative_equals_finite_differences(percent: bool, width: float) -> None:
    transform = BoundedTransform(np.array([percent]), np.array([width], dtype=np.float32))
    values = np.array([[0.5], [5.0], [50.0], [95.0]])
    around = (transform.transform((values + sign * 0.02).astype(np.float32)) for sign in (1, -1))
    slope = np.subtract(*around).astype(np.float64) / 0.04
    np.testing.assert_allclose(transform.log_derivative(values), np.log(slope), atol=0.01)


@pytest.mark.parametrize("zero_share", [0.7, 0.8, 0.95])
def test_the_median_of_a_rate_that_is_mostly_zero_is_exactly_zero(zero_share: float) -> None:
    random = np.random.default_rng(0)
    bursts = np.exp(random.normal(1, 1, (*SHAPE, 1)))
    values = np.where(random.random(bursts.shape) < zero_share, 0, bursts).astype(np.float32)
    scaling = fit_scaling(values, {"disk_io_mb_s": "rate"}, (None,) * len(values), WINDOW_STEPS)
    context = scaling.bounds.transform(values[:, :WINDOW_STEPS])
    steps, rows = np.full((len(values), 1), WINDOW_STEPS, dtype=np.float32), np.zeros(len(values), dtype=np.int64)
    loc, scale = scaling.window_scale(context, steps, rows)
    knots = window_quantiles((context - loc[:, None]) / scale[:, None], scaling.prior_quantiles(steps, rows))
    target_scale = TargetScale(*(torch.from_numpy(part) for part in (loc[:, None], scale, knots)))
    quantiles = QuantileHead(scaling.bounds)(torch.zeros(len(values), 1, 1, 1), target_scale)
    assert (quantiles == 0).all()
