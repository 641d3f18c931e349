"""A small grid that the evaluation tests share."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_forecast.features.grid import FleetGrid

DAY = 24  # steps of an hour


@pytest.fixture
def grid() -> FleetGrid:
    """Three servers, two metrics, 20 days of hourly steps; server 0 has a gap at steps 300 to 319."""
    random = np.random.default_rng(0)
    values = random.uniform(1, 100, (3, 20 * DAY, 2)).astype(np.float32)
    values[0, 300:320] = np.nan
    return FleetGrid(
        ("a1", "b1", "c1"), ("database", "web_api", None), ("cpu_pct", "mem_pct"), np.datetime64("2026-03-02", "s"),
        3600, values,
    )  # fmt: skip
