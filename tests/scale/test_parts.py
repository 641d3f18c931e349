"""A fleet in parts is forecast as the whole fleet is, to the bit; by a Ray cluster too, even if it loses a machine."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tft_inference
from fleet_forecast.contract.metadata import DataFileError
from fleet_forecast.features import peers
from fleet_forecast.scale.parts import Folder
from tests.conftest import tiny_fleet

KEYS = ["server_name", "origin", "step", "metric"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny fleet in whole.parquet, and in four folders of parts/ with two servers each."""
    folder = tmp_path_factory.mktemp("fleet")
    frame = tiny_fleet(hours=12)
    frame.loc[(frame["server_name"] == "ppweb004") & (frame["timestamp"].dt.hour > 9), ["cpu_pct", "mem_pct"]] = np.nan
    frame.to_parquet(folder / "whole.parquet")
    names = sorted(frame["server_name"].unique())
    for part in range(4):
        own = frame[frame["server_name"].isin(names[part::4])]
        if part == 3:  # begins later than the others
            own = own[own["timestamp"] >= frame["timestamp"].min() + pd.Timedelta(hours=3, minutes=10)]
        (folder / "parts" / f"rack={part}").mkdir(parents=True)
        own.to_parquet(folder / "parts" / f"rack={part}" / "metrics.parquet")
    late = frame["server_name"].isin(names[3::4])
    begin = frame["timestamp"].min() + pd.Timedelta(hours=3, minutes=10)
    frame[~late | (frame["timestamp"] >= begin)].to_parquet(folder / "whole.parquet")
    return folder


def run(model: Path, *flags: object) -> int:
    return tft_inference.main(["--model", str(model), "--threads", "1", *map(str, flags)])


def forecasts(path: Path) -> pd.DataFrame:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    frame = pd.concat([pd.read_parquet(file, partitioning=None) for file in files])
    return frame.sort_values(KEYS, ignore_index=True)


ORIGINS = {"last": (), "regular": ("--origins", "every:2h", "--from", "2026-03-02T01:00:00Z")}


@pytest.mark.parametrize("origins", ORIGINS.values(), ids=ORIGINS)
def test_parts_give_the_forecasts_of_the_whole_fleet_to_the_bit(
    fleet: Path, tiny_model_dir: Path, tmp_path: Path, origins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "MAX_MEMBERS", 3)  # fewer than a profile has: they are chosen in the whole fleet
    assert (
        run(tiny_model_dir, "--input", fleet / "whole.parquet", "--output", tmp_path / "whole.parquet", *origins) == 0
    )
    parts = ("--engine", "parts", "--input", fleet / "parts", "--output", tmp_path / "parts")
    assert run(tiny_model_dir, *parts, *origins) == 0
    whole = forecasts(tmp_path / "whole.parquet")
    assert len(whole) > 200
    assert whole["peers"].max() == 3
    pd.testing.assert_frame_equal(forecasts(tmp_path / "parts"), whole, check_exact=True)
    manifest = json.loads((tmp_path / "parts" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["servers"], manifest["failed"]) == (len(whole), 8, {})
    assert [part["part"] for part in manifest["parts"]] == [f"rack={part}/metrics.parquet" for part in range(4)]


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same(fleet: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray (requirements-scale.txt) is not installed")
    same = ("--input", fleet / "parts", "--output")
    assert run(tiny_model_dir, "--engine", "parts", *same, tmp_path / "here") == 0
    assert run(tiny_model_dir, "--engine", "ray", "--workers", 1, *same, f"file://{tmp_path / 'ray'}") == 0
    pd.testing.assert_frame_equal(forecasts(tmp_path / "ray"), forecasts(tmp_path / "here"), check_exact=True)
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("here", "ray")]
    assert manifests[0] == manifests[1]


@pytest.mark.slow
def test_a_lost_machine_loses_no_part(tiny_model_dir: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray (requirements-scale.txt) is not installed")
    from ray.cluster_utils import Cluster

    frame = tiny_fleet(hours=48)
    (tmp_path / "parts").mkdir()
    for copy in range(60):
        renamed = frame.assign(server_name=frame["server_name"] + f"-{copy:02d}")
        renamed.to_parquet(tmp_path / "parts" / f"part-{copy:02d}.parquet")
    same = ("--input", tmp_path / "parts", "--output")
    assert run(tiny_model_dir, "--engine", "parts", *same, tmp_path / "here") == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    codes: list[int] = []
    flags = ("--engine", "ray", "--ray-address", cluster.address, "--workers", 3, *same, tmp_path / "ray")
    running = threading.Thread(target=lambda: codes.append(run(tiny_model_dir, *flags)))
    try:
        running.start()
        deadline = time.monotonic() + 300
        while sum(1 for _ in (tmp_path / "ray").glob("*.parquet")) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        cluster.remove_node(machines[0], allow_graceful=False)
        running.join(300)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert codes == [0]
    pd.testing.assert_frame_equal(forecasts(tmp_path / "ray"), forecasts(tmp_path / "here"), check_exact=True)
    assert json.loads((tmp_path / "ray" / "manifest.json").read_text())["servers"] == 480


def test_a_part_that_cannot_be_used_is_named_and_the_others_are_forecast(
    fleet: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "good.parquet").write_bytes((fleet / "parts" / "rack=0" / "metrics.parquet").read_bytes())
    (parts / "torn.parquet").write_bytes(b"PAR1 and no more")
    tiny_fleet(hours=2).assign(server_name="other").drop(columns=["timestamp"]).to_parquet(parts / "timeless.parquet")
    (parts / "_temporary.parquet").write_bytes(b"half written")
    flags = ("--engine", "parts", "--input", parts, "--output", tmp_path / "out")
    assert run(tiny_model_dir, *flags) == 1
    error = capsys.readouterr().err
    assert "2 of 3 parts have no forecasts (manifest.json): timeless.parquet: " in error
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "not readable as parquet" in manifest["failed"]["torn.parquet"]
    assert "timestamp" in manifest["failed"]["timeless.parquet"]
    assert forecasts(tmp_path / "out")["server_name"].nunique() == 2


def test_a_server_in_two_parts_is_refused_by_name(tiny_model_dir: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("a", "b"):
        tiny_fleet(hours=2).to_parquet(tmp_path / "parts" / f"{name}.parquet")
    assert run(tiny_model_dir, "--engine", "parts", "--input", tmp_path / "parts", "--output", tmp_path / "out") == 1
    assert "server ppdb001 is in a.parquet and in b.parquet; write all rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--engine", "parts", "--input", "IN", "--output", "IN/out"), "is in the folder of --input"),
        (("--engine", "parts", "--input", "IN"), "--output is missing; --engine parts"),
        (("--engine", "parts", "--input", "IN", "--output", "OUT", "--origins", "every:2h"), "--from is missing"),
        (("--input", "s3://bucket/fleet", "--output", "OUT"), "--input s3://bucket/fleet: is an address; add --engine"),
        (("--input", "IN", "--output", "OUT", "--workers", "2"), "--workers 2: it goes with --engine ray"),
        (("--engine", "parts", "--audit", "--input", "IN"), "--audit and --engine parts are given; choose"),
    ],
)
def test_flags_that_contradict_are_refused_with_the_remedy(
    tiny_model_dir: Path, fleet: Path, tmp_path: Path, capsys, flags: tuple[str, ...], message: str
) -> None:
    places = {"IN": str(fleet / "parts"), "OUT": str(tmp_path / "out"), "IN/out": str(fleet / "parts" / "out")}
    assert run(tiny_model_dir, *(places.get(flag, flag) for flag in flags)) == 2
    assert message in capsys.readouterr().err


def test_an_output_with_files_of_something_else_is_refused(fleet: Path, tiny_model_dir: Path, tmp_path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.parquet").write_bytes(b"")
    assert run(tiny_model_dir, "--engine", "parts", "--input", fleet / "parts", "--output", tmp_path / "out") == 1
    assert "has old.parquet, which this run does not write; give an empty folder" in capsys.readouterr().err


def test_an_address_without_a_file_system_is_refused() -> None:
    with pytest.raises(DataFileError, match="nowhere://fleet: cannot be reached"):
        Folder("nowhere://fleet")
    with pytest.raises(DataFileError, match="holds no parquet files"):
        Folder("memory://empty").parts()


def test_a_folder_in_a_store_of_objects_is_listed_and_written() -> None:
    """fsspec's store in memory stands for a remote one: it has no local paths."""
    folder = Folder("memory://fleet/forecasts")
    with folder.new("day=1/part.parquet") as file:
        file.write_bytes(b"content")
    assert [part.name for part in folder.parts()] == ["day=1/part.parquet"]
    folder.refuse_other_files(["day=1/part.parquet"])
    folder.write_manifest({"rows": 1})
    with pytest.raises(DataFileError, match=r"has day=1/part\.parquet, which this run does not write"):
        folder.refuse_other_files(["manifest.json"])
    folder.remove("manifest.json")
    folder.remove("manifest.json")
