"""The mean of the samples of a step: a plain loop gives the same."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.step_means import CellMeans, step_means

SAMPLES = st.lists(
    st.tuples(st.integers(0, 4), st.none() | st.floats(0, 1e9), st.none() | st.floats(0, 100)), min_size=1, max_size=40
)


def plain_mean(samples, step, metric):
    measured = [row[1 + metric] for row in samples if row[0] == step and row[1 + metric] is not None]
    total = 0.0
    for value in measured:
        total += value
    return np.float32(total / len(measured)) if measured else np.float32(np.nan)


@given(samples=SAMPLES)
def test_step_means_are_the_means_of_a_plain_loop(samples):
    steps = np.array([row[0] for row in samples])
    values = np.array([row[1:] for row in samples], dtype=np.float64)  # None becomes NaN
    expected = [[plain_mean(samples, step, metric) for metric in (0, 1)] for step in range(5)]
    np.testing.assert_array_equal(step_means(steps, values, 5), np.array(expected), strict=True)


def test_batches_give_the_same_means_as_one_batch():
    random = np.random.default_rng(0)
    cells, values = random.integers(0, 10, 500), random.uniform(0, 100, 500).astype(np.float32)
    whole, parts = CellMeans(11), CellMeans(11)
    whole.add(cells, values)
    for start in range(0, 500, 70):
        parts.add(cells[start : start + 70], values[start : start + 70])
    np.testing.assert_array_equal(whole.means(), parts.means())
    assert np.isnan(whole.means()[10])
