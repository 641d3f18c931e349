"""From documented baselines (mean, spread) and rhythm to the parameters of the physics.

Solved by quadrature, not fitted by simulation: the mean over a regular week and the deviation around the rhythm,
between servers and in time together, come out as documented. Rates (disk, network, latency) are a level times demand
times a skewed noise factor with a burst tail and a soft upper limit; percentages live on the scale of log odds, where
an uplift of demand by x multiplies the odds by 1 + x and nothing ever needs clipping.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fleet_forecast.simulation.demand import BUSINESS_DAY, WEEKEND_DAY, demand_table
from server_profiles import PROFILES, ServerProfile

Floats = npt.NDArray[np.float64]

METRIC_COUNT = 6
CPU, MEM = 0, 1
# Share of the variance that is between the servers of a profile; the rest is in time. Memory is what a server holds: it
# differs from server to server and moves little.
BETWEEN_SERVERS = (0.2, 0.35, 0.2, 0.2, 0.2, 0.2)
MEMORY_RESPONSE = 0.25  # memory follows the logarithm of demand this weakly ...
MEMORY_LAG_MINUTES = 180  # ... and this slowly
SOFT_LIMIT = 25.0  # a rate approaches this multiple of its typical value and never passes it
BURST_FROM, BURST_STRENGTH = 1.0, 0.3  # above one deviation the noise of rates grows faster: bursts
NERVOUSNESS_SPREAD = 0.12  # of fleet.Habits.nervousness, logarithmic

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(61)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_STRENGTHS = np.linspace(0.4, 2.2, 37)  # of rhythm, beyond what any server has


@dataclass(frozen=True)
class Calibration:
    """Parameters of one profile; arrays [metric].

    centre: log odds for percentages, logarithm of the level for rates.
    between, within: deviation between servers and in time, on the same scales.
    rhythm_strengths, rhythm_means: mean over the week of demand ** strength, to be interpolated.
    """

    centre: Floats
    between: Floats
    within: Floats
    rhythm_strengths: Floats
    rhythm_means: Floats


def burst(noise: Floats) -> Floats:
    """Noise of a rate with its upper tail stretched; reference of what physics.py computes in float32."""
    return noise + BURST_STRENGTH * np.maximum(noise - BURST_FROM, 0.0) ** 2


def soft_limit(factor: Floats) -> Floats:
    """A factor around 1, bent so that it never reaches SOFT_LIMIT."""
    return factor / (1.0 + factor / SOFT_LIMIT)


def noise_mean(within: Floats) -> Floats:
    """Mean of the noise factor of rates for deviations `within` of any shape."""
    factors = soft_limit(np.exp(np.asarray(within)[..., None] * burst(_NODES)))
    mean: Floats = factors @ _WEIGHTS
    return mean


@functools.lru_cache(maxsize=len(ServerProfile))
def calibrate(profile: ServerProfile) -> Calibration:
    """Parameters that give the documented means and spreads over a regular week."""
    demand, weight = _week(profile)
    memory_drive, memory_weight = _memory_week(profile)
    baselines = list(PROFILES[profile].baselines.values())
    centre, between, within = np.empty(METRIC_COUNT), np.empty(METRIC_COUNT), np.empty(METRIC_COUNT)
    for metric, (baseline, share) in enumerate(zip(baselines, BETWEEN_SERVERS, strict=True)):
        if metric in (CPU, MEM):
            # Demand moves over ten minutes: every fifth minute says it all.
            cpu = np.log(demand[::5]), weight[::5] / weight[::5].sum()
            drive, weights = cpu if metric == CPU else (memory_drive, memory_weight)
            centre[metric], total = _solve_percentage(baseline.mean / 100, baseline.spread / 100, drive, weights)
            between[metric], within[metric] = total * share**0.5, total * (1 - share) ** 0.5
        else:
            shape = demand / (demand @ weight)
            relative = baseline.spread / (baseline.mean * (shape**2 @ weight) ** 0.5)
            between_cv2 = share * relative**2
            between[metric] = np.log1p(between_cv2) ** 0.5
            within[metric] = _solve_rate(float((1 + relative**2) / (1 + between_cv2) - 1))
            centre[metric] = np.log(baseline.mean) - between[metric] ** 2 / 2
    means = (demand[None, :] ** _STRENGTHS[:, None]) @ weight
    return Calibration(centre, between, within, _STRENGTHS, means)


def _week(profile: ServerProfile) -> tuple[Floats, Floats]:
    """Demand of a regular week, each distinct minute once, and the share of the week it stands for."""
    table = demand_table(profile).astype(np.float64)
    demand = np.concatenate([table[BUSINESS_DAY], table[WEEKEND_DAY]])
    weight = np.repeat([5.0, 2.0], table.shape[1])
    return demand, weight / weight.sum()


def _memory_week(profile: ServerProfile) -> tuple[Floats, Floats]:
    """What drives memory over a regular week, by the quarter of an hour."""
    table = np.log(demand_table(profile).astype(np.float64))
    week = np.concatenate([table[[BUSINESS_DAY] * 5 + [WEEKEND_DAY] * 2].ravel()] * 2)
    drive = MEMORY_RESPONSE * smoothed(week)[week.size // 2 :: 60]
    return drive, np.full(drive.size, 1 / drive.size)


def smoothed(per_minute: Floats) -> Floats:
    """Exponential average of a curve by minute with MEMORY_LAG_MINUTES, starting at the curve's first value."""
    keep = math.exp(-1 / MEMORY_LAG_MINUTES)
    fresh = ((1 - keep) * per_minute).tolist()
    fresh[0] = float(per_minute[0])
    return np.array(list(itertools.accumulate(fresh, lambda average, part: keep * average + part)))


def _solve_percentage(mean: float, spread: float, drive: Floats, weight: Floats) -> tuple[float, float]:
    """Centre and total deviation of log odds that give a share its mean and its spread around the rhythm."""
    centre, deviation = np.log(mean / (1 - mean)), spread / (mean * (1 - mean))
    for _ in range(30):
        share = 1 / (1 + np.exp(-(centre + drive[:, None] + deviation * _NODES)))  # [minute, node]
        by_minute = share @ _WEIGHTS
        got_mean = by_minute @ weight
        got_spread = (((share - by_minute[:, None]) ** 2 @ _WEIGHTS) @ weight) ** 0.5
        centre += (mean - got_mean) / (mean * (1 - mean))
        deviation *= spread / got_spread
    return float(centre), float(deviation)


def _solve_rate(squared_cv: float) -> float:
    """Deviation of the noise of a rate whose factor has this squared coefficient of variation, over all servers."""
    nervous_nodes, nervous_weights = np.polynomial.hermite_e.hermegauss(7)
    scales = np.exp(NERVOUSNESS_SPREAD * nervous_nodes)
    low, high = 1e-3, 2.0
    for _ in range(50):
        middle = (low + high) / 2
        factors = soft_limit(np.exp((middle * scales)[:, None] * burst(_NODES)))
        means = factors @ _WEIGHTS
        got = ((factors**2 @ _WEIGHTS) / means**2 - 1) @ (nervous_weights / nervous_weights.sum())
        low, high = (middle, high) if got < squared_cv else (low, middle)
    return low
