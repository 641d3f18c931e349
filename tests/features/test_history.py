"""Values around origins are those of the array; rows that are far apart are interpolated."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.features.history import future_values, interpolate_between_rows, past_values, row_distances

VALUES = np.arange(2 * 10, dtype=np.float32).reshape(2, 10, 1)
ROWS, ORIGINS = np.array([0, 1, 1]), np.array([1, 5, 9])


def test_past_values_end_at_the_origin_and_are_missing_before_the_array() -> None:
    expected = [[np.nan, np.nan, 0, 1], [12, 13, 14, 15], [16, 17, 18, 19]]
    np.testing.assert_array_equal(past_values(VALUES, ROWS, ORIGINS, 4)[:, :, 0], expected)


def test_no_past_steps_are_an_empty_history() -> None:
    assert past_values(VALUES, ROWS, ORIGINS, 0).shape == (3, 0, 1)


def test_future_values_follow_the_origin_and_are_missing_after_the_array() -> None:
    expected = [[2, 3, 4], [16, 17, 18], [np.nan] * 3]
    np.testing.assert_array_equal(future_values(VALUES, ROWS, ORIGINS, 3)[:, :, 0], expected)


DAY_STEPS = 288


def measured_every(distance: int, jitter: int = 0, steps: int = 700) -> np.ndarray:
    """One server of one metric: float32 [1, step, 1], a daily swing."""
    random = np.random.default_rng(distance)
    at = np.arange(0, steps - jitter, distance)
    at = at + random.integers(0, jitter + 1, len(at)) * (random.random(len(at)) < 0.3)
    values = np.full((1, steps, 1), np.nan, dtype=np.float32)
    values[0, at, 0] = 50 + 35 * np.sin(2 * np.pi * at / DAY_STEPS)
    return values


@pytest.mark.parametrize(("distance", "jitter"), [(2, 0), (3, 0), (12, 0), (12, 1), (36, 2)])
def test_the_distance_of_rows_is_found_though_some_are_early_late_or_missing(distance: int, jitter: int) -> None:
    values = measured_every(distance, jitter)
    values[0, 100:150] = np.nan
    found = row_distances(np.concatenate([values, np.ones_like(values)]), DAY_STEPS)
    assert found is not None
    assert found.tolist() == [[distance], [1]]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_randomly_missing_steps_do_not_change_the_distance(share: float) -> None:
    values = np.random.default_rng(3).random((20, 288, 3)).astype(np.float32)
    values[np.random.default_rng(4).random(values.shape) < share] = np.nan
    assert row_distances(values, DAY_STEPS) is None


def test_rows_farther_apart_than_an_eighth_of_a_day_and_a_few_rows_have_no_distance() -> None:
    assert row_distances(measured_every(37), DAY_STEPS) is None
    assert row_distances(measured_every(12, steps=30), DAY_STEPS) is None


def test_steps_between_near_rows_are_interpolated_and_no_others() -> None:
    row = np.array([np.nan, 2, np.nan, np.nan, 8, np.nan, np.nan, np.nan, np.nan, 3, np.nan], dtype=np.float32)
    past = np.stack([row, row])[..., None]
    interpolate_between_rows(past, np.array([[3], [1]]))
    filled = [np.nan, 2, 4, 6, 8, np.nan, np.nan, np.nan, np.nan, 3, np.nan]
    np.testing.assert_array_equal(past[0, :, 0], np.float32(filled))
    np.testing.assert_array_equal(past[1, :, 0], row)
