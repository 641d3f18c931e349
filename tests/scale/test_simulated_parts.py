"""A fleet simulated in parts, at an address or by Ray, has the bytes that --parts writes on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

import data_contract
import metrics_generator
from fleet_forecast.contract.specs import METADATA_FILE
from fleet_forecast.scale.parts import Folder

FLEET = ("--hours", "30", "--num_ml_compute", "0", "--seed", "3", "--incident_rate", "40", "--offline_mode", "sparse")


def generated(*flags: object) -> int:
    return metrics_generator.main([*FLEET, *map(str, flags)])


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("simulated")
    assert generated("--parts", 4, "--out_dir", folder) == 0
    assert Folder(str(folder)).interrupted_note(Folder(str(folder)).parts()) is None
    return content(folder)


def test_an_address_has_the_bytes_of_a_folder(expected: dict[str, bytes], tmp_path: Path) -> None:
    assert generated("--parts", 4, "--out_dir", f"file://{tmp_path / 'out'}") == 0
    assert content(tmp_path / "out") == expected
    assert generated("--parts", 4, "--out_dir", f"file://{tmp_path / 'out'}") == 0, "the same files are replaced"


@pytest.mark.slow
def test_a_ray_cluster_writes_the_same_bytes(expected: dict[str, bytes], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray (requirements-scale.txt) is not installed")
    assert generated("--engine", "ray", "--workers", 2, "--parts", 4, "--out_dir", tmp_path / "out") == 0
    assert content(tmp_path / "out") == expected


@pytest.mark.slow
def test_more_workers_than_cores_are_refused_instead_of_waited_for(tmp_path: Path, capsys) -> None:
    pytest.importorskip("ray", reason="Ray (requirements-scale.txt) is not installed")
    assert generated("--engine", "ray", "--workers", 900, "--out_dir", tmp_path) == 2
    assert "--workers 900: this machine has" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1"])
def test_an_address_where_no_cluster_is_ends_at_once(address: str, tmp_path: Path, capsys) -> None:
    pytest.importorskip("ray", reason="Ray (requirements-scale.txt) is not installed")
    assert generated("--engine", "ray", "--ray_address", address, "--out_dir", tmp_path) == 2
    assert f"--ray-address {address}: " in capsys.readouterr().err


def test_an_interrupted_run_has_no_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    address = f"file://{tmp_path}"
    assert generated("--parts", 2, "--out_dir", address) == 0

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fleet_forecast.scale.simulated_parts.write_part", full)
    assert generated("--parts", 2, "--out_dir", address) == 1
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert not (tmp_path / METADATA_FILE).exists()
    assert data_contract.main(["--engine", "parts", str(tmp_path)]) == 0
    assert f"has no {METADATA_FILE}; if metrics_generator.py wrote these files" in capsys.readouterr().out


def test_a_folder_with_files_of_another_run_is_refused(tmp_path: Path, capsys) -> None:
    assert generated("--parts", 3, "--out_dir", f"file://{tmp_path}") == 0
    before = content(tmp_path)
    assert generated("--parts", 2, "--out_dir", f"file://{tmp_path}") == 1
    assert "server_metrics/servers-0000024.parquet, which this run does not write" in capsys.readouterr().err
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ray_address", "ray://head:10001"), "--ray_address: it goes with --engine ray"),
        (("--engine", "ray", "--stream", "http://127.0.0.1:1"), "--engine ray: --stream URL does not use it"),
        (("--out_dir", "s3://fleet", "--plot", "week.png"), "--out_dir: --plot FILE does not use it"),
        (("--out_dir", "s3://fleet", "--parts", "1000"), "--parts is 1000; give 1 to 70, the number of servers"),
        (("--out_dir", "s3://fleet", "--workers", "0"), "--workers is 0; give 1 or more"),
    ],
)
def test_flags_that_contradict_are_refused_with_the_remedy(flags: tuple[str, ...], message: str, capsys) -> None:
    assert generated(*flags) == 2
    assert message in capsys.readouterr().err


def test_an_address_in_memory_is_refused(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        generated("--out_dir", "memory://fleet")
    assert "memory://fleet: ends with the command" in capsys.readouterr().err


def test_a_file_as_the_target_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    assert generated("--out_dir", f"file://{tmp_path / 'file'}") == 1
    assert "is a file; give a folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_target_that_a_worker_cannot_write_is_one_line(capfd) -> None:
    pytest.importorskip("ray", reason="Ray (requirements-scale.txt) is not installed")
    assert generated("--engine", "ray", "--parts", 2, "--out_dir", "/proc/nowhere") == 1
    err = capfd.readouterr().err
    assert "error: /proc/nowhere: server_metrics/servers-0000000.parquet cannot be written" in err
    assert "Traceback" not in err


def test_an_address_that_nothing_can_reach_is_refused(capsys) -> None:
    assert generated("--out_dir", "nosuch://fleet") == 1
    assert "nosuch://fleet: cannot be reached" in capsys.readouterr().err
