"""The time grid: cell means equal a plain loop and do not depend on the batches."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fleet_forecast.contract.files
import fleet_forecast.features.grid
from data_contract import Batch, check_metrics, read_metrics
from fleet_forecast.features.grid import FleetGrid, GridError, infer_step_seconds, median_distance

METRICS = ("cpu_pct", "latency_ms")
STEP_SECONDS = 300


def uneven_rows(count: int = 200, seed: int = 0) -> pd.DataFrame:
    """Rows of three servers at odd seconds of three hours, in no order, some values not measured."""
    random = np.random.default_rng(seed)
    seconds = random.choice(3 * 10_800, count, replace=False)
    frame = pd.DataFrame(
        {
            "timestamp": pd.to_datetime(1_772_409_600 + seconds % 10_800, unit="s", utc=True),
            "server_name": np.array(["ppweb2", "ppdb1", "other"], dtype=object)[seconds // 10_800],
            "cpu_pct": random.uniform(0, 100, count).astype("float32"),
            "latency_ms": random.lognormal(3, 2, count).astype("float32"),
        }
    )
    return frame.mask(random.random(frame.shape) < [[0, 0, 0.3, 0.3]])


def cell_means_by_loop(frame: pd.DataFrame) -> dict[tuple[str, int, str], float]:
    """Mean by server, step since the epoch and metric, of the measured values."""
    cells: dict[tuple[str, int, str], list[float]] = {}
    for row in frame.to_dict("records"):
        for metric in METRICS:
            if row[metric] == row[metric]:
                step = int(row["timestamp"].timestamp()) // STEP_SECONDS
                cells.setdefault((row["server_name"], step, metric), []).append(row[metric])
    return {cell: sum(values) / len(values) for cell, values in cells.items()}


def as_cells(grid: FleetGrid) -> dict[tuple[str, int, str], float]:
    first = int(grid.start.astype("datetime64[s]").astype(int)) // grid.step_seconds
    return {
        (grid.servers[server], first + step, grid.metrics[metric]): float(grid.values[server, step, metric])
        for server, step, metric in np.argwhere(~np.isnan(grid.values))
    }


def same_grid(one: FleetGrid, other: FleetGrid) -> bool:
    np.testing.assert_array_equal(one.values, other.values)
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("servers", "profiles", "metrics", "start", "step_seconds")
    )


def test_a_cell_is_the_mean_of_the_samples_in_it():
    frame = uneven_rows()
    assert as_cells(FleetGrid.from_frame(frame, METRICS, STEP_SECONDS)) == pytest.approx(
        cell_means_by_loop(frame), 1e-6
    )


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("order", ["by server and time", "by time", "none"])
@pytest.mark.parametrize("batch_rows", [5, 64, 10_000])
def test_the_grid_of_a_file_does_not_depend_on_its_batches(tmp_path, monkeypatch, suffix, order, batch_rows):
    frame = uneven_rows()
    if order != "none":
        frame = frame.sort_values(["server_name", "timestamp"] if order == "by server and time" else ["timestamp"])
    path = tmp_path / f"metrics{suffix}"
    frame.to_parquet(path, row_group_size=90) if suffix == ".parquet" else frame.to_csv(path, index=False)
    monkeypatch.setattr(fleet_forecast.contract.files, "BATCH_ROWS", batch_rows)
    whole = read_metrics(path)
    checked = check_metrics(path)
    assert same_grid(
        FleetGrid.from_checked(checked, STEP_SECONDS), FleetGrid.from_frame(whole.frame, whole.metrics, STEP_SECONDS)
    )
    assert median_distance(checked.distances) == infer_step_seconds(whole.frame)
    assert as_cells(FleetGrid.from_checked(checked, STEP_SECONDS)) == pytest.approx(cell_means_by_loop(frame), 1e-6)


def test_metrics_averaged_one_after_the_other_give_the_same_grid(monkeypatch):
    frame = uneven_rows()
    together = FleetGrid.from_frame(frame, METRICS, STEP_SECONDS)
    monkeypatch.setattr(fleet_forecast.features.grid, "SUMS_AT_ONCE", 1)
    assert same_grid(together, FleetGrid.from_frame(frame, METRICS, STEP_SECONDS))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=6), st.randoms())
def test_means_are_the_same_to_the_bit_at_any_batch_borders(borders, random):
    frame = uneven_rows()
    names = sorted(set(frame["server_name"]))
    order = list(range(len(frame)))
    random.shuffle(order)

    def batches(wanted):
        for part in np.split(np.array(order), sorted(borders)):
            rows = frame.iloc[part]
            yield Batch(
                rows["server_name"].map(names.index).to_numpy(dtype=np.int32),
                rows["timestamp"].dt.tz_localize(None).to_numpy(),
                {name: rows[name].to_numpy() for name in wanted},
            )

    expected = FleetGrid.from_frame(frame, METRICS, STEP_SECONDS)
    first = int(expected.start.astype("datetime64[s]").astype(int)) // STEP_SECONDS
    cells = fleet_forecast.features.grid._Cells(len(names), first, expected.steps, STEP_SECONDS)
    means = fleet_forecast.features.grid._cell_means(batches, METRICS, cells)
    for index, of_metric in enumerate(means):
        np.testing.assert_array_equal(of_metric.reshape(len(names), -1), expected.values[:, :, index])


def test_the_step_is_the_lower_median_distance():
    assert median_distance({60: 3, 300: 5, 5: 5}) == 60
    assert median_distance({300: 5, 60: 5}) == 60
    assert median_distance({300: 1}) == 300
    early_and_late = np.random.default_rng(0).integers(160, 441, 1_000)
    assert median_distance(dict(zip(*np.unique(early_and_late, return_counts=True), strict=True))) in range(290, 311)
    times = pd.to_datetime([0, 300, 600, 660, 5, 305], unit="s", utc=True)
    assert infer_step_seconds(pd.DataFrame({"timestamp": times, "server_name": ["b"] * 4 + ["a"] * 2})) == 300


def test_without_two_rows_of_a_server_the_step_is_refused():
    with pytest.raises(GridError, match="at least two rows"):
        infer_step_seconds(uneven_rows().drop_duplicates("server_name"))


def test_no_rows_and_two_profiles_are_refused():
    with pytest.raises(GridError, match="at least one row"):
        FleetGrid.from_frame(uneven_rows().iloc[:0], METRICS, STEP_SECONDS)
    two = uneven_rows().assign(profile=lambda frame: np.where(frame.index % 2, "database", "web_api"))
    with pytest.raises(GridError, match="'other' has rows of two profiles"):
        FleetGrid.from_frame(two, METRICS, STEP_SECONDS)


def test_memory_depends_on_the_batches_and_not_on_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_forecast.contract.files, "BATCH_ROWS", 2_000)

    def peak_bytes(rows: int) -> int:
        """Peak memory of checking two days of one server and building their grid."""
        times = pd.date_range("2026-03-02", "2026-03-04", periods=rows, tz="UTC").floor("ms")
        frame = pd.DataFrame({"timestamp": times, "server_name": "ppdb1", "cpu_pct": np.linspace(1, 99, rows)})
        frame.to_parquet(tmp_path / "rows.parquet", row_group_size=2_000)
        tracemalloc.start()
        FleetGrid.from_checked(check_metrics(tmp_path / "rows.parquet"), STEP_SECONDS)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(4_000)  # loads what the first use loads
    assert peak_bytes(240_000) < 1.5 * peak_bytes(40_000)


def test_a_row_with_a_wrong_time_is_refused_before_memory_is_allocated():
    rows = uneven_rows()
    frame = pd.concat([rows, rows.iloc[:1].assign(timestamp=pd.Timestamp("1970-01-02", tz="UTC"))])
    with pytest.raises(GridError, match=r"timestamp: from 1970-01-02T00:00:00Z to .* remove rows of a wrong time"):
        FleetGrid.from_frame(frame, METRICS, 60)


def test_measurements_of_excluded_cells_are_not_measured_and_the_grid_stays_as_it_was():
    frame = pd.DataFrame(
        {
            "timestamp": pd.date_range("2026-03-02", periods=4, freq="300s", tz="UTC"),
            "server_name": ["a", "b", "a", "b"],
            "cpu_pct": np.arange(4, dtype="float32"),
            "latency_ms": np.arange(4, dtype="float32"),
        }
    )
    grid = FleetGrid.from_frame(frame, METRICS, STEP_SECONDS)
    without = grid.without(np.array([[True, False, False, False], [False, False, False, True]]))
    np.testing.assert_array_equal(without.values[..., 0], [[np.nan, np.nan, 2, np.nan], [np.nan, 1, np.nan, np.nan]])
    assert grid.values[0, 0, 0] == 0


def test_what_the_servers_of_each_profile_measured():
    values = np.full((4, 2, 3), np.nan, np.float32)
    values[0, 0, 0] = values[1, 1, 2] = values[2, 0, 1] = values[3, 0, 1] = 0
    profiles = ("web_api", "web_api", "database", None)
    grid = FleetGrid(("a", "b", "c", "d"), profiles, ("x", "y", "z"), np.datetime64("2026-01-01", "s"), 300, values)
    assert grid.measured_by_profile() == {"database": ("y",), "web_api": ("x", "z")}
