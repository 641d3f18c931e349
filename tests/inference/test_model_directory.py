"""A model directory that is not complete, unchanged and of supported versions is refused, with a message."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet_forecast.features.seasonality import SeasonalLags, seasonal_lags
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_config import ModelConfig, ModelError
from fleet_forecast.inference.model_directory import (
    MAX_MANIFEST_BYTES,
    new_model_directory,
    only_writer,
    promote,
    read_config,
    verify,
    write_manifest,
)
from tests.conftest import TINY_METRICS


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def test_a_published_model_has_the_documented_files_and_no_pickle(tiny_model_dir: Path) -> None:
    names = {path.name for path in tiny_model_dir.iterdir()}
    assert {
        "model.safetensors",
        "evaluated.safetensors",
        "model.onnx",
        "explain.onnx",
        "variable_weights.parquet",
        "attention.parquet",
        "config.json",
        "training_info.json",
        "evaluation.json",
        "report.html",
        "canary.json",
        "manifest.json",
        "cold_start.parquet",
        "scores_training.parquet",
        "scores_unseen.parquet",
    } == names
    manifest = json.loads((tiny_model_dir / "manifest.json").read_text())
    assert set(manifest["files"]) == names - {"manifest.json"}


def test_all_files_of_a_model_have_the_same_permissions(tiny_model_dir: Path) -> None:
    """The trainer and the daemon need not be the same user."""
    assert len({path.stat().st_mode for path in tiny_model_dir.iterdir()}) == 1


def test_current_is_a_relative_link_to_the_model(tiny_models_dir: Path, tiny_model_dir: Path) -> None:
    assert str((tiny_models_dir / "current").readlink()) == tiny_model_dir.name


def test_config_survives_a_round_trip(tiny_model_dir: Path) -> None:
    config = read_config(tiny_model_dir)
    again = ModelConfig.from_json(config.to_json())
    assert again.spec == config.spec
    assert again.profiles == ("database", "web_api")
    assert again.to_json() == config.to_json()
    assert again.measured_by_profile == {name: list(TINY_METRICS) for name in again.profiles}
    np.testing.assert_array_equal(again.scaling.loc, config.scaling.loc)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "explain.onnx", "config.json", "canary.json"])
def test_one_flipped_bit_in_any_file_is_refused(copy: Path, name: str) -> None:
    flip_a_bit(copy / name)
    with pytest.raises(ModelError, match=rf"{name}: is damaged .* copy it again or train again"):
        Engine.load(copy, device="cpu")


def test_a_truncated_file_is_refused(copy: Path) -> None:
    path = copy / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.onnx: is damaged"):
        verify(copy)


def test_missing_additional_and_linked_files_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "extra.bin").write_text("x")
    with pytest.raises(ModelError, match=r"extra\.bin: does not belong"):
        verify(copy)
    (copy / "extra.bin").unlink()
    moved = tmp_path / "config.json"
    (copy / "config.json").rename(moved)
    with pytest.raises(ModelError, match=r"config\.json: is missing"):
        verify(copy)
    (copy / "config.json").symlink_to(moved)
    with pytest.raises(ModelError, match=r"config\.json: is not a plain file"):
        verify(copy)


def test_a_half_written_directory_is_refused(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(ModelError, match=r"manifest.json: missing, so the model is not complete"):
        verify(copy)
    (copy / "manifest.json").write_text('{"files": 3}')
    with pytest.raises(ModelError, match="not a manifest"):
        verify(copy)


def test_a_folder_of_models_is_refused_with_a_model_to_use(tiny_models_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"holds models; give one of them, such as .*current"):
        verify(tiny_models_dir)


def test_a_file_instead_of_a_models_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with (
        pytest.raises(ModelError, match="file: is a file; give a folder as --models-dir"),
        only_writer(tmp_path / "file"),
    ):
        pass


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere: no such model directory; train one with tft_trainer.py"):
        verify(tmp_path / "nowhere")


def reseal(directory: Path) -> None:
    """Write a manifest that fits the changed files."""
    from fleet_forecast.inference.model_directory import write_manifest

    (directory / "manifest.json").unlink()
    write_manifest(directory)


@pytest.mark.parametrize("written", [{}, {"format_version": 1}, {"format_version": 99}])
def test_a_directory_of_another_format_is_refused_with_both_versions(copy: Path, written: dict[str, int]) -> None:
    """The first format had no version in its manifest."""
    path = copy / "manifest.json"
    path.write_text(json.dumps({**written, "files": json.loads(path.read_text())["files"]}))
    version = written.get("format_version", 1)
    with pytest.raises(
        ModelError, match=rf"manifest.json: format_version is {version}, this software reads 3; train again"
    ):
        Engine.load(copy, device="cpu")


def test_another_minor_version_of_the_contract_is_read(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["contract_version"] = "1.99.0"
    (copy / "config.json").write_text(json.dumps(config))
    reseal(copy)
    assert Engine.load(copy, device="cpu").config.contract_version == "1.99.0"


def test_a_missing_or_unknown_field_of_the_configuration_is_named(tiny_model_dir: Path) -> None:
    fields = json.loads((tiny_model_dir / "config.json").read_text())
    for changed, name in (({**fields, "extra": 1}, "extra"), ({**fields, "spec": {}}, "step_seconds")):
        with pytest.raises(ModelError, match=rf"config.json: not a model configuration \(.*{name}.*\); train again"):
            ModelConfig.from_json(json.dumps(changed))


def test_another_major_version_of_the_contract_is_refused_with_both_versions(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["contract_version"] = "9.9.9"
    (copy / "config.json").write_text(json.dumps(config))
    reseal(copy)
    with pytest.raises(ModelError, match=r"contract_version is '9.9.9', this software reads '1.1.0'; train again"):
        Engine.load(copy, device="cpu")


def test_another_version_of_windows_is_refused_with_both_versions(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["windows_version"] = 1
    (copy / "config.json").write_text(json.dumps(config))
    reseal(copy)
    with pytest.raises(ModelError, match=r"windows_version is 1, this software reads 8; train again"):
        Engine.load(copy, device="cpu")


def test_a_network_with_other_outputs_fails_its_canary(copy: Path) -> None:
    canary = json.loads((copy / "canary.json").read_text())
    canary["quantiles"][0][0][0][3] += 0.5
    (copy / "canary.json").write_text(json.dumps(canary))
    reseal(copy)
    with pytest.raises(ModelError, match="does not reproduce its canary forecast"):
        Engine.load(copy, device="cpu")


def test_windows_that_are_built_in_another_way_fail_the_canary(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary has a server with earlier days."""

    def narrow(*arguments: Any) -> SeasonalLags:
        found = seasonal_lags(*arguments)
        return found._replace(smoothed_mean=found.latest)

    Engine.load(copy, device="cpu")
    monkeypatch.setattr("fleet_forecast.features.windows.seasonal_lags", narrow)
    with pytest.raises(ModelError, match="does not reproduce its canary forecast"):
        Engine.load(copy, device="cpu")


def test_a_crash_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def write_and_crash() -> None:
        with new_model_directory(tmp_path, "model_a") as directory:
            (directory / "config.json").write_text("{}")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_and_crash()
    assert list(tmp_path.iterdir()) == []


def test_promotion_switches_the_link_and_keeps_the_old_model(tmp_path: Path) -> None:
    for name in ("model_a", "model_b"):
        with new_model_directory(tmp_path, name) as directory:
            (directory / "config.json").write_text(name)
        promote(tmp_path, name)
        assert (tmp_path / "current" / "config.json").read_text() == name
    assert verify(tmp_path / "model_a").name == "model_a"
    assert {path.name for path in tmp_path.iterdir()} == {"model_a", "model_b", "current"}


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "canary.json"])
def test_a_document_that_is_nested_too_deeply_is_named(copy: Path, name: str) -> None:
    (copy / name).write_text("[" * 100_000)
    if name != "manifest.json":
        (copy / "manifest.json").unlink()
        write_manifest(copy)
    with pytest.raises(ModelError, match=rf"{name}: not a "):
        Engine.load(copy, device="cpu")


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_a_path_that_is_not_a_regular_file_is_refused_at_once(copy: Path, name: str, kind: str) -> None:
    path = copy / name
    target = path.rename(copy.parent / f"elsewhere-{name}")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    else:
        path.mkdir()
    with pytest.raises(ModelError, match=rf"{name}: is not a plain file"):
        verify(copy)


def test_a_manifest_larger_than_any_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(ModelError, match="is larger than 1,048,576 bytes"):
        verify(copy)
