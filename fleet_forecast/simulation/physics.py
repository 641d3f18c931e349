"""Metrics of healthy servers from their rhythm and noise.

A metric mixes the server's load with noise of its own, so the metrics of a server are correlated. Rates (disk, network,
latency) are a level times demand times a noise factor with bursts and a soft upper limit. Percentages are simulated as
log odds, so they never need clipping. calibration.py has the formulas in float64 and the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fleet_forecast.simulation.calibration import (
    BURST_FROM,
    BURST_STRENGTH,
    SOFT_LIMIT,
    Calibration,
    calibrate,
    noise_mean,
)
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.metric_model import (
    profile_order,
    simulated,
)
from fleet_forecast.simulation.rhythm import DAY_MINUTES, Calendar, tables

Float32 = npt.NDArray[np.float32]

SLOW_SHARE = 0.6  # of the variance of load
NET_CORRELATION = np.float32(0.6)  # of sent with received traffic, beyond load

_DECIMALS = np.float32(100)  # metrics are rounded to hundredths, as agents report them


class Parameters(NamedTuple):
    """Parameters of a group of servers; [server, 1] unless another shape is given."""

    loc: Float32  # [metric, server, 1] level of the server; for rates divided by the mean of the noise factor
    within: Float32  # [metric, server, 1] deviation in time
    rhythm: Float32
    phase: npt.NDArray[np.int64]  # [server] minutes
    backup_start: npt.NDArray[np.int64]  # [server] minute of the day
    backup_minutes: npt.NDArray[np.int64]  # [server]
    backup_gain: Float32
    profile_codes: npt.NDArray[np.int64]


def parameters_of(fleet: Fleet, servers: npt.NDArray[np.int64]) -> Parameters:
    """Parameters of some servers from their traits and the calibration of their profiles."""
    traits, codes = fleet.traits, fleet.profile_codes[servers]
    metrics, order = simulated(), profile_order()
    loc, within = np.empty((2, len(metrics), len(servers)))
    calibrations = {code: calibrate(order[code]) for code in np.unique(codes)}
    noise_scale = traits.noise_scale[servers].astype(np.float64)
    for metric, kind in enumerate(metrics.kinds):
        loc[metric] = [calibrations[code].loc[metric] for code in codes]
        loc[metric] += np.array([calibrations[code].between[metric] for code in codes]) * traits.level[servers, metric]
        within[metric] = np.array([calibrations[code].within[metric] for code in codes]) * noise_scale
        if kind == "value":
            loc[metric] /= _rhythm_means(calibrations, codes, traits.rhythm_strength[servers])
        elif kind == "rate":
            # Traits and noise do not change the mean of a rate.
            loc[metric] -= np.log(noise_mean(within[metric]))
            loc[metric] -= np.log(_rhythm_means(calibrations, codes, traits.rhythm_strength[servers]))
    backup_share = traits.backup_minutes[servers] / DAY_MINUTES
    loc[metrics.positions["disk_io_mb_s"]] -= np.log1p(traits.backup_strength[servers] * backup_share)

    def column(values: npt.NDArray[np.generic]) -> Float32:
        return values[..., None].astype(np.float32)

    return Parameters(
        column(loc),
        column(within),
        column(traits.rhythm_strength[servers]),
        traits.phase_minutes[servers],
        traits.backup_start_minute[servers],
        traits.backup_minutes[servers],
        column(np.log1p(traits.backup_strength[servers])),
        codes[:, None].astype(np.int64),
    )


def _rhythm_means(
    calibrations: Mapping[np.int16, Calibration], codes: npt.NDArray[np.int16], strengths: Float32
) -> npt.NDArray[np.float64]:
    means = np.ones(len(codes))
    for code, calibration in calibrations.items():
        chosen = codes == code
        means[chosen] = np.interp(strengths[chosen], calibration.rhythm_strengths, calibration.rhythm_means)
    return means


class Curves(NamedTuple):
    """Rhythm of each server over time, [server, step]."""

    log_demand: Float32
    memory: Float32
    backup: Float32
    spike: npt.NDArray[np.bool_]
    maintenance: npt.NDArray[np.bool_]


def rhythm_curves(minute: npt.NDArray[np.int64], calendar: Calendar, parameters: Parameters) -> Curves:
    """Rhythm at each server's own clock; minute: [step] since the calendar's first minute."""
    table, code = tables(), parameters.profile_codes
    # Several steps within a minute have the same values: these are computed once a minute.
    per_minute = np.arange(minute[0], minute[-1] + 1) if minute[-1] - minute[0] + 1 < minute.size else minute
    case = calendar.case[per_minute + parameters.phase[:, None]].astype(np.int64)  # [server, minute]
    since_backup = (case - parameters.backup_start[:, None]) % DAY_MINUTES
    # Maintenance windows follow the clock, without the server's phase.
    clock = calendar.day_of_week[per_minute].astype(np.int64) * DAY_MINUTES + calendar.case[per_minute] % DAY_MINUTES
    curves = Curves(
        table.log_demand[code, case] * parameters.rhythm,
        table.memory_drive[code, case],
        np.where(since_backup < parameters.backup_minutes[:, None], parameters.backup_gain, np.float32(0)),
        table.spike[code, case],
        table.maintenance[code, clock],
    )
    if per_minute is minute:
        return curves
    return Curves._make(np.take(curve, minute - minute[0], axis=1) for curve in curves)


def healthy_metrics(noise: Float32, curves: Curves, parameters: Parameters) -> Float32:
    """[metric, server, step] without incidents; overwrites `noise` [source, server, step]."""
    slow, fast, own = noise[0], noise[1], noise[2:]
    load = np.float32(SLOW_SHARE**0.5) * slow + np.float32((1 - SLOW_SHARE) ** 0.5) * fast
    simulated_metrics, at = simulated(), simulated().positions
    metrics = np.empty((len(simulated_metrics), *load.shape), dtype=np.float32)
    disk, net_in, net_out = (at[name] for name in ("disk_io_mb_s", "net_in_mb_s", "net_out_mb_s"))
    own[net_out] *= np.sqrt(1 - NET_CORRELATION**2)
    own[net_out] += NET_CORRELATION * own[net_in]
    for metric, kind in enumerate(simulated_metrics.kinds):
        value: Float32 = metrics[metric]
        weight = np.float32(simulated_metrics.models[metric].load_weight)
        np.multiply(load, weight, out=value)
        own[metric] *= np.sqrt(1 - weight**2)
        value += own[metric]
        if kind == "value":
            value *= parameters.within[metric]
            value += parameters.loc[metric] * np.exp(curves.log_demand)
        elif kind == "percent":
            value *= parameters.within[metric]
            value += curves.memory if metric == simulated_metrics.memory else curves.log_demand
            value += parameters.loc[metric]
            _percentage(value)
        else:
            _stretch_bursts(value, scratch=own[metric])
            value *= parameters.within[metric]
            _soft_factor(value, scratch=own[metric])
            np.add(curves.log_demand, parameters.loc[metric], out=own[metric])
            if metric == disk:
                own[metric] += curves.backup
            np.exp(own[metric], out=own[metric])
            value *= own[metric]
    return metrics


def round_metrics(metrics: Float32) -> None:
    """Round to hundredths in place."""
    np.multiply(metrics, _DECIMALS, out=metrics)
    np.rint(metrics, out=metrics)
    np.divide(metrics, _DECIMALS, out=metrics)


def _stretch_bursts(noise: Float32, scratch: Float32) -> None:
    """calibration.burst in place."""
    np.subtract(noise, np.float32(BURST_FROM), out=scratch)
    np.maximum(scratch, np.float32(0), out=scratch)
    np.multiply(scratch, scratch, out=scratch)
    scratch *= np.float32(BURST_STRENGTH)
    noise += scratch


def _soft_factor(value: Float32, scratch: Float32) -> None:
    """calibration.soft_limit of exp(x) in place."""
    np.exp(value, out=value)
    np.multiply(value, np.float32(1 / SOFT_LIMIT), out=scratch)
    scratch += np.float32(1)
    value /= scratch


def _percentage(log_odds: Float32) -> None:
    """100 / (1 + exp(-x)) in place."""
    np.negative(log_odds, out=log_odds)
    np.exp(log_odds, out=log_odds)
    log_odds += np.float32(1)
    np.divide(np.float32(100), log_odds, out=log_odds)
