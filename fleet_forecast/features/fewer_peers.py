"""What fewer peers than usual say about a server: their level is a less certain one, so forecasts are wider.

The prior from peers (peer_prior.py) is fitted on windows with the usual number of peers. The median of n servers has an
error whose variance is that of one server's level around the common level of the profile, divided by n and multiplied
by up to pi / 2 (Kenney & Keeping 1962, of normal samples). If fewer peers are measured, be it that a shard is missing,
that a profile is young, or that servers are silent, the server's own level has more weight against theirs, and the
expected error is larger. With the usual number of peers or more nothing changes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MEDIAN_EFFICIENCY = np.pi / 2  # the variance of a median of many normal values in units of that of their mean


class PeerNoise(NamedTuple):
    """By profile and metric, float32 [1 + profile, metric]; NaN for rows without peers.

    usual_count: peers of a window in training; 0: unknown, nothing is changed. level_share: share of the squared error
    without history that is the server's unknown level relative to its peers, 0 to 1.
    """

    usual_count: np.ndarray
    level_share: np.ndarray


def unknown_noise(shape: tuple[int, ...]) -> PeerNoise:
    """Of models that do not record it."""
    return PeerNoise(*(np.zeros(shape, dtype=np.float32) for _ in PeerNoise._fields))


def median_variance(count: np.ndarray) -> np.ndarray:
    """Variance of the median of `count` servers in units of that of one, for 1 or more."""
    found: np.ndarray = (MEDIAN_EFFICIENCY - (MEDIAN_EFFICIENCY - 1) / count) / count
    return found


def level_variance(noise: PeerNoise, count: np.ndarray, profile_rows: np.ndarray) -> np.ndarray:
    """Variance of a server's level relative to `count` peers, in units of that relative to the usual number.

    count: float32 [window, metric]; profile_rows: int64 [window]. At least 1; 1 with the usual number or more, without
    any, and where the usual number is unknown.
    """
    usual = noise.usual_count[profile_rows]
    fewer = (usual > count) & (count > 0)
    now, in_training = (1 + median_variance(np.where(fewer, number, 1.0)) for number in (count, usual))
    return (now / in_training).astype(np.float32)


def own_weight(level_weight: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Weight of the own level against the peers' when the relative level varies `variance` times as much."""
    odds = level_weight * variance
    found: np.ndarray = odds / (1.0 - level_weight + odds)
    return found


def wider_error(
    error_scale: np.ndarray, unknown_level: np.ndarray, weights: tuple[np.ndarray, np.ndarray], variance: np.ndarray
) -> np.ndarray:
    """Expected error with fewer peers.

    unknown_level: squared error that is the unknown level, without history and with the usual number of peers. weights:
    of the own level, with the usual number and now. variance: level_variance.
    """
    more = variance * (1.0 - weights[1]) - (1.0 - weights[0])  # of the level's variance after the own steps
    found: np.ndarray = np.sqrt(error_scale**2 + unknown_level * np.maximum(more, 0.0))
    return found
