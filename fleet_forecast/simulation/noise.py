"""Noise of simulated servers: first-order autoregressions, two for the load and one for each metric.

The servers of a profile have a part of their demand in common: their innovations are mixed from a stream of the server
and a stream of the profile. The variance and the autocorrelation of a server do not depend on the mixture.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.definitions import PROFILES, per_fleet
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.metric_model import profile_order, simulated
from fleet_forecast.simulation.randomness import noise_stream

Float32 = npt.NDArray[np.float32]


class Sources(NamedTuple):
    """The sources of noise, [source]: slow and fast load, then each metric's own noise."""

    correlation_minutes: npt.NDArray[np.float64]
    sampling_noise: npt.NDArray[np.float64]  # share of the variance
    follows_demand: npt.NDArray[np.bool_]


@per_fleet
def sources() -> Sources:
    """The sources of the simulated metrics."""
    models = simulated().models
    return Sources(
        np.array([300.0, 25.0, *(model.correlation_minutes for model in models)]),
        np.array([0.0, 0.0, *(model.sampling_noise for model in models)]),
        np.array([True, True, *(model.follows_demand for model in models)]),
    )


class NoiseSources:
    """Noise with variance 1 of a group of servers; no value depends on the group or the chunk.

    servers: [server] position in the fleet.
    """

    def __init__(self, fleet: Fleet, servers: npt.NDArray[np.int64], step_seconds: int) -> None:
        self._keys = fleet.keys[servers]
        self._profile_keys, self._profile_of = np.unique(fleet.profile_keys[servers], return_inverse=True)
        self._sources = len(sources().correlation_minutes)
        order = profile_order()
        shares = [PROFILES[order[code]].shared_demand for code in np.unique(fleet.profile_codes[servers])]
        shared = np.array(shares)[:, None] * sources().follows_demand  # [profile, source] share of the variance
        self._own_weights = np.sqrt(1 - shared).astype(np.float32)
        self._shared_weights = np.sqrt(shared).astype(np.float32)
        self.reseed(fleet.seed)
        correlation_minutes = sources().correlation_minutes[None, :] * fleet.traits.time_scale[servers][:, None]
        self._decay = np.exp(-step_seconds / 60 / correlation_minutes).astype(np.float32).ravel()  # [server * source]
        self.state = self._draw(1).ravel()  # [server * source] newest value, without sampling noise
        innovation = np.sqrt(1 - self._decay.astype(np.float64) ** 2)
        sampling = np.tile(np.sqrt(sources().sampling_noise), len(self._keys))
        # signal * x + sampling * e has variance 1: x and its newest innovation e are correlated by `innovation`.
        signal = -sampling * innovation + np.sqrt(1 - sampling**2 + (sampling * innovation) ** 2)
        self._innovation, self._sampling = innovation.astype(np.float32), sampling.astype(np.float32)
        self._signal = signal.astype(np.float32)

    def reseed(self, seed: int) -> None:
        """Draw the following innovations, of the servers and of their profiles, from another seed."""
        self.streams = _streams(seed, self._keys)
        self.shared_streams = _streams(seed, self._profile_keys)

    def fork(self, seed: int) -> NoiseSources:
        """A copy at the same state, with innovations of another seed."""
        fork = copy.copy(self)
        fork.reseed(seed)
        return fork

    def advance(self, steps: int) -> Float32:
        """The next steps: [source, server, step]."""
        count = len(self._keys)
        rows = self._draw(steps).reshape(steps, count * self._sources)
        noise = rows * self._innovation
        previous, decayed = self.state, np.empty_like(self.state)
        for row in noise:  # x[t] = decay * x[t - 1] + innovation * e[t], all servers and sources at once
            np.multiply(previous, self._decay, out=decayed)
            np.add(row, decayed, out=row)
            previous = row
        self.state = previous.copy()
        noise *= self._signal
        rows *= self._sampling
        noise += rows
        return np.ascontiguousarray(noise.reshape(steps, count, self._sources).transpose(2, 1, 0))

    def _draw(self, steps: int) -> Float32:
        """Innovations with variance 1: [step, server, source]."""
        shape = steps, self._sources
        shared = [stream.standard_normal(shape, dtype=np.float32) for stream in self.shared_streams]
        for innovations, weights in zip(shared, self._shared_weights, strict=True):
            innovations *= weights
        # Multiplying arrays of equal shape is several times as fast as repeating a row of eight weights.
        own_weights = [np.tile(weights, (steps, 1)) for weights in self._own_weights]
        mixed = np.empty((steps, len(self._keys), self._sources), dtype=np.float32)
        for server, (stream, profile) in enumerate(zip(self.streams, self._profile_of, strict=True)):
            own = stream.standard_normal(shape, dtype=np.float32)
            own *= own_weights[profile]
            np.add(own, shared[profile], out=mixed[:, server])
        return mixed


def _streams(seed: int, keys: npt.NDArray[np.int64]) -> Sequence[np.random.Generator]:
    return [noise_stream(seed, int(key)) for key in keys]
