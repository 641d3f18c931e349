"""Incidents of users: names and patterns, times in any zone, errors that name row, field, value and remedy."""

from datetime import UTC, datetime

import pandas as pd
import pytest

from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.intervals.incidents_file import IncidentRecord, read_incidents

SERVERS = ("db1", "db2", "web1")
TEN = datetime(2026, 11, 20, 10, tzinfo=UTC).timestamp()


def csv(tmp_path, text):
    path = tmp_path / "incidents.csv"
    path.write_text(text)
    return path


def test_names_patterns_and_zones(tmp_path):
    path = csv(
        tmp_path,
        "server_name,pattern,start,end,type\n"
        "web1,,2026-11-20T10:00:00Z,2026-11-20T11:00:00Z,slow\n"
        ",DB.*,2026-11-20T11:00:00+01:00,2026-11-20T10:30:00Z,\n"
        "db2,,2026-11-20T10:00:00Z,2026-11-20T10:30:00Z,incident\n",
    )
    assert read_incidents(path, SERVERS) == [
        IncidentRecord("db1", TEN, TEN + 1800, "incident"),
        IncidentRecord("db2", TEN, TEN + 1800, "incident"),
        IncidentRecord("web1", TEN, TEN + 3600, "slow"),
    ]


def test_parquet_with_typed_times(tmp_path):
    path = tmp_path / "incidents.parquet"
    start = pd.Timestamp("2026-11-20T10:00:00Z")
    pd.DataFrame(
        {"server_name": ["db1", None], "pattern": [None, "web1"], "start": start, "end": start + pd.Timedelta("1h")}
    ).to_parquet(path)
    assert [record.server_name for record in read_incidents(path, SERVERS)] == ["db1", "web1"]


def test_rows_of_other_servers_and_other_columns_are_counted(tmp_path):
    rows = "db1,2026-11-20T10:00:00Z,2026-11-20T11:00:00Z,me\nx9,2026-11-20T10:00:00Z,2026-11-20T11:00:00Z,me\n"
    path = csv(tmp_path, "server_name,start,end,ticket\n" + rows)
    notices = []
    assert len(read_incidents(path, SERVERS, notices.append)) == 1
    assert [text.partition(": ")[2] for text in notices] == [
        "column ticket is not read",
        "1 of 2 rows, such as 'x9', match no server of the data: left out",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("db1,,yesterday,2026-11-20T11:00:00Z", "row 1: start 'yesterday' is not a time; write 2026-11-20T00:00:00Z"),
        ("db1,,2026-11-20T10:00:00Z,2026-11-20T11:00:00", "row 1: end '2026-11-20T11:00:00' has no time zone"),
        ("db1,,2026-11-20T10:00:00Z,", "row 1: end is empty; write a time"),
        ("db1,,2026-11-20T11:00:00Z,2026-11-20T10:00:00Z", "row 1: end '2026-11-20T10:00:00Z' is not after start"),
        ("db1,db.*,2026-11-20T10:00:00Z,2026-11-20T11:00:00Z", "row 1: server_name and pattern are both given"),
        (",,2026-11-20T10:00:00Z,2026-11-20T11:00:00Z", "row 1: server_name and pattern are both empty"),
        (",db(,2026-11-20T10:00:00Z,2026-11-20T11:00:00Z", "row 1: pattern 'db(' is not a regular expression"),
        ("db,,2026-11-20T10:00:00Z,2026-11-20T11:00:00Z", "1 of 1 rows, such as 'db', match no server"),
    ],
)
def test_an_error_names_row_field_value_and_remedy(tmp_path, row, message):
    path = csv(tmp_path, f"server_name,pattern,start,end\n{row}\n")
    with pytest.raises(DataFileError) as problem:
        read_incidents(path, SERVERS)
    assert str(problem.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,start,end\na,b,c\n", "column server_name (or pattern) is missing among name, start, end"),
        ("server_name,start\na,b\n", "column end is missing"),
        ("server_name,start,end\n", "has no rows"),
        ("", "not readable as CSV"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, message):
    with pytest.raises(DataFileError, match=r".*incidents.csv: ") as problem:
        read_incidents(csv(tmp_path, text), SERVERS)
    assert message in str(problem.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataFileError, match="no such file"):
        read_incidents(tmp_path / "none.csv", SERVERS)
    (tmp_path / "incidents.txt").write_text("")
    with pytest.raises(DataFileError, match=r"neither \.csv nor \.parquet"):
        read_incidents(tmp_path / "incidents.txt", SERVERS)
    (tmp_path / "broken.parquet").write_text("no")
    with pytest.raises(DataFileError, match="not readable as parquet"):
        read_incidents(tmp_path / "broken.parquet", SERVERS)
