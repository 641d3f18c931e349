"""Files of a scenario: the bytes do not depend on workers, the rows keep the contract, a failed run changes nothing."""

import hashlib
import os
from functools import partial

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from data_contract import (
    METADATA_FILE,
    METRICS,
    METRICS_FILE,
    METRICS_FOLDER,
    STATES,
    Metadata,
    read_metadata,
    read_metrics,
)
from fleet_forecast.contract import publishing
from fleet_forecast.simulation.fleet import Fleet
from fleet_forecast.simulation.incident_kinds import LABELS
from fleet_forecast.simulation.output import writer
from fleet_forecast.simulation.output.writer import WriteOptions, write_scenario
from fleet_forecast.simulation.scenario import Scenario
from fleet_forecast.simulation.simulator import simulate
from fleet_forecast.simulation.states import OFFLINE
from fleet_forecast.sources.measured import write_measured

START = np.datetime64("2026-09-14T04:00:00", "s")


def scenario(**options):
    fleet = Fleet.of({"web_api": 20, "database": 13, "data_ingest": 3}, seed=5)
    base = {"fleet": fleet, "start": START, "steps": 700, "step_seconds": 300, "incident_rate": 10, "outage_rate": 20}
    return Scenario(**base | options)


def metadata_of(simulated, world, tally):
    fleet, rows = world.scenario.fleet.composition(), int(tally.rows.sum())
    return Metadata(
        generator_version="test", seed=5, start=f"{START}Z", hours=1.0, step_seconds=300, timezone="UTC", fleet=fleet,
        rows=rows,
    )  # fmt: skip


def write(folder, simulated=None, **options):
    simulated = simulated or scenario()
    return write_scenario(simulated, folder, partial(metadata_of, simulated), WriteOptions(**options))


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_files_contain_the_simulated_values(tmp_path):
    path, tally = write(tmp_path)
    assert path == tmp_path / METRICS_FILE
    trace, frame = simulate(scenario()), read_metrics(tmp_path).frame
    names = scenario().fleet.names
    for name in (names[0], names[17], names[-1]):
        rows = frame[frame["server_name"] == name]
        server = names.index(name)
        assert np.array_equal(rows["timestamp"].dt.tz_localize(None).to_numpy(), trace.timestamps.astype("M8[ns]"))
        assert np.array_equal(rows[list(METRICS)].to_numpy(), trace.metrics[server], equal_nan=True)
        assert rows["state"].tolist() == [STATES[state] for state in trace.states[server]]
        labels = [LABELS[code] if code >= 0 else None for code in trace.incidents[server]]
        assert rows["incident"].astype(object).where(rows["incident"].notna(), None).tolist() == labels
    assert frame["incident"].notna().any()
    assert tally.rows.sum() == len(frame) == 36 * 700
    assert tally.states.sum(axis=0).tolist() == np.bincount(trace.states.ravel(), minlength=8).tolist()
    assert tally.sums.sum(axis=0) == pytest.approx(np.nansum(trace.metrics, axis=(0, 1), dtype=np.float64))
    assert not (trace.states == OFFLINE).all(axis=0).any()


def test_a_folder_of_parts_holds_the_same_rows_as_one_file(tmp_path, monkeypatch):
    one, _ = write(tmp_path / "one")
    monkeypatch.setattr(writer, "ROWS_IN_ONE_PART", 5_000)
    monkeypatch.setattr(writer, "ROWS_IN_ONE_GROUP", 9_000)
    parts, _ = write(tmp_path / "parts", rows_in_one_file=10_000)
    assert parts == tmp_path / "parts" / METRICS_FOLDER
    assert len(list(parts.iterdir())) > 4
    pd.testing.assert_frame_equal(read_metrics(one).frame, read_metrics(tmp_path / "parts").frame)
    assert len(pd.read_parquet(parts)) == 36 * 700, "any parquet reader takes the folder as one data set"


def test_files_of_whole_servers_hold_the_same_rows_as_one_file(tmp_path, monkeypatch):
    one, _ = write(tmp_path / "one")
    monkeypatch.setattr(writer, "ROWS_IN_ONE_PART", 5_000)
    monkeypatch.setattr(writer, "SERVERS_IN_ONE_GROUP", 4)
    monkeypatch.setattr(writer, "ROWS_IN_ONE_GROUP", 3_000)
    parts, tally = write(tmp_path / "parts", parts=5)
    pd.testing.assert_frame_equal(read_metrics(one).frame, read_metrics(tmp_path / "parts").frame)
    servers = [set(pd.read_parquet(file)["server_name"]) for file in sorted(parts.iterdir())]
    assert sorted(len(of_file) for of_file in servers) == [7, 7, 7, 7, 8]
    assert len(set.union(*servers)) == 36, "no server is in two files"
    assert tally.rows.sum() == 36 * 700


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "ROWS_IN_ONE_GROUP", 9_000)
    for name, limit in (("file", 10**9), ("parts", 10_000)):
        for workers in (1, 2):
            write(tmp_path / f"{name}{workers}", workers=workers, rows_in_one_file=limit)
        assert digests(tmp_path / f"{name}1") == digests(tmp_path / f"{name}2")


def test_a_shorter_run_is_a_part_of_a_longer_one(tmp_path):
    write(tmp_path / "short", scenario(steps=300))
    write(tmp_path / "long")
    short, longer = (read_metrics(tmp_path / name).frame for name in ("short", "long"))
    begin = longer[longer["timestamp"] < short["timestamp"].max() + pd.Timedelta("1s")].reset_index(drop=True)
    pd.testing.assert_frame_equal(short, begin, check_categorical=False, check_dtype=False)


def test_sparse_files_lack_only_the_offline_rows(tmp_path):
    _, dense_tally = write(tmp_path / "dense")
    _, sparse_tally = write(tmp_path / "sparse", sparse=True)
    dense, sparse = (read_metrics(tmp_path / name).frame for name in ("dense", "sparse"))
    offline = dense["state"] == "offline"
    assert offline.sum() > 20
    assert dense.loc[offline, list(METRICS)].isna().all(axis=None)
    pd.testing.assert_frame_equal(
        dense[~offline].reset_index(drop=True), sparse, check_categorical=False, check_dtype=False
    )
    assert sparse_tally.rows.sum() == len(sparse) == dense_tally.rows.sum() - offline.sum()


@pytest.mark.parametrize(("before", "after"), [(10**9, 10**9), (10**9, 1), (1, 10**9), (1, 1)])
def test_new_data_replaces_old_data_of_either_form_completely(tmp_path, before, after):
    write(tmp_path, scenario(steps=50), rows_in_one_file=before)
    write(tmp_path, scenario(steps=60), rows_in_one_file=after)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [METADATA_FILE, METRICS_FILE if after > 1 else METRICS_FOLDER]
    )
    assert len(read_metrics(tmp_path).frame) == read_metadata(tmp_path).rows == 36 * 60


@pytest.mark.parametrize("limit", [1, 10**9])
@pytest.mark.parametrize("failing", [(writer, "count_rows"), (writer, "write_metadata"), (publishing, "sync")])
def test_a_run_that_fails_keeps_the_earlier_data_and_leaves_no_other_file(tmp_path, monkeypatch, limit, failing):
    write(tmp_path, rows_in_one_file=limit)
    before = digests(tmp_path)

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, scenario(steps=50), rows_in_one_file=limit)
    assert digests(tmp_path) == before


@pytest.mark.parametrize("same_number", [False, True])  # as in a container, where each run is process 1 or so
def test_temporary_files_of_a_killed_run_are_removed(tmp_path, same_number):
    abandoned = tmp_path / f".server_metrics-{os.getpid() if same_number else 999_999_999}"
    abandoned.mkdir()
    (abandoned / METRICS_FILE).write_bytes(b"half")
    write(tmp_path, scenario(steps=50))
    assert not abandoned.exists()


def test_memory_is_bounded_by_the_group_and_not_by_the_length(tmp_path):
    path, _ = write(tmp_path, scenario(steps=5_000), rows_in_one_file=1)
    rows = [pq.ParquetFile(part).metadata.num_rows for part in path.iterdir()]
    assert max(rows) <= writer.ROWS_IN_ONE_PART
    assert sum(rows) == 36 * 5_000


def test_measured_rows_keep_the_contract_with_the_metrics_they_have(tmp_path):
    frame = pd.DataFrame(
        {
            "timestamp": pd.to_datetime(["2026-01-01T00:00Z", "2026-01-01T00:05Z"]),
            "server_name": ["db1", "db1"],
            "profile": ["database", "database"],
            "cpu_pct": np.array([1.5, np.nan], dtype=np.float32),
        }
    )
    metadata = Metadata(
        generator_version="test", seed=None, start="2026-01-01T00:00:00Z", hours=1.0, step_seconds=300, timezone="UTC",
        fleet={"database": 1}, rows=2,
    )  # fmt: skip
    path = write_measured(frame, tmp_path, metadata)
    data = read_metrics(path.parent)
    assert data.metrics == ("cpu_pct",)
    assert data.metadata.seed is None
    assert data.frame["cpu_pct"].tolist()[0] == 1.5
    assert np.isnan(data.frame["cpu_pct"].tolist()[1])
