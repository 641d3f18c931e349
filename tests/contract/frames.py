"""Frames that keep the data contract, for tests to break."""

import numpy as np
import pandas as pd


def fleet(servers=("ppml0001", "ppdb001"), steps=4, **columns) -> pd.DataFrame:
    """A small frame that keeps the contract; keyword arguments replace columns."""
    times = pd.date_range("2026-11-23T10:00:00Z", periods=steps, freq="5min")
    frame = pd.DataFrame(
        {
            "timestamp": times.append([times] * (len(servers) - 1)),
            "server_name": np.repeat(servers, steps),
            "cpu_pct": np.linspace(1, 99, steps * len(servers)),
            "latency_ms": 12.5,
        }
    )
    return frame.assign(**columns)
