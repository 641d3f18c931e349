"""Outages: times without telemetry, each followed by a restart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.incidents import MONTH_SECONDS, Period, incident_rate_factors
from fleet_forecast.simulation.randomness import normal, uniform

OUTAGES_PER_MONTH = 0.5
OUTAGE_MEDIAN_MINUTES = 45.0
RESTART_MINUTES = 30.0  # recovery after an outage: caches are cold, responses are slow


class Outages(NamedTuple):
    """Times without telemetry: arrays [outage], seconds after the scenario's start."""

    server: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]

    def where(self, chosen: npt.NDArray[np.bool_]) -> Outages:
        return Outages._make(array[chosen] for array in self)


def schedule_outages(fleet: Fleet, seed: int, rate: float, period: Period) -> Outages:
    """Outages that begin in a period, OUTAGES_PER_MONTH · rate per server and month on average."""
    per_second = OUTAGES_PER_MONTH * rate * incident_rate_factors(fleet) / MONTH_SECONDS
    servers = np.flatnonzero(per_second > 0)
    free = np.full(len(fleet), period.begin)
    rounds: list[Outages] = []
    turn = 0
    while servers.size:
        keys = fleet.keys[servers]
        start = free[servers] - np.log(uniform(seed, keys, 90_000 + turn, 0)) / per_second[servers]
        length = OUTAGE_MEDIAN_MINUTES * np.exp(0.6 * normal(seed, keys, 90_000 + turn, 1))
        finish = start + 60 * np.clip(length, 10, 8 * 60)
        within = start < period.end
        rounds.append(Outages(servers, start, finish).where(within))
        free[servers] = finish + 60 * RESTART_MINUTES
        servers = servers[within]
        turn += 1
    joined = Outages._make(np.concatenate(arrays) for arrays in zip(_NO_OUTAGES, *rounds, strict=True))
    order = np.lexsort((joined.start, joined.server))
    return Outages._make(array[order] for array in joined)


_NO_OUTAGES = Outages(np.empty(0, dtype=np.int64), np.empty(0), np.empty(0))
