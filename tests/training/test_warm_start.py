"""Warm start: initial loss, new and removed profiles, refused architectures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tft_trainer
from fleet_forecast.commands.training_run import starter_or
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.inference.model_directory import STARTER_DIR, WEIGHTS_FILE
from fleet_forecast.network.build import build_network
from fleet_forecast.training.warm_start import PROFILE_EMBEDDING, earlier_config, load_earlier_weights, profile_rows
from tests.conftest import tiny_flags, tiny_fleet


def run(training_dir: Path, models_dir: Path, *more: str) -> int:
    return tft_trainer.main([*tiny_flags(training_dir, models_dir), *more])


def info(model_dir: Path) -> dict:
    return json.loads((model_dir / "training_info.json").read_text())


def test_the_first_validation_loss_is_the_earlier_models_best(tiny_training_dir: Path, tmp_path: Path) -> None:
    assert run(tiny_training_dir, tmp_path / "earlier", "--no-final-fit") == 0
    model_dir = tmp_path / "earlier" / "current"
    assert run(tiny_training_dir, tmp_path / "warm", "--warm-start", str(model_dir), "--no-final-fit") == 0
    warm, earlier = info(tmp_path / "warm" / "current"), info(model_dir)
    assert warm["first_validation_loss"] == pytest.approx(earlier["best_validation_loss"], rel=1e-5)
    assert warm["first_validation_loss"] < earlier["first_validation_loss"]
    assert warm["best_validation_loss"] <= warm["first_validation_loss"]
    assert earlier["comparison"]
    assert not warm["comparison"], "the ablation would have other initial weights"


def test_new_profiles_are_added_and_missing_ones_removed(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tiny_fleet()
    fleet.loc[fleet["server_name"].isin(["ppdb001", "ppdb003"]), "profile"] = "ml_compute"
    fleet.loc[fleet["profile"] == "web_api", "profile"] = "generic"
    (tmp_path / "data").mkdir()
    fleet.to_parquet(tmp_path / "data" / "server_metrics.parquet", index=False)
    assert run(tmp_path / "data", tmp_path / "models", "--warm-start", str(tiny_model_dir)) == 0
    err = capsys.readouterr().err
    assert "start as the unknown one: generic, ml_compute" in err
    assert "profiles without a training server are removed: web_api" in err


def test_a_known_profile_keeps_its_embedding_and_a_new_one_gets_that_of_the_unknown_profile() -> None:
    rows = torch.arange(6.0).reshape(3, 2)  # unknown, database, web_api
    moved = profile_rows(rows, ("database", "web_api"), ("generic", "web_api"))
    assert moved.tolist() == [[0.0, 1.0], [0.0, 1.0], [4.0, 5.0]]


def test_only_the_profile_embedding_depends_on_the_number_of_profiles() -> None:
    spec = WindowSpec(("cpu_pct",), 300, BusinessCalendar("UTC"), 24, 12)
    few, many = (build_network(spec, profiles, 8).state_dict() for profiles in (("a", "b"), tuple("abcdefgh")))
    differing = [name for name in few if few[name].shape != many[name].shape]
    assert differing == [PROFILE_EMBEDDING]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--hidden-size", "12"], "hidden size (there 8, here 12)"),
        (["--context-hours", "5", "--horizon-hours", "2"], "horizon in steps (there 12, here 24)"),
        (["--step-seconds", "600"], "step in seconds (there 300, here 600)"),
    ],
)
def test_another_architecture_is_refused_with_its_difference(
    tiny_training_dir: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    flags: list[str],
    named: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tiny_training_dir, tmp_path, "--warm-start", str(tiny_model_dir), *flags) == 1
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_further_metrics_and_a_folder_without_a_model_are_refused(
    tiny_training_dir: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    tiny_fleet().assign(latency_ms=5.0).to_parquet(tmp_path / "data" / "server_metrics.parquet", index=False)
    assert run(tmp_path / "data", tmp_path / "models", "--warm-start", str(tiny_model_dir)) == 1
    metrics = "'cpu_pct', 'mem_pct', 'net_in_mb_s'"
    assert f"metrics (there ({metrics}), here ({metrics}, 'latency_ms'))" in capsys.readouterr().err
    assert run(tiny_training_dir, tmp_path / "models", "--warm-start", str(tmp_path / "nothing")) == 1
    assert "nothing: no such model directory" in capsys.readouterr().err


def test_a_fleet_with_fewer_metrics_and_no_profiles_starts_from_the_weights_that_both_networks_have() -> None:
    calendar = BusinessCalendar("UTC")
    spec = WindowSpec(("net_in_mb_s",), 300, calendar, 288, 96)
    network = build_network(spec, (), 32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    earlier = earlier_config(STARTER_DIR, spec, (), 32)
    load_earlier_weights(network, spec.metrics, (), STARTER_DIR, earlier)
    weights, after = load_file(STARTER_DIR / WEIGHTS_FILE), network.state_dict()
    assert torch.equal(after["output_layer.weight"], weights["output_layer.3.weight"])
    assert torch.equal(after["lstm_encoder.weight_hh_l0"], weights["lstm_encoder.weight_hh_l0"])
    anew = {name for name in after if torch.equal(after[name], before[name]) and after[name].unique().numel() > 1}
    assert anew
    assert all(".flattened_grn." in name for name in anew), "only what weighs the variables starts anew"


def test_the_word_starter_is_the_projects_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert starter_or(Path("starter")) == STARTER_DIR
    (tmp_path / "starter").mkdir()
    assert starter_or(Path("starter")) == Path("starter")
