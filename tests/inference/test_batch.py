"""Batch forecasts: the model's grid, the origins, the inputs of the engine, and the written file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.inference import batch
from fleet_forecast.inference.batch import Origin, OriginError
from fleet_forecast.inference.engine import Engine
from server_profiles import BUILT_IN_RULES
from tests.conftest import TINY_METRICS, tiny_fleet

START = np.datetime64("2026-03-02T00:00:00", "s")


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Engine:
    return Engine.load(tiny_model_dir, device="cpu")


def grid_of(measured: list[list[bool]]) -> FleetGrid:
    """One metric in steps of an hour: [server][step]."""
    values = np.where(measured, np.arange(len(measured[0]), dtype=np.float32), np.nan)[:, :, None].astype(np.float32)
    names = tuple(f"s{row}" for row in range(len(measured)))
    return FleetGrid(names, ("generic",) * len(names), ("cpu_pct",), START, 3600, values)


def test_the_last_origin_is_the_last_measured_step_or_the_last_step_without_any() -> None:
    grid = grid_of([[True, True, False], [True, True, True], [False, False, False]])
    assert batch.last_origins(grid) == [Origin(0, 1), Origin(1, 2), Origin(2, 2)]
    assert batch.servers_without_measurement(grid) == ["s2"]


def test_regular_origins_are_the_measured_steps_at_the_distance() -> None:
    grid = grid_of([[True] * 7, [True, True, True, True, False, True, True]])
    assert batch.regular_origins(grid, 7200, None) == [
        Origin(0, 2),
        Origin(1, 2),
        Origin(0, 4),
        Origin(0, 6),
        Origin(1, 6),
    ]
    first = START + np.timedelta64(5, "h")
    assert batch.regular_origins(grid, 7200, first) == [Origin(0, 5), Origin(1, 5)]


@pytest.mark.parametrize(
    ("every_seconds", "first_origin", "message"),
    [
        (5000, None, "5000 s is not a multiple of the model's step of 3600 s"),
        (1800, None, "1800 s is not a multiple"),
        (90_000, None, "90000 s is longer than the data, which reaches from 2026-03-02T00:00:00Z"),
        (3600, START - np.timedelta64(1, "D"), "--from 2026-03-01T00:00:00Z: outside the data"),
        (3600, START + np.timedelta64(2, "h"), "no server has a row at any origin; choose another --from"),
    ],
)
def test_origins_that_do_not_exist_are_refused(every_seconds: int, first_origin: object, message: str) -> None:
    with pytest.raises(OriginError, match=message):
        batch.regular_origins(grid_of([[True, True, False]]), every_seconds, first_origin)


def test_the_grid_has_the_models_metrics_and_a_profile_for_every_server(engine: Engine) -> None:
    frame = tiny_fleet(hours=2).drop(columns=["mem_pct", "profile"]).assign(profile=None)
    assert batch.missing_metrics(frame, engine.config) == ["mem_pct"]
    grid = batch.grid_for(frame, engine.config, BUILT_IN_RULES)
    assert grid.metrics == TINY_METRICS
    assert np.isnan(grid.values[:, :, 1]).all()
    assert set(grid.profiles) == {"database", "web_api"}  # by the names of the servers


def test_the_engine_receives_nothing_after_an_origin(engine: Engine) -> None:
    grid = grid_of([[True] * 5, [True] * 5])
    inputs = batch.engine_inputs(engine, grid, grid.peers(), [Origin(0, 1), Origin(1, 3)])
    np.testing.assert_array_equal(inputs.history[0, :, 0], [np.nan, np.nan, 0, 1])
    np.testing.assert_array_equal(inputs.history[1, :, 0], [0, 1, 2, 3])
    assert inputs.profiles == ["generic", "generic"]
    np.testing.assert_array_equal(inputs.origins, START + np.array([1, 3]) * np.timedelta64(1, "h"))


def test_forecasts_do_not_depend_on_how_a_fleet_is_divided(engine: Engine, tmp_path: Path) -> None:
    grid = batch.grid_for(tiny_fleet(hours=6), engine.config, BUILT_IN_RULES)
    origins = batch.last_origins(grid)
    assert batch.write_forecasts(tmp_path / "whole.parquet", engine, grid, origins) == 8 * 12 * len(TINY_METRICS)
    whole = pd.read_parquet(tmp_path / "whole.parquet")
    assert whole["server_name"].unique().tolist() == list(grid.servers)
    several = [*origins] * 17  # three batches, the last one not full
    tables = batch.forecast_tables(engine, grid, grid.peers(), several)
    pd.testing.assert_frame_equal(pa.concat_tables(tables).to_pandas()[-len(whole) :].reset_index(drop=True), whole)
    for divided in (origins[:1], origins[1:4], origins[4:]):
        (table,) = batch.forecast_tables(engine, grid, grid.peers(), divided)
        names = [grid.servers[origin.server] for origin in divided]
        expected = whole[whole["server_name"].isin(names)].reset_index(drop=True)
        pd.testing.assert_frame_equal(table.to_pandas(), expected, check_exact=True)


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(engine: Engine, tmp_path: Path) -> None:
    grid = batch.grid_for(tiny_fleet(hours=2), engine.config, BUILT_IN_RULES)
    (tmp_path / "taken.parquet").mkdir()
    with pytest.raises(DataFileError, match=r"taken\.parquet: cannot be written \("):
        batch.write_forecasts(tmp_path / "taken.parquet", engine, grid, batch.last_origins(grid))
    assert [path.name for path in tmp_path.iterdir()] == ["taken.parquet"]
