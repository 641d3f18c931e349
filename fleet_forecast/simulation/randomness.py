"""Random numbers by key: a number depends on its key only, not on the numbers that were drawn before.

The simulated values therefore do not depend on the number of workers or the size of a chunk, and one server can be
simulated without the others.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.int64] | int

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STEP = (5**0.5 - 1) / 2  # multiples of the golden ratio, modulo 1, are spread evenly


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def uniform(*keys: Keys) -> npt.NDArray[np.float64]:
    """Uniform numbers above 0 and below 1, one for each key; keys are broadcast against each other."""
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = _mix(state * _GOLDEN + np.asarray(key, dtype=np.int64).astype(np.uint64) + _GOLDEN)
    fraction = ((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    return fraction if np.broadcast(*[np.asarray(key) for key in keys]).shape else fraction[0]


def normal(*keys: Keys) -> npt.NDArray[np.float64]:
    """Standard normal numbers, one for each key."""
    fractions = uniform(*keys)
    quantile = NormalDist().inv_cdf
    return np.array([quantile(fraction) for fraction in fractions.ravel().tolist()]).reshape(fractions.shape)


def even_uniform(numbers: npt.NDArray[np.int64], *keys: Keys) -> npt.NDArray[np.float64]:
    """Uniform numbers spread evenly over consecutive `numbers`."""
    return (uniform(*keys) + numbers * _STEP) % 1.0


def paired_normal(numbers: npt.NDArray[np.int64], *keys: Keys) -> npt.NDArray[np.float64]:
    """Normal numbers whose mean and deviation are close to 0 and 1 even for few `numbers`.

    Server numbers 2 and 3 have opposite values, and so have 4 and 5, and so on (antithetic sampling). The sizes of the
    pairs are spread evenly. Number 1 is close to 0.
    """
    pair = numbers // 2
    quantile = NormalDist().inv_cdf
    size = np.array([quantile(0.5 + 0.5 * fraction) for fraction in even_uniform(pair, *keys).tolist()])
    turn = np.where(uniform(*keys, pair, 1) < 0.5, -1.0, 1.0) * np.where(numbers % 2 == 0, 1.0, -1.0)
    return size * turn * np.where(numbers == 1, 0.3, 1.0)


def noise_stream(seed: int, key: int) -> np.random.Generator:
    """Innovations of one server or one profile; SFC64 is NumPy's fastest generator of normal numbers."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, key))))
