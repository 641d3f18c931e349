"""States of simulated servers: codes, and the states that follow from load."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fleet_forecast.contract.specs import STATES

HEALTHY, HEAVY_LOAD, MORNING_SPIKE, CRITICAL, IDLE, MAINTENANCE, RECOVERY, OFFLINE = (
    STATES.index(name)
    for name in (
        "healthy",
        "heavy_load",
        "morning_spike",
        "critical_issue",
        "idle",
        "maintenance",
        "recovery",
        "offline",
    )
)
# Slow load in standard deviations. A state begins at the first limit and ends at the second one (hysteresis).
HEAVY_FROM, HEAVY_UNTIL = 1.75, 1.0
IDLE_FROM, IDLE_UNTIL = -1.7, -1.0


class LoadStates:
    """HEALTHY, HEAVY_LOAD or IDLE of a group of servers, chunk by chunk."""

    def __init__(self, servers: int) -> None:
        self._heavy = np.zeros(servers, dtype=np.bool_)  # at the newest step
        self._idle = np.zeros(servers, dtype=np.bool_)

    def advance(self, slow_load: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
        """States of the next steps from the slow part of load: [server, step]."""
        heavy = _hysteresis(slow_load >= HEAVY_FROM, slow_load < HEAVY_UNTIL, self._heavy)
        idle = _hysteresis(slow_load <= IDLE_FROM, slow_load > IDLE_UNTIL, self._idle)
        self._heavy, self._idle = heavy[:, -1].copy(), idle[:, -1].copy()
        states = np.full(slow_load.shape, HEALTHY, dtype=np.int8)
        states[heavy] = HEAVY_LOAD
        states[idle] = IDLE
        return states


def _hysteresis(
    on: npt.NDArray[np.bool_], off: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """[server, step] a switch that changes where `on` or `off` is true; `before` [server] is its first position."""
    newest = np.where(on | off, np.arange(on.shape[1], dtype=np.int32), np.int32(-1))
    np.maximum.accumulate(newest, axis=1, out=newest)
    switched = np.take_along_axis(on, np.maximum(newest, 0), axis=1)
    return np.where(newest < 0, before[:, None], switched)
