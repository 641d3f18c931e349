"""Files into checked rows: every format alike, whole and in batches."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fleet_forecast.contract.files
from data_contract import (
    COLUMNS,
    METRICS,
    METRICS_FILE,
    ContractError,
    DataFileError,
    arrow_schema,
    check_metrics,
    read_metrics,
    validate,
)
from fleet_forecast.contract.profile_rules import load_profile_rules
from server_profiles import ServerProfile
from tests.contract.frames import fleet


def test_what_is_read_is_sorted_typed_and_complete(tmp_path):
    written = fleet(["zeta9", "ppdb001", "alpha1"], 5, state="healthy", incident=[None, "oom", None] * 5)
    written.sample(frac=1, random_state=0).to_parquet(tmp_path / METRICS_FILE)
    data = read_metrics(tmp_path)
    expected = written.sort_values(["server_name", "timestamp"], ignore_index=True)
    assert data.metrics == ("cpu_pct", "latency_ms")
    assert [str(t) for t in data.frame.dtypes] == [
        "datetime64[ns, UTC]", "category", "category", "category", "float32", "float32", "category",
    ]  # fmt: skip
    for column in ("timestamp", "server_name", "state", "incident"):
        assert data.frame[column].astype(object).where(data.frame[column].notna(), None).tolist() == list(
            expected[column]
        )
    np.testing.assert_array_equal(data.frame["cpu_pct"], expected["cpu_pct"].astype("float32"))
    assert list(data.frame["profile"].unique()) == ["generic", "database"]
    assert not data.has_profile_column


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_every_file_format_gives_the_same_data(tmp_path, suffix):
    frame = fleet(state=["healthy", None] * 4, profile="database", mem_pct=[None, 2, 3.5, 4] * 2)
    path = tmp_path / f"metrics{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False)
    frame.to_parquet(tmp_path / "reference.parquet")
    read, reference = read_metrics(path), read_metrics(tmp_path / "reference.parquet")
    pd.testing.assert_frame_equal(read.frame, reference.frame)
    assert (read.metrics, read.has_profile_column, read.notices) == (("cpu_pct", "mem_pct", "latency_ms"), True, ())


def test_files_of_the_declared_schema_are_read_as_they_were_written(tmp_path):
    frame = fleet(profile="generic", state="idle", incident=None, **dict.fromkeys(METRICS, 1.0))
    pq.write_table(pa.Table.from_pandas(frame[list(COLUMNS)], schema=arrow_schema()), tmp_path / METRICS_FILE)
    assert read_metrics(tmp_path).metrics == METRICS
    assert arrow_schema(("cpu_pct",)).names == ["timestamp", "server_name", "profile", "state", "cpu_pct", "incident"]


@pytest.mark.parametrize("folder", [METRICS_FILE, "server_metrics", "."])
def test_a_folder_of_part_files_is_read_as_one(tmp_path, folder):
    parts = tmp_path / folder
    parts.mkdir(exist_ok=True)
    whole = fleet(["a", "b", "c"])
    whole.iloc[:5].to_parquet(parts / "part-0.parquet")
    whole.iloc[5:].assign(mem_pct=50).to_parquet(parts / "part-1.parquet")  # a column only the second part has
    (parts / "_SUCCESS").touch()
    data = read_metrics(tmp_path)
    assert len(data.frame) == 12
    assert data.metrics == ("cpu_pct", "mem_pct", "latency_ms")
    assert data.frame["mem_pct"].notna().sum() == 7


def test_hive_partitions_give_their_columns(tmp_path):
    frame = fleet(["a", "b"]).assign(profile=["web_api"] * 4 + ["database"] * 4, day="2026-11-23")
    frame.to_parquet(tmp_path / "server_metrics", partition_cols=["day", "profile"])
    data = read_metrics(tmp_path)
    assert list(data.frame["profile"]) == ["web_api"] * 4 + ["database"] * 4
    assert data.notices == ("column day is not in the contract: left out",)


def test_a_folder_of_csv_files_is_read_as_one(tmp_path):
    whole = fleet()
    whole.iloc[:3].to_csv(tmp_path / "a.csv", index=False)
    whole.iloc[3:].assign(note="x").to_csv(tmp_path / "b.csv", index=False)
    data = read_metrics(tmp_path)
    assert len(data.frame) == 8
    assert data.notices[0] == "column note is not in the contract: left out"


def test_other_columns_and_columns_without_values_are_left_out_with_a_notice(tmp_path):
    fleet(anomaly=1, mem_pct=math.nan, profile=None).to_parquet(tmp_path / METRICS_FILE)
    data = read_metrics(tmp_path)
    assert "anomaly" not in data.frame
    assert "mem_pct" not in data.frame
    assert not data.has_profile_column
    assert data.notices == (
        "column anomaly is not in the contract: left out",
        "column profile has no value: counted as absent",
        "column mem_pct has no value: counted as absent",
        "profile of 2 of 2 servers inferred from the name",
    )


def test_profiles_are_inferred_only_for_servers_that_name_none(tmp_path):
    frame = fleet(["ppml0001", "ppdb001", "other"], 2, profile=["mainframe", None, None, None, None, "web_api"])
    frame.to_parquet(tmp_path / METRICS_FILE)
    data = read_metrics(tmp_path)
    by_server = data.frame.astype(str).groupby("server_name")["profile"].unique().map(list).to_dict()
    assert by_server == {"ppml0001": ["mainframe"], "ppdb001": ["database"], "other": ["web_api"]}
    assert data.has_profile_column
    assert data.notices == (
        "profile of 1 of 3 servers inferred from the name",
        "profile mainframe: not a built-in profile; only a model that was trained on it uses it",
    )


def test_categories_that_no_row_uses_do_not_count(tmp_path):
    frame = fleet(["a", "two words"]).astype({"server_name": "category"})
    frame = frame.assign(timestamp=frame["timestamp"].astype(str).where(frame.index < 4, "never").astype("category"))
    kept = frame[frame["server_name"] == "a"]
    assert validate(kept) == []
    kept.to_parquet(tmp_path / METRICS_FILE)
    assert read_metrics(tmp_path).notices == ("profile of 1 of 1 servers inferred from the name",)


def test_profiles_are_inferred_by_the_users_rules(tmp_path):
    (tmp_path / "profiles.toml").write_text("[patterns]\ndatabase = ['sql\\d+']\n")
    fleet(["sql1"], 2).to_csv(tmp_path / "m.csv", index=False)
    data = read_metrics(tmp_path / "m.csv", load_profile_rules(tmp_path / "profiles.toml"))
    assert set(data.frame["profile"]) == {ServerProfile.DATABASE}


def test_broken_rows_raise_with_every_violation_in_the_text(tmp_path):
    path = tmp_path / "m.csv"
    fleet(cpu_pct=["oops", *[1] * 7], latency_ms=-1).to_csv(path, index=False)
    with pytest.raises(ContractError) as raised:
        read_metrics(path)
    assert {v.column: v.rows for v in raised.value.violations} == {"cpu_pct": 1, "latency_ms": 8}
    assert "oops (row 1, ppml0001, 2026-11-23" in str(raised.value)
    assert str(path) in str(raised.value)


def unreadable(tmp_path, case):
    path = tmp_path / "m.parquet"
    if case == "missing":
        return path, "no such file"
    if case == "not parquet":
        path.write_bytes(b"PAR1 this is no parquet")
        return path, "not readable as parquet"
    if case == "truncated":
        fleet().to_parquet(path)
        path.write_bytes(path.read_bytes()[:-20])
        return path, "not readable as parquet"
    if case == "empty folder":
        return tmp_path, "holds no metrics"
    if case == "empty csv":
        (tmp_path / "m.csv").touch()
        return tmp_path, "not readable as CSV"
    if case == "ragged csv":
        (tmp_path / "m.csv").write_text("timestamp,server_name,cpu_pct\n2026-11-23T10:00:00Z,a,1,2\n")
        return tmp_path, "not readable as CSV"
    if case == "semicolons":
        (tmp_path / "m.csv").write_text("timestamp;server_name;cpu_pct\n")
        return tmp_path, "commas"
    if case == "repeated column":
        (tmp_path / "m.csv").write_text("timestamp,server_name,cpu_pct,cpu_pct\n2026-11-23T10:00:00Z,a,1,2\n")
        return tmp_path, "column cpu_pct occurs 2 times"
    if case == "other format":
        (tmp_path / "m.xlsx").write_bytes(b"PK")
        return tmp_path / "m.xlsx", "neither .parquet nor .csv"
    if case == "two kinds":
        fleet().to_parquet(path)
        fleet().to_csv(tmp_path / "m.csv")
        return tmp_path, "keep one kind"
    if case == "schemas differ":
        fleet().to_parquet(path)
        fleet(cpu_pct="x").to_parquet(tmp_path / "n.parquet")
        return tmp_path, "one schema"
    raise ValueError(case)


@pytest.mark.parametrize(
    "case",
    [
        "missing", "not parquet", "truncated", "empty folder", "empty csv", "ragged csv", "semicolons",
        "repeated column", "other format", "two kinds", "schemas differ",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_path_and_remedy(tmp_path, case):
    path, message = unreadable(tmp_path, case)
    with pytest.raises(DataFileError, match=message) as raised:
        read_metrics(path)
    assert str(tmp_path) in str(raised.value)
    assert ";" in str(raised.value)  # what is wrong; what to do


# --- in batches -----------------------------------------------------------------------------------------------------


def broken_fleet() -> pd.DataFrame:
    """Rows by time, with something wrong of every kind, at several places each."""
    frame = fleet(["a1", "b2", "c3"], 8, state="healthy", profile="generic", mem_pct=50.0)
    frame = frame.astype({"state": object, "server_name": object}).sort_values("timestamp", kind="stable")
    frame = frame.reset_index(drop=True)
    frame.loc[[5, 17], "cpu_pct"] = [-1.0, 130.0]
    frame.loc[[11, 20], "latency_ms"] = math.inf
    frame.loc[[3, 22], "state"] = "broken"
    frame.loc[[9, 10, 23], "profile"] = ["database", None, "web_api"]
    return pd.concat([frame, frame.iloc[[2, 13, 2]]], ignore_index=True)


@pytest.mark.parametrize("batch_rows", [1, 4, 10, 1000])
def test_violations_do_not_depend_on_the_batches_that_are_read(tmp_path, monkeypatch, batch_rows):
    broken_fleet().to_parquet(tmp_path / METRICS_FILE, row_group_size=7)
    monkeypatch.setattr(fleet_forecast.contract.files, "BATCH_ROWS", batch_rows)
    with pytest.raises(ContractError) as raised:
        check_metrics(tmp_path)
    assert sorted(map(str, raised.value.violations)) == sorted(map(str, validate(broken_fleet())))
    assert {violation.column for violation in raised.value.violations} == {
        "cpu_pct", "latency_ms", "state", "profile", "server_name, timestamp",
    }  # fmt: skip


@pytest.mark.parametrize("bad", [(5, "name"), (14, "time")])
def test_a_row_without_name_or_time_is_refused_in_any_batch(tmp_path, monkeypatch, bad):
    row, missing = bad
    frame = fleet(["a1", "b2"], 8)
    column = {"name": "server_name", "time": "timestamp"}[missing]
    frame[column] = frame[column].where(frame.index != row)
    frame.to_parquet(tmp_path / METRICS_FILE)
    monkeypatch.setattr(fleet_forecast.contract.files, "BATCH_ROWS", 3)
    with pytest.raises(
        ContractError, match=rf"{column}: 1 row: the {missing} is missing, for example .*row {row + 1},"
    ):
        check_metrics(tmp_path)


@pytest.mark.parametrize("batch_rows", [3, 1000])
def test_batches_hold_what_the_whole_frame_does(tmp_path, monkeypatch, batch_rows):
    written = fleet(["zeta9", "ppdb001", "alpha1"], 5, mem_pct=[None, 1.5, 2.5] * 5)
    written.sample(frac=1, random_state=3).to_parquet(tmp_path / METRICS_FILE)
    monkeypatch.setattr(fleet_forecast.contract.files, "BATCH_ROWS", batch_rows)
    checked, whole = check_metrics(tmp_path), read_metrics(tmp_path)
    parts = [
        pd.DataFrame({"server_name": batch.servers, "timestamp": batch.timestamps, **batch.metrics})
        for batch in checked.batches(("mem_pct", "cpu_pct"))
    ]
    assert len(parts) == (5 if batch_rows == 3 else 1)
    rows = pd.concat(parts).sort_values(["server_name", "timestamp"], ignore_index=True)
    assert [checked.servers[code] for code in rows["server_name"]] == whole.frame["server_name"].tolist()
    assert (rows["timestamp"].dt.tz_localize("UTC") == whole.frame["timestamp"]).all()
    np.testing.assert_array_equal(rows[["mem_pct", "cpu_pct"]], whole.frame[["mem_pct", "cpu_pct"]])
    assert checked.rows == len(whole.frame)
    assert checked.profiles == ("generic", "database", "generic")
    assert (checked.first, checked.last) == (rows["timestamp"].min(), rows["timestamp"].max())
    assert (checked.metrics, checked.notices, checked.has_profile_column) == (
        whole.metrics, whole.notices, whole.has_profile_column,
    )  # fmt: skip


def test_files_that_change_after_they_were_checked_are_refused(tmp_path):
    fleet().to_parquet(tmp_path / METRICS_FILE)
    checked = check_metrics(tmp_path)
    fleet(steps=5).to_parquet(tmp_path / METRICS_FILE)
    with pytest.raises(DataFileError, match="was changed while it was read"):
        list(checked.batches(("cpu_pct",)))


def test_text_in_one_csv_column_leaves_the_others_numbers(tmp_path):
    frame = fleet(cpu_pct=[*[1.0] * 6, "n.a.", 1.0], latency_ms=[*[1.0] * 7, -2.0])
    frame.to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(ContractError) as raised:
        check_metrics(tmp_path)
    assert [(v.column, v.rows, v.message) for v in raised.value.violations] == [
        ("cpu_pct", 1, "text in a metric column"),
        ("latency_ms", 1, "outside the range 0 to 1,000,000,000 ms"),
    ]
