"""The data contract: what is refused, what is noticed, what read_metrics returns."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import contract.files
import data_contract
from data_contract import (
    COLUMNS,
    CONTRACT_VERSION,
    METADATA_FILE,
    METRIC_SPECS,
    METRICS,
    METRICS_FILE,
    STATES,
    ContractError,
    DataFileError,
    Metadata,
    arrow_schema,
    check_metrics,
    read_metadata,
    read_metrics,
    validate,
    write_metadata,
)
from server_profiles import ServerProfile, load_profile_rules


def fleet(servers=("ppml0001", "ppdb001"), steps=4, **columns) -> pd.DataFrame:
    """A small frame that keeps the contract; keyword arguments replace columns."""
    times = pd.date_range("2026-11-23T10:00:00Z", periods=steps, freq="5min")
    frame = pd.DataFrame(
        {
            "timestamp": times.append([times] * (len(servers) - 1)),
            "server_name": np.repeat(servers, steps),
            "cpu_pct": np.linspace(1, 99, steps * len(servers)),
            "latency_ms": 12.5,
        }
    )
    return frame.assign(**columns)


def only_violation(frame):
    violations = validate(frame)
    assert len(violations) == 1, violations
    return violations[0]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_frame_that_keeps_the_contract_has_no_violation():
    assert validate(fleet(state="healthy", profile="generic", incident=None)) == []


@pytest.mark.parametrize("column", ["timestamp", "server_name"])
def test_a_missing_required_column_is_named_with_the_columns_present(column):
    violation = only_violation(fleet().drop(columns=column))
    assert violation.column == column
    assert "missing" in violation.message
    assert "cpu_pct" in violation.remedy


def test_a_frame_without_any_metric_column_is_refused_with_their_names():
    violation = only_violation(fleet()[["timestamp", "server_name"]])
    assert violation.message == "no metric column"
    assert all(metric in violation.remedy for metric in METRICS)


def test_metric_columns_without_any_value_do_not_count_as_metrics():
    violation = only_violation(fleet(cpu_pct=None, latency_ms=math.nan))
    assert violation.message == "no value in cpu_pct, latency_ms"


def test_no_rows_are_refused():
    assert only_violation(fleet().iloc[:0]).message == "there are no rows"


def test_text_in_a_metric_column_is_counted_and_shown_with_its_place():
    values = pd.Series([1.0, "n.a.", 3.0, "12", None, "broken", 7.0, 8.0], dtype=object)
    violation = only_violation(fleet(cpu_pct=values.map(lambda v: v if v is None else str(v))))
    assert (violation.column, violation.rows, violation.message) == ("cpu_pct", 2, "text in a metric column")
    assert violation.example == "n.a. (row 2, ppml0001, 2026-11-23T10:05:00Z)"


def test_numbers_written_as_text_are_refused():
    violation = only_violation(fleet(cpu_pct="12.5"))
    assert (violation.rows, violation.message) == (8, "numbers written as text")


@pytest.mark.parametrize("value", [True, [1.0], {"cpu": 1}])
def test_other_things_than_numbers_in_a_metric_column_are_refused(value):
    violation = only_violation(fleet(cpu_pct=pd.Series([value] * 8)))
    assert (violation.column, violation.rows) == ("cpu_pct", 8)


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_is_refused_outside_its_range_and_taken_on_its_edges(metric):
    spec = METRIC_SPECS[metric]
    edges = [spec.lower, spec.upper if spec.upper is not None else 1e30]
    assert validate(fleet(**{metric: edges * 4})) == []
    below = only_violation(fleet(**{metric: [-0.5, *[1.0] * 6, -3]}))
    assert (below.column, below.rows) == (metric, 2)
    assert spec.unit in below.message
    if spec.upper is not None:
        above = only_violation(fleet(**{metric: [*[1.0] * 7, spec.upper + 1]}))
        assert (above.column, above.rows) == (metric, 1)
        assert above.example.startswith(f"{spec.upper + 1:g} (row 8,")


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_what_is_no_finite_float32_is_refused(value):
    violation = only_violation(fleet(latency_ms=[value, *[1.0] * 7]))
    assert (violation.rows, violation.message) == (1, "not a finite number")


def test_nan_and_null_mean_not_measured():
    assert validate(fleet(cpu_pct=[math.nan, *[1.0] * 7], latency_ms=pd.array([None, *[1] * 7], dtype="Int64"))) == []


def test_duplicate_rows_are_counted_and_the_server_and_time_shown():
    frame = fleet()
    violation = only_violation(pd.concat([frame, frame.iloc[[2, 2, 5]]], ignore_index=True))
    assert (violation.column, violation.rows) == ("server_name, timestamp", 3)
    assert violation.example == "ppml0001 at 2026-11-23T10:10:00Z (row 9)"


def test_the_same_instant_in_two_zones_is_a_duplicate():
    times = ["2026-11-23T10:00:00Z", "2026-11-23T05:00:00-05:00"]
    assert only_violation(fleet(["a"], 2, timestamp=times)).rows == 1


def test_timestamps_without_zone_are_refused_in_every_form():
    frame = fleet()
    for naive in (
        frame["timestamp"].dt.tz_localize(None),
        frame["timestamp"].dt.strftime("%Y-%m-%d %H:%M:%S"),
        frame["timestamp"].dt.strftime("%Y-%m-%d %H:%M:%S").astype("category"),
    ):
        violation = only_violation(frame.assign(timestamp=naive))
        assert (violation.column, violation.rows, violation.message) == ("timestamp", 8, "the time has no zone")
        assert "2026-11-23T10:00:00Z" in violation.remedy


@pytest.mark.parametrize("text", ["2026-11-23", "2026-11-23T10:00", "2026-11-23 10:00:00.5"])
def test_one_text_without_zone_among_zoned_ones_is_found(text):
    times = ["2026-11-23T10:05:00Z", "2026-11-23 10:10:00+00:00", text]
    assert only_violation(fleet(["a"], 3, timestamp=times)).rows == 1


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01T00:00:00Z", "23.11.2026 10:00Z", ""])
def test_text_that_is_no_time_is_refused(text):
    violation = only_violation(fleet(["a"], 2, timestamp=["2026-11-23T10:00:00Z", text]))
    assert (violation.rows, violation.message) == (1, "not a time in ISO 8601")


def test_numbers_as_timestamps_are_refused():
    assert only_violation(fleet(timestamp=range(8))).message == "not a time but int64"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("year", [1969, 2200])
def test_times_far_from_today_are_refused(unit, year):
    times = pd.DatetimeIndex(np.array([f"{year}-06-01", "2026-06-01"], dtype=f"datetime64[{unit}]")).tz_localize("UTC")
    violation = only_violation(fleet(["a"], 2, timestamp=times))
    assert (violation.rows, violation.remedy) == (1, "check the unit of the times")


def test_missing_times_and_names_are_counted():
    times = fleet()["timestamp"].where(np.arange(8) != 3)
    names = fleet()["server_name"].where(np.arange(8) > 1)
    found = {v.column: v.rows for v in validate(fleet(timestamp=times, server_name=names))}
    assert found == {"timestamp": 1, "server_name": 2}


@pytest.mark.parametrize("name", ["", "web 1", "wéb1", "web/1", "web1\n", "a" * 254])
def test_bad_server_names_are_refused(name):
    violation = only_violation(fleet([name], 2))
    assert (violation.column, violation.rows) == ("server_name", 2)
    assert "253" in violation.remedy


@pytest.mark.parametrize("name", ["a", "PPML-01.dc1.example.com", "host_1:9100", "a" * 253])
def test_good_server_names_are_taken(name):
    assert validate(fleet([name], 2)) == []


def test_names_that_are_no_text_are_refused():
    assert only_violation(fleet([17, 18])).message == "not text"


def test_a_bad_state_is_refused_with_the_list_of_states():
    violation = only_violation(fleet(state=[None, "Healthy", *STATES[:6]]))
    assert (violation.column, violation.rows, violation.example[:7]) == ("state", 1, "Healthy")
    assert all(state in violation.remedy for state in STATES)


def test_a_server_with_two_profiles_is_refused():
    violation = only_violation(fleet(profile=["database", None, "web_api", "database"] * 2))
    assert (violation.column, violation.rows) == ("profile", 2)


def test_all_violations_are_reported_at_once():
    frame = fleet(cpu_pct=101.0, latency_ms=-1, state="up", server_name="web 1")
    assert {v.column for v in validate(frame)} == {
        "cpu_pct",
        "latency_ms",
        "state",
        "server_name",
        "server_name, timestamp",
    }


bad_cells: dict[str, list] = {
    "cpu_pct": [-1.0, 100.5, math.inf],
    "latency_ms": [-0.25],
    "state": ["broken", "Offline"],
    "server_name": ["two words", "semi;colon"],
}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_counts_agree_with_a_plain_loop_over_rows(data):
    frame = fleet(["a1", "b2", "c3"], 5, state="healthy").sample(frac=1, random_state=1).reset_index(drop=True)
    frame = frame.astype({"state": object, "server_name": object})
    for column, row in data.draw(st.lists(st.tuples(st.sampled_from(sorted(bad_cells)), st.integers(0, 14)))):
        frame.loc[row, column] = data.draw(st.sampled_from(bad_cells[column]))

    expected, seen = Counter(), set()
    for row in frame.to_dict("records"):
        for metric in ("cpu_pct", "latency_ms"):
            value, spec = row[metric], METRIC_SPECS[metric]
            if math.isinf(value):
                expected[metric, "not a finite number"] += 1
            elif value < spec.lower or (spec.upper is not None and value > spec.upper):
                expected[metric, "outside"] += 1
        expected["state", "not a state"] += row["state"] not in STATES
        expected["server_name", "not a server name"] += re.fullmatch(r"[\w.:-]+", row["server_name"]) is None
        key = (row["server_name"], row["timestamp"])
        expected["server_name, timestamp", "the server has another row of the same time"] += key in seen
        seen.add(key)

    found = Counter()
    for violation in validate(frame):
        found[violation.column, violation.message if "outside" not in violation.message else "outside"] += (
            violation.rows
        )
    assert found == +expected


# --- reading --------------------------------------------------------------------------------------------------------


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
        "profile mainframe: not one of the seven, unknown to a model not trained on it",
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
    monkeypatch.setattr(contract.files, "BATCH_ROWS", batch_rows)
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
    monkeypatch.setattr(contract.files, "BATCH_ROWS", 3)
    with pytest.raises(
        ContractError, match=rf"{column}: 1 row: the {missing} is missing, for example .*row {row + 1},"
    ):
        check_metrics(tmp_path)


@pytest.mark.parametrize("batch_rows", [3, 1000])
def test_batches_hold_what_the_whole_frame_does(tmp_path, monkeypatch, batch_rows):
    written = fleet(["zeta9", "ppdb001", "alpha1"], 5, mem_pct=[None, 1.5, 2.5] * 5)
    written.sample(frac=1, random_state=3).to_parquet(tmp_path / METRICS_FILE)
    monkeypatch.setattr(contract.files, "BATCH_ROWS", batch_rows)
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
        ("latency_ms", 1, "outside the range 0 or more ms"),
    ]


# --- metadata -------------------------------------------------------------------------------------------------------

METADATA = Metadata(
    generator_version="1.0.0", seed=42, start="2026-11-23T00:00:00+00:00", hours=24.0, step_seconds=300,
    timezone="America/New_York", fleet={"database": 2}, rows=8, state_counts={"healthy": 8},
    incidents=[{"server_name": "ppdb001", "label": "lock_contention"}],
)  # fmt: skip


def test_metadata_comes_back_as_written_and_beside_the_metrics(tmp_path):
    write_metadata(tmp_path, METADATA)
    fleet().to_parquet(tmp_path / METRICS_FILE)
    assert read_metadata(tmp_path) == METADATA
    assert read_metrics(tmp_path).metadata == METADATA
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert json.loads((tmp_path / METADATA_FILE).read_text())["contract_version"] == CONTRACT_VERSION


def test_a_failed_write_leaves_the_old_metadata(tmp_path):
    write_metadata(tmp_path, METADATA)
    with pytest.raises(ValueError, match="JSON"):
        write_metadata(tmp_path, Metadata(**{**vars(METADATA), "hours": math.nan}))
    assert read_metadata(tmp_path) == METADATA
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contract_version": "2.0.0"}, "contract_version is '2.0.0'"),
        ({"contract_version": None}, "contract_version is None"),
        ({"step_seconds": 0}, "step_seconds is 0"),
        ({"step_seconds": "300"}, "step_seconds is '300'"),
        ({"rows": True}, "rows is True"),
        ({"seed": "x"}, "int or null"),
        ({"timezone": ...}, "timezone is missing"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused_by_field(tmp_path, change, message):
    write_metadata(tmp_path, METADATA)
    document = json.loads((tmp_path / METADATA_FILE).read_text()) | change
    text = json.dumps({key: value for key, value in document.items() if value is not ...})
    (tmp_path / METADATA_FILE).write_text(text)
    with pytest.raises(DataFileError, match=message):
        read_metadata(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_damaged_metadata_is_refused(tmp_path, text):
    (tmp_path / METADATA_FILE).write_text(text)
    with pytest.raises(DataFileError, match="remove it, or generate the data again"):
        read_metadata(tmp_path)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_says_yes_with_0_and_a_line_of_json(tmp_path, capsys):
    fleet().to_csv(tmp_path / "m.csv", index=False)
    assert data_contract.main([str(tmp_path)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert "keeps the data contract" in output[0]
    summary = json.loads(output[-1])
    assert (summary["rows"], summary["servers"], summary["violations"]) == (8, 2, [])


def test_the_command_says_no_with_1_and_every_violation(tmp_path, capsys):
    fleet(cpu_pct=101, state="up").to_csv(tmp_path / "m.csv", index=False)
    assert data_contract.main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "cpu_pct: 8 rows: outside the range 0 to 100 %, for example 101 (row 1, ppml0001, 2026-11-23" in captured.err
    assert {v["column"] for v in json.loads(captured.out)["violations"]} == {"cpu_pct", "state"}


def test_the_command_says_1_for_an_empty_folder(tmp_path, capsys):
    assert data_contract.main([str(tmp_path)]) == 1
    assert "holds no metrics" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--nonsense"], ["a", "b"], ["a", "--profiles", "/nowhere.toml"]])
def test_wrong_usage_exits_2(arguments, capsys):
    assert data_contract.main(arguments) == 2
    assert "error" in capsys.readouterr().err


def test_help_exits_0_and_names_an_example(capsys):
    assert data_contract.main(["--help"]) == 0
    assert "python data_contract.py training/" in capsys.readouterr().out


# --- the document ---------------------------------------------------------------------------------------------------


def test_the_document_holds_the_tables_of_the_code(capsys):
    document = (Path(__file__).parent.parent / "DATA_CONTRACT.md").read_text()
    assert data_contract.main(["--document"]) == 0
    assert capsys.readouterr().out.strip() in document
    assert f"version {CONTRACT_VERSION}" in document


def test_the_document_shows_what_the_command_says(tmp_path, capsys, monkeypatch):
    document = (Path(__file__).parent.parent / "DATA_CONTRACT.md").read_text()
    times = pd.date_range("2026-11-23T10:00:00", periods=8, freq="5min").strftime("%Y-%m-%dT%H:%M:%S")
    monkeypatch.chdir(tmp_path)
    fleet(["web1"], 8, timestamp=times, cpu_pct=[*[50.0] * 4, 104.2, *[50.0] * 3]).to_csv("my_servers.csv", index=False)
    assert data_contract.main(["my_servers.csv"]) == 1
    assert capsys.readouterr().err in document


def test_the_document_names_every_field_of_the_metadata():
    document = (Path(__file__).parent.parent / "DATA_CONTRACT.md").read_text()
    section = document[document.index("## " + METADATA_FILE) :]
    named = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert named == set(Metadata.__dataclass_fields__)
