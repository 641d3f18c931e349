"""Numbers by key: the same whatever else was drawn, and as random as they should be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_forecast.simulation.randomness import even_uniform, noise_stream, normal, paired_normal, uniform

KEYS = st.integers(0, 2**40)


@given(KEYS, KEYS, st.lists(KEYS, min_size=1, max_size=8))
def test_a_number_depends_on_its_own_key_alone(seed, stream, keys):
    together = uniform(seed, np.array(keys), stream)
    assert together.shape == (len(keys),)
    for key, number in zip(keys, together, strict=True):
        assert uniform(seed, key, stream) == number
        assert 0 < number < 1


def splitmix64(bits):
    """The published algorithm's finaliser with Python's integers."""
    mask = 2**64 - 1
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
    return bits ^ (bits >> 31)


@given(KEYS, KEYS)
def test_numbers_are_those_of_splitmix64(one, other):
    golden, state = 0x9E3779B97F4A7C15, 0
    for key in (one, other):
        state = splitmix64((state * golden + key + golden) % 2**64)
    assert uniform(one, other) == ((state >> 11) + 0.5) / 2**53


def test_uniform_numbers_are_uniform_and_independent_along_every_key():
    grid = uniform(7, np.arange(400)[:, None], np.arange(500)[None, :])
    assert grid.mean() == pytest.approx(0.5, abs=0.003)
    assert np.histogram(grid, 20, (0, 1))[0] == pytest.approx(np.full(20, 10_000), rel=0.05)
    for lagged in (
        grid[1:] * grid[:-1],
        grid[:, 1:] * grid[:, :-1],
        grid * uniform(8, np.arange(400)[:, None], np.arange(500)),
    ):
        assert lagged.mean() == pytest.approx(0.25, abs=0.004)


def test_normal_numbers_have_mean_0_and_variance_1():
    numbers = normal(3, np.arange(50_000))
    assert numbers.mean() == pytest.approx(0, abs=0.02)
    assert numbers.var() == pytest.approx(1, abs=0.03)
    assert np.mean(np.abs(numbers) > 1.96) == pytest.approx(0.05, abs=0.005)


def test_even_numbers_leave_no_gap_in_any_run():
    for first in (0, 13, 1_000):
        spread = np.sort(even_uniform(np.arange(first, first + 40), 1))
        assert np.diff(spread).max() < 2.7 / 40


def test_pairs_are_opposite_and_the_first_is_typical():
    numbers = paired_normal(np.arange(1, 402), 5)
    assert numbers[1::2] == pytest.approx(-numbers[2::2])
    assert abs(numbers[0]) < 1
    assert numbers.var() == pytest.approx(1, abs=0.05)


def test_noise_streams_are_reproducible_and_different():
    def draw(seed, key):
        return noise_stream(seed, key).standard_normal(1_000, dtype=np.float32)

    assert np.array_equal(draw(1, 2), draw(1, 2))
    for other in (draw(2, 2), draw(1, 3), draw(2, 1)):
        assert abs(np.corrcoef(draw(1, 2), other)[0, 1]) < 0.12


def test_a_noise_stream_is_the_same_in_one_piece_or_several():
    whole = noise_stream(1, 2).standard_normal((100, 8), dtype=np.float32)
    stream = noise_stream(1, 2)
    parts = [stream.standard_normal((steps, 8), dtype=np.float32) for steps in (1, 36, 63)]
    assert np.array_equal(whole, np.concatenate(parts))
