"""The data contract's metadata, command and document."""

import json
import math
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import data_contract
from data_contract import (
    CONTRACT_VERSION,
    METADATA_FILE,
    METRICS_FILE,
    DataFileError,
    Metadata,
    read_metadata,
    read_metrics,
    write_metadata,
)
from tests.contract.frames import fleet

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
        write_metadata(tmp_path, Metadata.model_construct(**{**vars(METADATA), "hours": math.nan}))
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


@pytest.mark.parametrize("text", ["{", "[]", "", "[" * 100_000], ids=["open", "list", "empty", "nested"])
def test_damaged_metadata_is_refused(tmp_path, text):
    (tmp_path / METADATA_FILE).write_text(text)
    with pytest.raises(DataFileError, match="remove it, or generate the data again"):
        read_metadata(tmp_path)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_exits_0_with_a_line_of_json_for_valid_data(tmp_path, capsys):
    fleet().to_csv(tmp_path / "m.csv", index=False)
    assert data_contract.main([str(tmp_path)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert "meets the data contract" in output[0]
    summary = json.loads(output[-1])
    assert (summary["rows"], summary["servers"], summary["violations"]) == (8, 2, [])


def test_the_command_exits_1_with_every_violation(tmp_path, capsys):
    fleet(cpu_pct=101, state="up").to_csv(tmp_path / "m.csv", index=False)
    assert data_contract.main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "cpu_pct: 8 rows: outside the range 0 to 100 %, for example 101 (row 1, ppml0001, 2026-11-23" in captured.err
    assert {v["column"] for v in json.loads(captured.out)["violations"]} == {"cpu_pct", "state"}


def test_the_command_exits_1_for_an_empty_folder(tmp_path, capsys):
    assert data_contract.main([str(tmp_path)]) == 1
    assert "holds no metrics" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["--nonsense"], ["a", "b"], ["a", "--profiles", "/nowhere.toml"], ["a", "--fleet", "/nowhere.toml"]],
)
def test_wrong_usage_exits_2(arguments, capsys):
    assert data_contract.main(arguments) == 2
    assert "error" in capsys.readouterr().err


def test_help_exits_0_and_names_an_example(capsys):
    assert data_contract.main(["--help"]) == 0
    assert "python data_contract.py training/" in capsys.readouterr().out


# --- the document ---------------------------------------------------------------------------------------------------


def test_the_document_contains_the_tables_of_the_code(capsys):
    document = (Path(__file__).parent.parent / "DATA_CONTRACT.md").read_text()
    assert data_contract.main(["--document"]) == 0
    assert capsys.readouterr().out.strip() in document
    assert f"version {CONTRACT_VERSION}" in document


def test_the_document_shows_the_output_of_the_command(tmp_path, capsys, monkeypatch):
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
    assert named == set(Metadata.model_fields)


@pytest.mark.parametrize(
    "problem", [MemoryError("Unable to allocate 8 TiB"), pa.ArrowMemoryError("malloc of 8 TiB failed")]
)
def test_a_file_that_needs_too_much_memory_is_named(tmp_path, monkeypatch, capsys, problem):
    def too_large(*_, **__):
        raise problem

    monkeypatch.setattr(data_contract, "check_metrics", too_large)
    assert data_contract.main([str(tmp_path / "huge.parquet")]) == 1
    shown = capsys.readouterr()
    assert "huge.parquet: not enough memory to read it" in shown.err
    assert "8 TiB" in json.loads(shown.out)["error"]
