"""Arrays in mapped files hold the same as those in memory, take no memory of the process, and leave nothing behind."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from fleet_forecast.contract.reading import Batch
from fleet_forecast.features import grid as grid_module
from fleet_forecast.mapped_arrays import IN_MEMORY, ArraysInMemory, MappedArrays
from fleet_forecast.training.batches.source import WindowSource
from tests.training.fleets import SPEC, recording_source

SERVERS, STEPS, METRICS = 200, 10_000, ("cpu_pct", "mem_pct")
CELLS_MB = SERVERS * STEPS * 4 / 1e6  # of one metric


def grid_and_growth(arrays: ArraysInMemory) -> tuple[np.ndarray, float]:
    """The grid of generated rows, and the most memory that was allocated while it was filled, in MB."""

    def batches(wanted: Sequence[str]) -> Iterator[Batch]:
        for server in range(SERVERS):
            random = np.random.default_rng(server)
            measured = np.sort(random.choice(STEPS, 9 * STEPS // 10))
            values = {name: random.uniform(0, 100, len(measured)).astype(np.float32) for name in wanted}
            owner = np.full(len(measured), server, dtype=np.int32)
            yield Batch(owner, (300 * measured).astype("datetime64[s]").astype("datetime64[ns]"), values)

    tracemalloc.start()
    try:
        values = grid_module._mean_values(batches, METRICS, grid_module._Cells(SERVERS, 0, STEPS, 300), arrays)
        return values, tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_a_mapped_grid_equals_one_in_memory_to_the_bit_and_takes_a_tenth_of_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_module, "SUMS_AT_ONCE", 1)
    mapped, growth = grid_and_growth(MappedArrays(tmp_path / "data"))
    assert growth < 0.2 * CELLS_MB
    assert list(tmp_path.iterdir()) == []
    whole, growth = grid_and_growth(IN_MEMORY)
    assert growth > 2 * CELLS_MB
    np.testing.assert_array_equal(mapped, whole, strict=True)


def test_windows_of_mapped_values_equal_those_in_memory_to_the_bit(tmp_path: Path) -> None:
    source = recording_source()
    grid = grid_module.FleetGrid(
        tuple("abcd"),
        ("database", "web_api") * 2,
        SPEC.metrics,
        np.datetime64(300 * source.first_step, "s"),
        300,
        source.values,
    )
    mapped = WindowSource(grid, SPEC, source.scaling, arrays=MappedArrays(tmp_path / "data"))
    np.testing.assert_array_equal(mapped.transformed, source.transformed, strict=True)


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"has no space for 0\.0 GB of data; give another folder with --grid-folder"):
        MappedArrays(tmp_path / "data").new((3, 2), lambda array: array.fill(1.0))
    assert list(tmp_path.iterdir()) == []
