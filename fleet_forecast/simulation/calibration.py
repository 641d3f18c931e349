"""Parameters of the simulation from a profile's baselines (mean, spread) and rhythm.

The parameters are solved by Gauss-Hermite quadrature. The simulated mean over a regular week and the deviation around
the rhythm, between servers and in time together, then equal the baselines. Rates (disk, network, latency) are a level
times demand times a skewed noise factor with bursts and a soft upper limit. Values are a level
times demand plus Gaussian noise. Percentages are log odds: demand that is
higher by x multiplies the odds by 1 + x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fleet_forecast.contract.calendar import BUSINESS_DAY, WEEKEND_DAY
from fleet_forecast.contract.definitions import PROFILES, per_fleet
from fleet_forecast.simulation.metric_model import (
    simulated,
)
from fleet_forecast.simulation.rhythm import MEMORY_RESPONSE, Floats, demand_table, smoothed

SOFT_LIMIT = 25.0  # a rate approaches this multiple of its typical value and never exceeds it
BURST_FROM, BURST_STRENGTH = 1.0, 0.3  # above one deviation the noise of rates grows faster: bursts
NOISE_SCALE_SPREAD = 0.12  # of fleet.ServerTraits.noise_scale, logarithmic

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(61)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_STRENGTHS = np.linspace(0.4, 2.2, 37)  # of rhythm, beyond what any server has


@dataclass(frozen=True)
class Calibration:
    """Parameters of one profile; arrays [metric].

    loc: log odds for percentages, logarithm of the level for rates, the mean of values. NaN: no baseline.
    between, within: deviation between servers and in time, on the same scales.
    rhythm_strengths, rhythm_means: mean over the week of demand ** strength, to be interpolated.
    """

    loc: Floats
    between: Floats
    within: Floats
    rhythm_strengths: Floats
    rhythm_means: Floats


def burst(noise: Floats) -> Floats:
    """Noise of a rate with its upper tail stretched; physics.py computes it in float32."""
    return noise + BURST_STRENGTH * np.maximum(noise - BURST_FROM, 0.0) ** 2


def soft_limit(factor: Floats) -> Floats:
    """A factor around 1 that approaches SOFT_LIMIT."""
    return factor / (1.0 + factor / SOFT_LIMIT)


def noise_mean(within: Floats) -> Floats:
    """Mean of the noise factor of rates for deviations `within` of any shape."""
    factors = soft_limit(np.exp(np.asarray(within)[..., None] * burst(_NODES)))
    mean: Floats = factors @ _WEIGHTS
    return mean


@per_fleet
def calibrate(profile: str) -> Calibration:
    """Parameters that give the documented means and spreads over a regular week."""
    demand, weight = _week(profile)
    memory_drive, memory_weight = _memory_week(profile)
    metrics, baselines = simulated(), PROFILES[profile].baselines
    loc, between, within = np.full((3, len(metrics)), np.nan)
    for metric, name in enumerate(metrics.names):
        if name not in baselines:
            continue
        baseline, share = baselines[name], metrics.models[metric].between_share
        if metrics.kinds[metric] == "value":
            loc[metric] = baseline.mean
            between[metric], within[metric] = baseline.spread * share**0.5, baseline.spread * (1 - share) ** 0.5
        elif metrics.kinds[metric] == "percent":
            # Demand changes over ten minutes, so every fifth minute is enough.
            direct = np.log(demand[::5]), weight[::5] / weight[::5].sum()
            drive, weights = (memory_drive, memory_weight) if metric == metrics.memory else direct
            loc[metric], total = _solve_percentage(baseline.mean / 100, baseline.spread / 100, drive, weights)
            between[metric], within[metric] = total * share**0.5, total * (1 - share) ** 0.5
        else:
            shape = demand / (demand @ weight)
            relative = baseline.spread / (baseline.mean * (shape**2 @ weight) ** 0.5)
            between_cv2 = share * relative**2
            between[metric] = np.log1p(between_cv2) ** 0.5
            within[metric] = _solve_rate(float((1 + relative**2) / (1 + between_cv2) - 1))
            loc[metric] = np.log(baseline.mean) - between[metric] ** 2 / 2
    means = (demand[None, :] ** _STRENGTHS[:, None]) @ weight
    return Calibration(loc, between, within, _STRENGTHS, means)


def _week(profile: str) -> tuple[Floats, Floats]:
    """Demand of a regular week, each distinct minute once, and each minute's share of the week."""
    table = demand_table(profile).astype(np.float64)
    demand = np.concatenate([table[BUSINESS_DAY], table[WEEKEND_DAY]])
    weight = np.repeat([5.0, 2.0], table.shape[1])
    return demand, weight / weight.sum()


def _memory_week(profile: str) -> tuple[Floats, Floats]:
    """Smoothed log demand that memory follows over a regular week, every 60 minutes, and weights."""
    table = np.log(demand_table(profile).astype(np.float64))
    week = np.concatenate([table[[BUSINESS_DAY] * 5 + [WEEKEND_DAY] * 2].ravel()] * 2)
    drive = MEMORY_RESPONSE * smoothed(week)[week.size // 2 :: 60]
    return drive, np.full(drive.size, 1 / drive.size)


def _solve_percentage(mean: float, spread: float, drive: Floats, weight: Floats) -> tuple[float, float]:
    """Location and total deviation of log odds with which a share has its mean and its spread around the rhythm."""
    loc, deviation = np.log(mean / (1 - mean)), spread / (mean * (1 - mean))
    for _ in range(30):
        share = 1 / (1 + np.exp(-(loc + drive[:, None] + deviation * _NODES)))  # [minute, node]
        by_minute = share @ _WEIGHTS
        got_mean = by_minute @ weight
        got_spread = (((share - by_minute[:, None]) ** 2 @ _WEIGHTS) @ weight) ** 0.5
        loc += (mean - got_mean) / (mean * (1 - mean))
        deviation *= spread / got_spread
    return float(loc), float(deviation)


def _solve_rate(squared_cv: float) -> float:
    """Deviation of a rate's noise whose factor has this squared coefficient of variation, over all servers."""
    scale_nodes, scale_weights = np.polynomial.hermite_e.hermegauss(7)
    scales = np.exp(NOISE_SCALE_SPREAD * scale_nodes)
    low, high = 1e-3, 2.0
    for _ in range(50):
        middle = (low + high) / 2
        factors = soft_limit(np.exp((middle * scales)[:, None] * burst(_NODES)))
        means = factors @ _WEIGHTS
        got = ((factors**2 @ _WEIGHTS) / means**2 - 1) @ (scale_weights / scale_weights.sum())
        low, high = (middle, high) if got < squared_cv else (low, middle)
    return low
