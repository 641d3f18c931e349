"""The newest steps of the fleet in memory, as one model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.fleet_match import served_metrics
from fleet_forecast.serving.storage.ring_buffer import RingBuffer
from fleet_forecast.serving.storage.store import HistoryStore


@dataclass(frozen=True)
class HistoryWindow:
    """A ring buffer of all metrics of the store, and the model that reads it. Used on the forecast worker only.

    columns: positions of the model's metrics among the store's; a slice where they are the same. unserved: positions
    of the model's metrics that the store does not have, or not as the model was trained on them.
    """

    buffer: RingBuffer
    engine: Engine
    metrics: tuple[str, ...]  # of the buffer
    columns: list[int] | slice
    unserved: list[int]

    @classmethod
    def empty(cls, engine: Engine, store: HistoryStore, drop_steps: int) -> HistoryWindow:
        """A window without data. drop_steps: a server is forecast from a whole history until it is dropped."""
        buffer = RingBuffer(engine.config.history_steps + drop_steps, len(store.metrics))
        return cls(buffer, engine, store.metrics, *_columns(engine, store.metrics))

    def fits(self, engine: Engine, drop_steps: int) -> bool:
        """Whether a model reads steps of this length and number; a new model seldom needs others."""
        step_seconds, steps = engine.config.step_seconds, engine.config.history_steps + drop_steps
        return (step_seconds, steps) == (self.engine.config.step_seconds, self.buffer.steps)

    def read_by(self, engine: Engine) -> HistoryWindow:
        """The same data for another model that it fits."""
        if engine is self.engine:
            return self
        columns, unserved = _columns(engine, self.metrics)
        return replace(self, engine=engine, columns=columns, unserved=unserved)

    def history(self, server_ids: Sequence[int], last_steps: np.ndarray) -> np.ndarray:
        """Input of the model: float32 [server, step, metric of the model], up to each server's last step."""
        return self.of_model(self.buffer.history(server_ids, last_steps, self.engine.config.history_steps))

    def steps(self, server_ids: Sequence[int], last_step: int, length: int) -> np.ndarray:
        """float32 [server, length, metric of the model]: the `length` steps up to the last step."""
        return self.of_model(self.buffer.history(server_ids, np.full(len(server_ids), last_step), length))

    def of_model(self, values: np.ndarray) -> np.ndarray:
        """[server, step, metric of the store] -> [server, step, metric of the model]."""
        chosen = values[:, :, self.columns]
        if self.unserved:
            chosen[:, :, self.unserved] = np.nan
        return chosen


def _columns(engine: Engine, metrics: tuple[str, ...]) -> tuple[list[int] | slice, list[int]]:
    """HistoryWindow.columns and .unserved; an unserved metric is read from any column."""
    targets, served = tuple(engine.config.targets), served_metrics(engine.config)
    if served == targets == metrics:
        return slice(None), []
    unserved = [place for place, metric in enumerate(targets) if metric not in served]
    return [metrics.index(metric) if metric in served else 0 for metric in targets], unserved
