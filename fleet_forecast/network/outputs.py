"""What the network returns beside its forecast."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class NetworkWeights(NamedTuple):
    """What the network gives beside a batch's forecast; E is the encoder length, H the horizon.

    quantiles: float32 [window, H, metric, quantile], physical units. static_weights: float32 [window, variable];
    encoder_weights: [window, E, variable]; decoder_weights: [window, H, variable]; attention: [window, H, E + H], mean
    over the heads. The last axis of each of the four sums to 1.
    """

    quantiles: np.ndarray
    static_weights: np.ndarray
    encoder_weights: np.ndarray
    decoder_weights: np.ndarray
    attention: np.ndarray
