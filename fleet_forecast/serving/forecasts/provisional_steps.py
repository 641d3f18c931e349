"""Provisional steps: samples of new servers in the steps that are not complete yet.

A new server has less than NEW_SERVER_SECONDS of history. Its running step enters its forecast with the mean of the
samples so far and is replaced when the step is complete. A check reads at most a chunk of servers, those that were read
longest ago first, so that a fleet of new servers delays no cycle.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fleet_forecast.serving.forecasts.history_window import HistoryWindow
from fleet_forecast.serving.storage.samples import KnownServer, RawSample, StepMeans
from fleet_forecast.serving.storage.store import HistoryStore
from fleet_forecast.step_means import step_means

NEW_SERVER_SECONDS = 3_600
NOT_MEASURED = np.iinfo(np.int64).max
NOT_READ = -1


@dataclass
class _Provisional:
    """first_step: step of the first mean; means: float32 [step, metric of the store], empty before the first read."""

    first_step: int
    means: np.ndarray
    read_number: int = NOT_READ

    @property
    def last_step(self) -> int:
        """The last step with a measurement; before first_step without any."""
        measured = np.flatnonzero(~np.isnan(self.means).all(axis=1))
        return self.first_step + int(measured[-1]) if len(measured) else self.first_step - 1


class ProvisionalSteps:
    """First measured step of each server, and the provisional steps of the new ones. Used on the forecast worker."""

    def __init__(self, store: HistoryStore) -> None:
        self.forecasts = 0  # made from a provisional step since the start
        self._store = store
        self._first_steps = np.full(0, NOT_MEASURED)  # by server id
        self._by_server: dict[int, _Provisional] = {}
        self._reads = itertools.count()

    def note(self, means: StepMeans) -> None:
        """Keep the first measured step of each server."""
        ids = means.server_ids[~np.isnan(means.means).all(axis=1)]
        lacking = int(ids.max(initial=-1)) + 1 - len(self._first_steps)
        if lacking > 0:
            added = np.full(max(lacking, len(self._first_steps)), NOT_MEASURED)
            self._first_steps = np.concatenate([self._first_steps, added])
        self._first_steps[ids] = np.minimum(self._first_steps[ids], means.step)

    def forget_steps(self) -> None:
        """Forget the first steps: the history is read again."""
        self._first_steps = np.full(0, NOT_MEASURED)
        self.complete()

    def complete(self) -> None:
        """Forget the provisional steps: they are complete now, or another model forecasts."""
        self._by_server.clear()

    def choose(self, step_seconds: int, complete_step: int, most: int) -> list[KnownServer]:
        """New servers with a measurement after the last complete step, at most some of them."""
        newest_first_step = complete_step + 1 - NEW_SERVER_SECONDS // step_seconds
        known = list(self._store.servers.values())  # a copy: other threads add servers meanwhile
        new = [
            server
            for server in known
            if (self._store.last_step(server.server_id) or 0) > complete_step
            and self._first_step(server.server_id) > newest_first_step
        ]
        return sorted(new, key=lambda server: self._read_number(server.server_id))[:most]

    def put(self, server_id: int, samples: Sequence[RawSample], steps: range) -> int | None:
        """Take the samples of some steps; returns the last measured step, None if nothing changed."""
        read_number = next(self._reads)
        columns = np.array([sample.timestamp_ms // 1000 // self._store.step_seconds for sample in samples]) - steps[0]
        values = np.array([sample.values for sample in samples], dtype=np.float64)  # None becomes NaN
        means = step_means(columns.astype(np.int64), values.reshape(len(samples), -1), len(steps))
        before = self._by_server.get(server_id)
        now = self._by_server[server_id] = _Provisional(steps[0], means, read_number)
        same = before is not None and np.array_equal(before.means, means, equal_nan=True)
        return None if same or now.last_step < steps[0] else now.last_step

    def holds(self, server_id: int) -> bool:
        """Whether the server has a provisional step."""
        found = self._by_server.get(server_id)
        return found is not None and found.last_step >= found.first_step

    def history(self, window: HistoryWindow, server_ids: Sequence[int], last_steps: np.ndarray) -> np.ndarray:
        """As HistoryWindow.history, with the provisional means of histories that end after the complete steps."""
        history = window.history(server_ids, last_steps)
        for row in np.flatnonzero(last_steps > window.buffer.newest_step).tolist():
            found = self._by_server.get(server_ids[row])
            steps = 0 if found is None else int(last_steps[row]) + 1 - found.first_step
            if found is not None and steps > 0:
                history[row, -steps:] = found.means[:steps, window.columns]
        return history

    def _first_step(self, server_id: int) -> int:
        return int(self._first_steps[server_id]) if server_id < len(self._first_steps) else NOT_MEASURED

    def _read_number(self, server_id: int) -> int:
        found = self._by_server.get(server_id)
        return NOT_READ if found is None else found.read_number
