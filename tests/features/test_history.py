"""Values before and after origins are those of the array, and missing outside it."""

from __future__ import annotations

import numpy as np

from fleet_forecast.features.history import future_values, past_values

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
