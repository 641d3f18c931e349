"""The network's forecast and its variable and attention weights."""

from __future__ import annotations

from typing import Generic, NamedTuple

import numpy as np

from fleet_forecast.features.window_batch import Array


class NetworkOutput(NamedTuple, Generic[Array]):
    """Forecast and weights of a batch, in NumPy (`NetworkWeights`) or torch; E is the encoder length, H the horizon.

    quantiles: float32 [window, H, metric, quantile], physical units. static_weights: float32 [window, variable];
    encoder_weights: [window, E, variable]; decoder_weights: [window, H, variable]; attention: [window, H, E + H], mean
    over the heads. The last axis of each of the four sums to 1.
    """

    quantiles: Array
    static_weights: Array
    encoder_weights: Array
    decoder_weights: Array
    attention: Array


NetworkWeights = NetworkOutput[np.ndarray]
