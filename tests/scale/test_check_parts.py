"""Every file of a fleet in parts is checked by itself; what is wrong is named with its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import data_contract
import metrics_generator
from tests.conftest import tiny_fleet

FLEET = ("--hours", "3", "--num_web_api", "5", "--num_database", "4", "--num_ml_compute", "0", "--num_generic", "0")
OTHERS = ("--num_conductor_mgmt", "0", "--num_data_ingest", "0", "--num_risk_analytics", "0")


def checked(capsys: pytest.CaptureFixture[str], *flags: object) -> tuple[int, dict, str]:
    code = data_contract.main([str(flag) for flag in flags])
    printed = capsys.readouterr()
    return code, json.loads(printed.out.splitlines()[-1]) if printed.out else {}, printed.err


def test_a_simulated_fleet_in_parts_is_the_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, flags in (("whole", ()), ("parts", ("--parts", "3"))):
        assert metrics_generator.main([*FLEET, *OTHERS, *flags, "--out_dir", str(tmp_path / name)]) == 0
    capsys.readouterr()
    _, whole, _ = checked(capsys, tmp_path / "whole")
    code, parts, _ = checked(capsys, tmp_path / "parts", "--engine", "parts")
    assert code == 0
    assert parts.pop("parts") == 3
    assert all(": column incident has no value" in text for text in parts.pop("notices"))
    assert parts == {name: parts["path"] if name == "path" else whole[name] for name in whole if name != "notices"}


def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = tiny_fleet(hours=2)
    own = frame["server_name"] == "ppweb000"
    frame[own].to_parquet(tmp_path / "a.parquet")
    frame[own].to_parquet(tmp_path / "b.parquet")
    frame[~own].drop(columns="timestamp").to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"torn")
    code, summary, error = checked(capsys, tmp_path, "--engine", "parts")
    assert code == 1
    assert sorted({each["part"] for each in summary["violations"]}) == ["b.parquet", "c.parquet", "d.parquet"]
    assert "b.parquet: server ppweb000 is in a.parquet too; write all rows of a server into one file" in error
    assert (summary["servers"], summary["rows"]) == (2, 48)


def test_a_store_of_objects_is_checked_at_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_fleet(hours=2).to_parquet("memory://checked/fleet.parquet")
    assert checked(capsys, "memory://checked", "--engine", "parts")[0] == 0
    assert checked(capsys, "memory://empty", "--engine", "parts")[0] == 1
    assert checked(capsys, "memory://checked")[0] == 2
    assert checked(capsys, "fleet/", "--workers", "2")[0] == 2


@pytest.mark.slow
def test_ray_finds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="Ray (requirements-scale.txt) is not installed")
    for number in range(3):
        frame = tiny_fleet(hours=2, seed=number)
        frame.assign(server_name=frame["server_name"] + f"-{number % 2}").to_parquet(tmp_path / f"{number}.parquet")
    here = checked(capsys, tmp_path, "--engine", "parts")[:2]
    assert here[0] == 1
    assert checked(capsys, tmp_path, "--engine", "ray", "--workers", 1)[:2] == here


def test_parts_are_of_a_simulated_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert metrics_generator.main(["--parts", "0", "--out_dir", str(tmp_path)]) == 2
    assert "--parts is 0; give 1 to 90, the number of servers" in capsys.readouterr().err
    assert metrics_generator.main(["--parts", "2", "--stream", "http://localhost:1"]) == 2
    assert "--parts 2: --stream URL does not use it" in capsys.readouterr().err
