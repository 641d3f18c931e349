"""The baseline peers_by_hand: a forecast from the peers' values at the same time yesterday, without a network.

The median of the peers at the same time on the previous day, times the ratio of their last hour to the same hour of
that day (decaying over DECAY_HOURS), times the server's own ratio to them in the last hour if it was measured. The
spread around it is that of the profile's training servers: quantiles of log ratios of actual to forecast.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fleet_forecast.evaluation.backtest import BacktestPlan
from fleet_forecast.evaluation.baselines import TrainingQuantiles
from fleet_forecast.features.history import past_values
from fleet_forecast.features.peers import FleetPeers, medians_without_one, peer_levels

PEERS_BY_HAND = "peers_by_hand"
COMPARED_HOURS = 1
DECAY_HOURS = 4.0
SMALLEST_SHARE = 0.01  # of a metric's typical level, added to both sides of a ratio: values may be 0
MAX_TRAINING_WINDOWS = 4_096
CHUNK_WINDOWS = 256

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class PeersByHand:
    """The fitted baseline.

    offset: float32 [metric], physical units, added before ratios. ratios: by profile and whether the server was
    measured in the last hour, quantiles of log ratios, float32 [metric, quantile]. by_profile: used without peers.
    """

    offset: np.ndarray
    ratios: dict[tuple[str | None, bool], np.ndarray]
    by_profile: TrainingQuantiles

    @classmethod
    def fit(cls, plan: BacktestPlan, by_profile: TrainingQuantiles) -> PeersByHand:
        """Fit on the windows of a plan with peers, of training servers in the training period."""
        measured = plan.grid.values[plan.rows, :: plan.day_steps // 24 or 1]
        typical = [
            np.median(column[column > 0]) if (column > 0).any() else 1.0 for column in np.moveaxis(measured, 2, 0)
        ]
        offset = (SMALLEST_SHARE * np.array(typical)).astype(np.float32)
        fitted = cls(offset, {}, by_profile)
        rows, origins, actual = plan.windows()
        if len(rows) > MAX_TRAINING_WINDOWS:
            chosen = np.random.default_rng(0).choice(len(rows), MAX_TRAINING_WINDOWS, replace=False)
            rows, origins, actual = rows[chosen], origins[chosen], actual[chosen]
        profiles = np.array([plan.grid.profiles[row] or "" for row in rows])
        for history_steps in (0, _compared_steps(plan)):
            medians, has_history = fitted._medians(plan, (rows, origins), history_steps)
            log_ratios = np.log((actual + offset) / (medians + offset))
            for profile in np.unique(profiles):
                own = log_ratios[(profiles == profile) & (has_history if history_steps else True)]
                fitted.ratios[str(profile) or None, history_steps > 0] = _quantiles(own, plan.quantiles)
        return fitted

    def forecasts(self, plan: BacktestPlan, history_steps: int) -> np.ndarray:
        """Of all windows of a plan with peers: float32 [window, horizon, metric, quantile]."""
        rows, origins, _ = plan.windows()
        shape = (len(rows), plan.horizon_steps, len(plan.grid.metrics), len(plan.quantiles))
        made = np.empty(shape, dtype=np.float32)
        for chunk in np.array_split(np.arange(len(rows)), max(1, len(rows) // CHUNK_WINDOWS)):
            medians, has_history = self._medians(plan, (rows[chunk], origins[chunk]), history_steps)
            for place, window in enumerate(chunk):
                profile = plan.grid.profiles[rows[window]]
                ratios = self.ratios.get((profile, bool(has_history[place])))
                static = self.by_profile.get(profile, self.by_profile[None])
                made[window] = self._around(medians[place], ratios, static)
        return made

    def _around(self, medians: np.ndarray, ratios: np.ndarray | None, static: np.ndarray) -> np.ndarray:
        """Quantiles around the medians [horizon, metric] of one window, the static ones where there are no peers."""
        if ratios is None:
            return np.broadcast_to(static, (*medians.shape, static.shape[-1]))
        base = (medians + self.offset)[..., None]
        around = np.maximum(base * np.exp(ratios) - self.offset[:, None], 0.0)
        return np.where(np.isnan(around), static, around)

    def _medians(self, plan: BacktestPlan, windows: Pair, history_steps: int) -> Pair:
        """Medians [window, horizon, metric], NaN without peers, and whether a window has own history [window]."""
        if plan.peers is None:
            raise ValueError("plan: has no peers")
        rows, origins = windows
        grid, hour, day = plan.grid, _compared_steps(plan), plan.day_steps
        lag = day * -(-plan.horizon_steps // day)
        own = past_values(grid.values, rows, origins, lag + hour)
        table = plan.peers.table
        medians = medians_without_one(table.statistics)
        peers = FleetPeers(table.first_step, medians, table.rows_of(grid.profiles), plan.peers.members)
        level = peer_levels(peers, rows, grid.first_step + origins, own)
        steps = level.shape[1]
        yesterday = level[:, steps - lag : steps - lag + plan.horizon_steps]
        yesterday = np.where(np.isnan(yesterday), _mean(yesterday)[:, None], yesterday)
        now, then = _mean(level[:, -hour:]), _mean(level[:, steps - hour - day : steps - day])
        change = np.nan_to_num(np.log((now + self.offset) / (then + self.offset)))
        hours = np.arange(1, plan.horizon_steps + 1) * grid.step_seconds / 3600
        decay = np.exp(-hours / DECAY_HOURS)[:, None]
        known = own[:, own.shape[1] - min(hour, history_steps) :]
        offset = np.log((_mean(known) + self.offset) / (now + self.offset))
        exponent = change[:, None] * decay + np.nan_to_num(offset)[:, None]
        return (yesterday + self.offset) * np.exp(exponent) - self.offset, ~np.isnan(offset).all(axis=1)


def fit_peers_by_hand(
    plan: BacktestPlan, training_rows: np.ndarray, last_step: int, by_profile: TrainingQuantiles
) -> PeersByHand:
    """Fit on the training servers before `last_step`, at an origin every 8 hours from the second day on."""
    every = max(1, 8 * 3600 // plan.grid.step_seconds)
    origins = np.arange(plan.day_steps, max(plan.day_steps + 1, last_step - plan.horizon_steps), every)
    return PeersByHand.fit(replace(plan, rows=training_rows, origins=origins), by_profile)


def _compared_steps(plan: BacktestPlan) -> int:
    return max(1, COMPARED_HOURS * 3600 // plan.grid.step_seconds)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over axis 1, NaN without a value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=1))


def _quantiles(log_ratios: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Over windows and steps: float32 [metric, quantile], NaN without a value."""
    flat = log_ratios.reshape(-1, log_ratios.shape[-1])
    if not len(flat):  # a profile without windows; NumPy would lose the axis of levels
        return np.full((flat.shape[1], len(levels)), np.nan, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanquantile(flat, levels, axis=0).T.astype(np.float32)
