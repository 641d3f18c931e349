"""Scores measurements against the forecasts made an hour before, for all servers of one model.

The average scores, less the part that each profile shares, as risk/departures.py defines them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fleet_forecast.risk.departures import LEAD_SECONDS, WINDOW_SECONDS, average_scores, normal_scores, shared_score
from fleet_forecast.serving.forecasts.snapshot import ModelView, ServerForecast

MAX_GAP_SECONDS = 900  # after a longer gap a server starts again: its past forecast did not have the recent values
MAX_PROFILES = 64  # clients choose the names; further profiles count as one
NO_STEP = -1


class PastForecasts:
    """Ring buffers of past forecasts and their scores; a row a server."""

    def __init__(self, model: ModelView) -> None:
        self.model = model
        self._lead = max(1, LEAD_SECONDS // model.step_seconds)
        self._window = max(1, WINDOW_SECONDS // model.step_seconds)
        self._max_gap = max(1, MAX_GAP_SECONDS // model.step_seconds)
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._profile_numbers: dict[str, int] = {}
        shape = (len(model.metrics), len(model.quantiles))
        self._past = np.zeros((0, self._lead, *shape), np.float32)  # [row, target step modulo lead, metric, quantile]
        self._target_steps = np.zeros((0, self._lead), np.int64)
        self._scores = np.zeros((0, self._window, shape[0]), np.float32)  # [row, step modulo window, metric]
        self._scored_steps = np.zeros((0, self._window), np.int64)
        self._averages = np.zeros((0, shape[0]), np.float32)
        self._newest = np.zeros(0, np.int64)  # [row] last origin
        self._profile = np.zeros(0, np.int64)  # [row] number of the profile

    def is_compatible(self, model: ModelView) -> bool:
        """Whether forecasts of a model can be compared with the stored ones."""
        own = self.model
        return (own.metrics, own.quantiles, own.step_seconds) == (model.metrics, model.quantiles, model.step_seconds)

    def update(self, forecasts: Sequence[ServerForecast]) -> tuple[np.ndarray, np.ndarray]:
        """Score the present values of a cycle and store its forecasts, each server's origins in order.

        Returns the average scores less the profile's median [server, metric], NaN where unknown, and the past
        forecasts of the present values [server, metric, quantile], NaN if there are none.
        """
        rows = np.array([self._row(forecast) for forecast in forecasts], dtype=np.int64)
        steps = np.array([f.origin_seconds // self.model.step_seconds for f in forecasts], dtype=np.int64)
        after_gap = rows[steps - self._newest[rows] > self._max_gap]
        self._target_steps[after_gap] = self._scored_steps[after_gap] = NO_STEP
        self._newest[rows] = steps
        known = self._target_steps[rows, steps % self._lead] == steps
        past = np.where(known[:, None, None], self._past[rows, steps % self._lead], np.nan)
        measured = np.array([forecast.current for forecast in forecasts], dtype=np.float64)  # None becomes NaN
        self._average(rows, steps, normal_scores(measured, past, self.model.quantiles))
        self._store(rows, steps, forecasts)
        return self._averages[rows] - self._profile_medians(rows, steps), past

    def keep_only(self, server_names: Iterable[str]) -> None:
        """Discard all other servers."""
        for name in self._row_of.keys() - set(server_names):
            row = self._row_of.pop(name)
            self._target_steps[row] = self._scored_steps[row] = self._newest[row] = NO_STEP
            self._free.append(row)

    def _row(self, forecast: ServerForecast) -> int:
        row = self._row_of.get(forecast.server_name)
        if row is None:
            if not self._free:
                self._grow()
            row = self._row_of[forecast.server_name] = self._free.pop()
        number = min(len(self._profile_numbers), MAX_PROFILES - 1)
        if number < MAX_PROFILES - 1:
            number = self._profile_numbers.setdefault(forecast.profile, number)
        self._profile[row] = self._profile_numbers.get(forecast.profile, number)
        return row

    def _grow(self) -> None:
        """Double the rows."""
        rows = len(self._newest)
        more = max(64, rows)

        def longer(array: np.ndarray, value: float) -> np.ndarray:
            return np.concatenate([array, np.full((more, *array.shape[1:]), value, array.dtype)])

        self._past, self._scores, self._averages = (
            longer(array, np.nan) for array in (self._past, self._scores, self._averages)
        )
        self._target_steps, self._scored_steps, self._newest, self._profile = (
            longer(array, NO_STEP) for array in (self._target_steps, self._scored_steps, self._newest, self._profile)
        )
        self._free = list(range(rows + more - 1, rows - 1, -1))

    def _average(self, rows: np.ndarray, steps: np.ndarray, scores: np.ndarray) -> None:
        """Averages over the window."""
        self._scores[rows, steps % self._window] = scores
        self._scored_steps[rows, steps % self._window] = steps
        within = self._scored_steps[rows] > steps[:, None] - self._window  # (server, position)
        recent = np.where(within[..., None], self._scores[rows], np.nan)  # (server, position, metric)
        self._averages[rows] = average_scores(recent)

    def _store(self, rows: np.ndarray, steps: np.ndarray, forecasts: Sequence[ServerForecast]) -> None:
        """The forecast for one lead ahead replaces the one for the step just scored."""
        long_enough = np.array([f.history_steps > 0 and f.horizon_steps >= self._lead for f in forecasts])
        ahead = np.stack([f.quantiles[:, :, min(self._lead, f.horizon_steps) - 1] for f in forecasts])
        self._past[rows, steps % self._lead] = ahead
        self._target_steps[rows, steps % self._lead] = np.where(long_enough, steps + self._lead, NO_STEP)

    def _profile_medians(self, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """What each server's profile shares at its step: [server, metric]."""
        medians = np.zeros((len(rows), len(self.model.metrics)), np.float32)
        groups = np.stack([self._profile[rows], steps], axis=1)
        for profile, step in np.unique(groups, axis=0):
            of_profile = (self._profile == profile) & (self._newest == step)
            medians[(groups == (profile, step)).all(axis=1)] = shared_score(self._averages[of_profile])
        return medians
