"""What the peers contribute to forecasts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class PeerSupport(NamedTuple):
    """Of forecasts.

    counts: int64 [server], largest number of peers measured at a step of the context. weights: float32 [server,
    metric], of the peers' level against the server's own, 0 to 1; 0 without peers.
    """

    counts: np.ndarray
    weights: np.ndarray
