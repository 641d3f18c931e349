"""Fits the statistics of departures (risk/departures.py) on the test period of the fleet, which no model saw.

At times spread over the period, every chosen server is forecast from three origins in a row, an hour before the last
quarter of an hour. Servers in a labelled incident are left out; unlabelled ones are taken for healthy, which makes
departures a little less sensitive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.peers import Peers
from fleet_forecast.inference.batch import Origin, engine_inputs
from fleet_forecast.inference.engine import Engine
from fleet_forecast.intervals.incidents_file import IncidentRecord
from fleet_forecast.risk.departures import (
    HIGH_LEVEL,
    INFLATION,
    LEAD_SECONDS,
    WINDOW_SECONDS,
    DepartureStatistics,
    average_scores,
    normal_scores,
    shared_score,
    t2_contributions,
    t_statistic,
)

MOST_SERVERS = 120
SAMPLES = 2_000  # averages of one server at one time; the cost is three forecasts each
FEWEST_SAMPLES = 200
FEWEST_PAIRS = 50  # samples of two metrics for a covariance of them; with fewer it is 0
LEAST_EIGENVALUE = 0.05  # of the mean variance: pairwise covariances need not be positive definite
FORECASTS_AT_ONCE = 360
TIMES_APART_SECONDS = 3_600


class TestPeriod(NamedTuple):
    """The fleet and the steps that are sampled. peers: of all servers of the grid."""

    grid: FleetGrid
    peers: Peers
    steps: range
    incidents: Sequence[IncidentRecord]


def fit_departures(engine: Engine, period: TestPeriod) -> DepartureStatistics | None:
    """The statistics of a fleet; None with fewer than FEWEST_SAMPLES, or if an hour is beyond the horizon."""
    lead = max(1, LEAD_SECONDS // engine.config.step_seconds)
    if engine.config.horizon_steps < lead:
        return None
    rows = _chosen_servers(period.grid)
    parts = [_averages_at(engine, period, rows, step, lead) for step in _chosen_steps(engine, period, rows, lead)]
    return statistics_of(period.grid.metrics, np.concatenate(parts)) if parts else None


def statistics_of(metrics: Sequence[str], averages: np.ndarray) -> DepartureStatistics | None:
    """Of average scores [sample, metric], NaN where unknown. A metric with too few samples has no covariance."""
    counts = np.sum(~np.isnan(averages), axis=0)
    kept = np.flatnonzero(counts >= FEWEST_SAMPLES)
    if not len(kept):
        return None
    own = averages[:, kept]
    covariance = _pairwise_covariance(own)
    covariance += INFLATION * np.diag(np.diag(covariance))
    known = own[~np.isnan(own).all(axis=1)]
    t = t_statistic(t2_contributions(known, covariance))
    high = float(np.quantile(t, HIGH_LEVEL))
    return DepartureStatistics(
        metrics=tuple(metrics[place] for place in kept.tolist()),
        covariance=tuple(tuple(round(float(value), 4) for value in row) for row in covariance),
        high_t=round(high, 4),
        tail=round(float((t[t > high] - high).mean()), 4),
    )


def _pairwise_covariance(samples: np.ndarray) -> np.ndarray:
    """Around zero, from the samples in which both metrics are known; positive definite."""
    known = ~np.isnan(samples)
    values = np.where(known, samples, 0.0)
    pairs = known.T.astype(np.float64) @ known
    covariance = np.where(pairs >= FEWEST_PAIRS, values.T @ values / np.maximum(pairs, 1), 0.0)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    smallest = LEAST_EIGENVALUE * float(np.diag(covariance).mean()) + 1e-6
    return np.asarray((vectors * np.maximum(eigenvalues, smallest)) @ vectors.T)


def _chosen_servers(grid: FleetGrid) -> np.ndarray:
    """Rows of at most MOST_SERVERS servers, of all profiles in proportion."""
    by_profile = sorted(range(len(grid.servers)), key=lambda row: (grid.profiles[row] or "", row))
    places = np.linspace(0, len(by_profile) - 1, min(MOST_SERVERS, len(by_profile)))
    return np.array(by_profile)[np.unique(places.round().astype(int))]


def _chosen_steps(engine: Engine, period: TestPeriod, rows: np.ndarray, lead: int) -> list[int]:
    """The last steps of the sampled quarters of an hour: evenly spread, not more often than every hour."""
    step_seconds = engine.config.step_seconds
    window = max(1, WINDOW_SECONDS // step_seconds)
    first, last = period.steps.start + lead + window - 1, period.steps.stop - 1
    most = (last - first) * step_seconds // TIMES_APART_SECONDS + 1
    wanted = min(-(-SAMPLES // len(rows)), most)
    return [] if wanted < 1 else np.unique(np.linspace(first, last, wanted).astype(int)).tolist()


def _averages_at(engine: Engine, period: TestPeriod, rows: np.ndarray, step: int, lead: int) -> np.ndarray:
    """Average scores of servers at one step, less what their profile shares: [server, metric]."""
    grid = period.grid
    window = max(1, WINDOW_SECONDS // grid.step_seconds)
    steps = np.arange(step - window + 1, step + 1)
    origins = [Origin(int(row), int(each) - lead) for row in rows for each in steps]
    ahead = []
    for start in range(0, len(origins), FORECASTS_AT_ONCE):
        inputs = engine_inputs(engine, grid, period.peers, origins[start : start + FORECASTS_AT_ONCE])
        ahead.append(engine.forecast(*inputs)[:, lead - 1])
    past = np.concatenate(ahead).reshape(len(rows), window, len(grid.metrics), -1)
    measured = grid.values[np.ix_(rows, steps)].astype(np.float64)
    averages = average_scores(normal_scores(measured, past, engine.config.quantiles))
    profiles = np.array([grid.profiles[row] or "" for row in rows])
    for profile in set(profiles):
        averages[profiles == profile] -= shared_score(averages[profiles == profile])
    averages[_in_incident(period, rows, step, lead)] = np.nan
    return averages


def _in_incident(period: TestPeriod, rows: np.ndarray, step: int, lead: int) -> np.ndarray:
    """Whether a labelled incident covers the server between the first origin and the step: boolean [server]."""
    grid = period.grid
    end = float(grid.timestamps()[step].astype("datetime64[s]").astype(np.int64)) + grid.step_seconds
    begin = end - (lead * grid.step_seconds + WINDOW_SECONDS)
    ill = {each.server_name for each in period.incidents if each.start_seconds < end and each.end_seconds > begin}
    return np.array([grid.servers[row] in ill for row in rows])
