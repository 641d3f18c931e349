"""Files into checked rows: every format alike, whole and in batches."""

import math
from dataclasses import replace
from urllib.parse import quote

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
    Metadata,
    arrow_schema,
    check_metrics,
    read_metrics,
    validate,
    write_metadata,
)
from server_profiles import BUILT_IN_RULES, ServerProfile
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
    assert data.notices == (
        "column day is not in the contract: left out; a metric needs [metrics.day] in the fleet file",
    )


def test_a_folder_of_csv_files_is_read_as_one(tmp_path):
    whole = fleet()
    whole.iloc[:3].to_csv(tmp_path / "a.csv", index=False)
    whole.iloc[3:].assign(note="x").to_csv(tmp_path / "b.csv", index=False)
    data = read_metrics(tmp_path)
    assert len(data.frame) == 8
    assert (
        data.notices[0]
        == "column note is not in the contract: left out; a metric needs [metrics.note] in the fleet file"
    )


def test_other_columns_and_columns_without_values_are_left_out_with_a_notice(tmp_path):
    fleet(anomaly=1, mem_pct=math.nan, profile=None).to_parquet(tmp_path / METRICS_FILE)
    data = read_metrics(tmp_path)
    assert "anomaly" not in data.frame
    assert "mem_pct" not in data.frame
    assert not data.has_profile_column
    assert data.notices == (
        "column anomaly is not in the contract: left out; a metric needs [metrics.anomaly] in the fleet file",
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
        "profile mainframe: not a profile of the fleet; only a model that was trained on it uses it",
    )


def test_categories_that_no_row_uses_do_not_count(tmp_path):
    frame = fleet(["a", "two words"]).astype({"server_name": "category"})
    frame = frame.assign(timestamp=frame["timestamp"].astype(str).where(frame.index < 4, "never").astype("category"))
    kept = frame[frame["server_name"] == "a"]
    assert validate(kept) == []
    kept.to_parquet(tmp_path / METRICS_FILE)
    (notice,) = read_metrics(tmp_path).notices
    assert notice.startswith("profile of 1 of 1 server is generic: no rule matches names such as 'a'; add a column")


def test_names_that_no_rule_matches_are_counted_with_an_example_and_the_remedy(tmp_path):
    fleet(["pg-01", "ppdb001", "shop-frontend"], 2).to_parquet(tmp_path / METRICS_FILE)
    named, generic = read_metrics(tmp_path).notices
    assert named == "profile of 1 of 3 servers inferred from the name"
    assert generic == (
        "profile of 2 of 3 servers is generic: no rule matches names such as 'pg-01'; add a column profile, or "
        "patterns or [servers] to the fleet file"
    )


def test_profiles_are_inferred_by_the_users_rules(tmp_path):
    rules = replace(BUILT_IN_RULES, pins={"sql1": "database"})
    fleet(["sql1"], 2).to_csv(tmp_path / "m.csv", index=False)
    data = read_metrics(tmp_path / "m.csv", rules)
    assert set(data.frame["profile"]) == {ServerProfile.DATABASE}
    assert data.notices == ("profile of 1 of 1 server inferred from the name",)
    fleet(["sql1"], 2, profile="web_api").to_csv(tmp_path / "m.csv", index=False)
    assert set(read_metrics(tmp_path / "m.csv", rules).frame["profile"]) == {"database"}, "a pin comes first"


def test_broken_rows_raise_with_every_violation_in_the_text(tmp_path):
    path = tmp_path / "m.csv"
    fleet(cpu_pct=["oops"] * 5 + [2] * 3, latency_ms=-1).to_csv(path, index=False)
    with pytest.raises(ContractError) as raised:
        read_metrics(path)
    assert [(v.column, v.rows) for v in raised.value.violations if v.rows] == [("cpu_pct", 5), ("latency_ms", 8)]
    assert "oops (row 1, ppml0001, 2026-11-23" in str(raised.value)
    assert str(path) in str(raised.value)


def unreadable(tmp_path, case):
    path = tmp_path / "m.parquet"
    if case == "missing":
        return path, "no such file"
    if case == "not parquet":
        path.write_bytes(b"PAR1 this is not parquet")
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
    if case == "no UTF-8":
        text = "timestamp,server_name,cpu_pct\n2026-11-23T10:00:00Z,büro,1\n"
        (tmp_path / "m.csv").write_text(text, encoding="cp1252")
        return tmp_path, "save it as UTF-8"
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
    raise ValueError(case)


@pytest.mark.parametrize(
    "case",
    [
        "missing", "not parquet", "truncated", "empty folder", "empty csv", "ragged csv", "no UTF-8",
        "repeated column", "other format", "two kinds",
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
    frame = fleet(["a1", "b2", "c3"], 8, state="healthy", profile="generic", mem_pct=-50.0)
    frame = frame.astype({"state": object, "server_name": object}).sort_values("timestamp", kind="stable")
    frame = frame.reset_index(drop=True)
    frame.loc[[5, 17], "cpu_pct"] = [-1.0, 130.0]
    frame.loc[[11, 20], "latency_ms"] = math.inf
    frame.loc[[3, 22], "state"] = "broken"
    frame.loc[[9, 10, 23], "profile"] = ["database", None, "web_api"]
    frame.loc[[7, 14], "server_name"] = "a1\n"
    return pd.concat([frame, frame.iloc[[2, 13, 2]], frame.iloc[[4, 5]].assign(latency_ms=9.0)], ignore_index=True)


@pytest.mark.parametrize("batch_rows", [1, 4, 10, 1000])
def test_violations_do_not_depend_on_the_batches_that_are_read(tmp_path, monkeypatch, batch_rows):
    broken_fleet().to_parquet(tmp_path / METRICS_FILE, row_group_size=7)
    monkeypatch.setattr(fleet_forecast.contract.files, "BATCH_ROWS", batch_rows)
    with pytest.raises(ContractError) as raised:
        check_metrics(tmp_path)
    assert sorted(map(str, raised.value.violations)) == sorted(map(str, validate(broken_fleet())))
    assert {violation.column for violation in raised.value.violations} == {
        "mem_pct", "profile", "server_name, timestamp",
    }  # fmt: skip


LEFT_OUT = r"""
server_name: 2 rows: not a server name, for example 'a1\n' (row 8, 2026-11-23T10:10:00Z); the row is left out
state: 2 rows: not a state, for example broken (row 4, a1, 2026-11-23T10:05:00Z); counted as not measured
cpu_pct: 2 rows: outside the range 0 to 100 %, for example -1 (row 6, c3, 2026-11-23T10:05:00Z); counted as not measured
latency_ms: 2 rows: not a finite number, for example inf (row 12, c3, 2026-11-23T10:15:00Z); counted as not measured
3 rows repeated exactly, for example c3 at 2026-11-23T10:00:00Z (row 25); counted once
""".strip()


@pytest.mark.parametrize("batch_rows", [1, 4, 10, 1000])
def test_notices_and_what_is_left_do_not_depend_on_the_batches_that_are_read(tmp_path, monkeypatch, batch_rows):
    frame = broken_fleet().iloc[:-2].assign(mem_pct=50.0, profile="generic")
    frame.to_parquet(tmp_path / METRICS_FILE, row_group_size=7)
    monkeypatch.setattr(fleet_forecast.contract.files, "BATCH_ROWS", batch_rows)
    checked, whole = check_metrics(tmp_path), read_metrics(tmp_path)
    assert "\n".join(checked.notices) == "\n".join(whole.notices) == LEFT_OUT
    assert (checked.rows, len(whole.frame)) == (22, 22)
    read = [value for batch in checked.batches(("mem_pct",)) for value in batch.metrics["mem_pct"].tolist()]
    assert read == [50.0] * 22
    assert whole.frame["cpu_pct"].isna().sum() == whole.frame["latency_ms"].isna().sum() == 2


@pytest.mark.parametrize("bad", [(5, "name"), (14, "time")])
def test_a_row_without_name_or_time_is_left_out_in_any_batch(tmp_path, monkeypatch, bad):
    row, missing = bad
    frame = fleet(["a1", "b2"], 8)
    column = {"name": "server_name", "time": "timestamp"}[missing]
    frame[column] = frame[column].where(frame.index != row)
    frame.to_parquet(tmp_path / METRICS_FILE)
    monkeypatch.setattr(fleet_forecast.contract.files, "BATCH_ROWS", 3)
    checked = check_metrics(tmp_path)
    assert checked.rows == 15
    assert f"{column}: 1 row: the {missing} is missing" in checked.notices[0]
    assert f"row {row + 1}" in checked.notices[0]


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
    frame = fleet(cpu_pct=[*[2.0] * 6, "n.a.", 2.0], latency_ms=[*[1.0] * 7, -2.0])
    frame.to_csv(tmp_path / "m.csv", index=False)
    data = read_metrics(tmp_path / "m.csv")
    assert [notice.partition(", for example")[0] for notice in data.notices[:2]] == [
        "cpu_pct: 1 row: text in a metric column",
        "latency_ms: 1 row: outside the range 0 to 1,000,000,000 ms",
    ]
    np.testing.assert_array_equal(np.isnan(data.frame[["cpu_pct", "latency_ms"]]).sum(), [1, 1])


def rows_with_a_stray(tmp_path, time, name="ppdb001"):
    frame = fleet(steps=300)
    stray = frame.iloc[[0]].assign(timestamp=pd.Timestamp(time), server_name=name)
    pd.concat([frame, stray], ignore_index=True).to_parquet(tmp_path / METRICS_FILE)
    return frame


@pytest.mark.parametrize("time", ["1970-01-01T00:00:12Z", "2027-03-01T00:00:00Z", "2026-01-01T00:00:00Z"])
@pytest.mark.parametrize("name", ["ppdb001", "only-there"])
def test_a_lone_row_far_off_is_named_and_left_out(tmp_path, time, name):
    frame = rows_with_a_stray(tmp_path, time, name)
    checked = check_metrics(tmp_path)
    assert f"timestamp: 1 row far from all others, a wrong time: {name} at {time}; left out" in checked.notices
    assert (checked.rows, checked.servers) == (len(frame), ("ppdb001", "ppml0001"))
    times = frame["timestamp"].dt.tz_localize(None).to_numpy()
    assert (checked.first, checked.last) == (times.min(), times.max())
    assert sum(len(batch.servers) for batch in checked.batches(("cpu_pct",))) == len(frame)
    assert len(read_metrics(tmp_path).frame) == len(frame)


def test_rows_within_a_week_and_parts_of_some_length_are_kept(tmp_path):
    frame = rows_with_a_stray(tmp_path, "2026-11-29T00:00:00Z")
    assert check_metrics(tmp_path).rows == len(frame) + 1
    later = frame.iloc[:10].assign(timestamp=frame["timestamp"].iloc[:10] + pd.Timedelta(days=60))
    pd.concat([frame, later], ignore_index=True).to_parquet(tmp_path / METRICS_FILE)
    assert check_metrics(tmp_path).rows == len(frame) + 10


def test_metadata_of_other_rows_are_not_used_and_named(tmp_path):
    metadata = Metadata(
        generator_version="1", seed=None, start="2026-11-23T10:00:00Z", hours=1, step_seconds=60, timezone="UTC",
        fleet={}, rows=8,
    )  # fmt: skip
    write_metadata(tmp_path, metadata)
    fleet().to_parquet(tmp_path / METRICS_FILE)
    assert check_metrics(tmp_path).metadata == metadata
    fleet(steps=5).to_parquet(tmp_path / METRICS_FILE)
    checked = check_metrics(tmp_path)
    assert checked.metadata is None
    assert checked.notices[0].startswith("metrics_metadata.json describes other data (8 rows, there are 10): not used")


def test_files_of_a_folder_that_are_not_read_are_named(tmp_path):
    fleet().to_parquet(tmp_path / METRICS_FILE)
    (tmp_path / "mine").mkdir()
    fleet(["mine"]).to_csv(tmp_path / "mine" / "own.csv", index=False)
    assert check_metrics(tmp_path).notices[0].startswith(f"mine/own.csv: not read; {METRICS_FILE} is the data")
    (tmp_path / METRICS_FILE).rename(tmp_path / "part.parquet")
    (tmp_path / "mine" / "own.csv").rename(tmp_path / "notes.txt")
    assert check_metrics(tmp_path).notices[0].startswith("notes.txt: not read; part.parquet is the data")


# --- parquet as it is written elsewhere -----------------------------------------------------------------------------


def test_parquet_names_any_zone_and_int96_is_utc(tmp_path):
    frame = fleet()
    reference = read_metrics(written(tmp_path, frame, "reference")).frame
    naive = frame.assign(timestamp=frame["timestamp"].dt.tz_localize(None))
    spark = tmp_path / "spark.parquet"
    pq.write_table(pa.Table.from_pandas(naive), spark, use_deprecated_int96_timestamps=True)
    pd.testing.assert_frame_equal(read_metrics(spark).frame, reference)
    for zone in ("tzutc()", "psycopg2.tz.FixedOffsetTimezone(offset=60, name=None)", "+02:00"):
        table = pa.Table.from_pandas(frame, preserve_index=False)
        column = table["timestamp"].combine_chunks().view(pa.timestamp("ns", zone))
        pq.write_table(table.set_column(0, "timestamp", column), tmp_path / "zone.parquet")
        pd.testing.assert_frame_equal(read_metrics(tmp_path / "zone.parquet").frame, reference)


def written(folder, frame, name):
    path = folder / f"{name}.parquet"
    frame.to_parquet(path)
    return path


def test_times_without_a_zone_are_read_in_the_zone_that_is_stated(tmp_path):
    frame = fleet()
    local = frame.assign(timestamp=frame["timestamp"].dt.tz_convert("Europe/Berlin").dt.tz_localize(None))
    path = written(tmp_path, local, "local")
    with pytest.raises(ContractError, match=r"the time has no zone.*--input-timezone"):
        read_metrics(path)
    pd.testing.assert_series_equal(
        read_metrics(path, input_timezone="Europe/Berlin").frame["timestamp"],
        read_metrics(written(tmp_path, frame, "utc")).frame["timestamp"],
    )
    assert check_metrics(path, input_timezone="UTC").first == np.datetime64("2026-11-23T11:00", "ns")


@pytest.mark.parametrize("kept", [False, True], ids=["in the path only", "in the file too"])
@pytest.mark.parametrize("names", [("1001", "1002"), ("1001", "web 1"), ("büro", "a=b")])
def test_partition_columns_of_any_type_are_text(tmp_path, kept, names):
    for name in names:
        folder = tmp_path / f"server_name={quote(name, safe='')}"
        folder.mkdir()
        own = fleet([int(name) if name.isdigit() else name], 2)
        (own if kept else own.drop(columns="server_name")).to_parquet(folder / "0.parquet")
    data = read_metrics(tmp_path)
    assert list(data.frame["server_name"]) == sorted([*names, *names])


def test_files_whose_columns_have_other_types_are_read_together(tmp_path):
    fleet(["a"]).astype({"cpu_pct": "int64"}).to_parquet(tmp_path / "a.parquet")
    other = fleet(["b"])
    other.assign(timestamp=other["timestamp"].dt.tz_convert("Asia/Tokyo")).to_parquet(tmp_path / "b.parquet")
    fleet(["c"], cpu_pct="12.5").drop(columns="latency_ms").to_parquet(tmp_path / "c.parquet")
    data = read_metrics(tmp_path)
    assert data.frame["cpu_pct"].notna().all()
    assert data.frame["timestamp"].nunique() == 4
