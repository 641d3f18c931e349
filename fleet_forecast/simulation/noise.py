"""Noise of simulated servers: first-order autoregressions, two for the load and one for each metric."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fleet_forecast.simulation.metric_model import METRIC_MODELS
from fleet_forecast.simulation.randomness import noise_stream

Float32 = npt.NDArray[np.float32]

# Correlation times in minutes: slow and fast load, then each metric's own noise.
CORRELATION_MINUTES = np.array([300.0, 25.0, *(model.correlation_minutes for model in METRIC_MODELS)])
SAMPLING_NOISE = np.array([0.0, 0.0, *(model.sampling_noise for model in METRIC_MODELS)])  # share of the variance
SOURCES = len(CORRELATION_MINUTES)


class NoiseSources:
    """Noise with variance 1 of a group of servers; every value is the same whatever the group or the chunk.

    keys: [server] of the random numbers. time_scale: [server] factor of the correlation times.
    """

    def __init__(self, seed: int, keys: npt.NDArray[np.int64], time_scale: Float32, step_seconds: int) -> None:
        self.keys = keys
        self.streams = self._streams_of(seed)
        correlation_minutes = CORRELATION_MINUTES[None, :] * time_scale[:, None]
        self._decay = np.exp(-step_seconds / 60 / correlation_minutes).astype(np.float32).ravel()  # [server * source]
        first = [stream.standard_normal(SOURCES, dtype=np.float32) for stream in self.streams]
        self.state = np.concatenate(first)  # [server * source] newest value, without sampling noise
        innovation = np.sqrt(1 - self._decay.astype(np.float64) ** 2)
        sampling = np.tile(np.sqrt(SAMPLING_NOISE), len(keys))
        # signal * x + sampling * e has variance 1: x and its newest innovation e are correlated by `innovation`.
        signal = -sampling * innovation + np.sqrt(1 - sampling**2 + (sampling * innovation) ** 2)
        self._innovation, self._sampling = innovation.astype(np.float32), sampling.astype(np.float32)
        self._signal = signal.astype(np.float32)

    def reseed(self, seed: int) -> None:
        """Draw the following innovations from another seed."""
        self.streams = self._streams_of(seed)

    def fork(self, seed: int) -> NoiseSources:
        """A copy at the same state, with innovations of another seed."""
        fork = copy.copy(self)
        fork.reseed(seed)
        return fork

    def advance(self, steps: int) -> Float32:
        """The next steps: [source, server, step]."""
        count = len(self.keys)
        innovations = np.empty((steps, count, SOURCES), dtype=np.float32)
        for position, stream in enumerate(self.streams):
            innovations[:, position] = stream.standard_normal((steps, SOURCES), dtype=np.float32)
        rows = innovations.reshape(steps, count * SOURCES)
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
        return np.ascontiguousarray(noise.reshape(steps, count, SOURCES).transpose(2, 1, 0))

    def _streams_of(self, seed: int) -> Sequence[np.random.Generator]:
        return [noise_stream(seed, int(key)) for key in self.keys]
