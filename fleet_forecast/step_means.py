"""The mean of the samples that fall into one step: the one definition for training, serving and the store.

The store computes the same means in SQL; a test compares the two.
"""

from __future__ import annotations

import numpy as np

from fleet_forecast.mapped_arrays import IN_MEMORY, ArraysInMemory


class CellMeans:
    """Means of samples by cell (a cell is a step of a server), fed batch by batch.

    Sums are in double precision: up to 2^29 samples of about one size, their mean does not depend on their order.
    They take 12 bytes per cell, in memory or where `arrays` puts them.
    """

    def __init__(self, cells: int, arrays: ArraysInMemory = IN_MEMORY) -> None:
        self._totals = arrays.zeros(cells, np.float64)
        self._counts = arrays.zeros(cells, np.uint32)

    def add(self, cells: np.ndarray, values: np.ndarray) -> None:
        """Add samples. cells: int [sample]; values: float [sample], NaN = not measured."""
        measured = ~np.isnan(values)
        cells = cells[measured]
        np.add.at(self._totals, cells, values[measured].astype(np.float64))
        np.add.at(self._counts, cells, np.uint32(1))

    def means(self, cells: slice = slice(None)) -> np.ndarray:
        """Of these cells (all): float32 [cell], NaN where nothing was measured."""
        totals, counts = self._totals[cells], self._counts[cells]
        means = np.full(len(totals), np.nan, dtype=np.float32)
        return np.divide(totals, counts, out=means, where=counts > 0, casting="unsafe")


def step_means(steps: np.ndarray, values: np.ndarray, step_count: int) -> np.ndarray:
    """float32 [step_count, metric]: means of one server's samples by step, NaN where nothing was measured.

    steps: int [sample], from 0 to step_count - 1; values: float [sample, metric], NaN = not measured.
    """
    means = np.empty((step_count, values.shape[1]), dtype=np.float32)
    for metric in range(values.shape[1]):
        cells = CellMeans(step_count)
        cells.add(steps, values[:, metric])
        means[:, metric] = cells.means()
    return means
