"""The trainer script: output, published model, refused input, and no leakage from test data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_forecasting import TemporalFusionTransformer
from safetensors.torch import load_file

import tft_trainer
from data_contract import CheckedMetrics, check_metrics
from fleet_forecast.commands import training_job, training_run
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.definitions import use_fleet
from fleet_forecast.contract.fleet.flag import load_fleet
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.inference.engine import Engine
from fleet_forecast.inference.model_directory import read_config
from fleet_forecast.inference.torch_backend import torch_run
from fleet_forecast.network.build import build_network
from fleet_forecast.network.loss import pinball_loss, sample_weight
from fleet_forecast.network.model import ForecastModel
from fleet_forecast.training.job import data_step_seconds, model_step_seconds
from fleet_forecast.training.split import Split, TrainingError
from fleet_forecast.training.trainer import learning_rate_factor
from server_profiles import BUILT_IN_RULES
from tests.conftest import tiny_fleet

SMALL = [
    "--epochs",
    "1",
    "--hidden-size",
    "8",
    "--context-hours",
    "4",
    "--horizon-hours",
    "1",
    "--device",
    "cpu",
    "--no-comparison",
    "--no-risk-model",
]


def run(folder: Path, models_dir: Path, *more: str) -> int:
    return tft_trainer.main(["--training-dir", str(folder), "--models-dir", str(models_dir), *SMALL, *more])


def write(folder: Path, frame: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "server_metrics.parquet", index=False)
    return folder


def test_the_stock_class_loads_the_trained_weights_and_gives_the_same_forecast(tiny_model_dir: Path) -> None:
    config = read_config(tiny_model_dir)
    stock = build_network(config.spec, config.profiles, config.hidden_size, TemporalFusionTransformer)
    stock.load_state_dict(load_file(tiny_model_dir / "model.safetensors"))
    by_stock = Engine(config, torch_run(ForecastModel(stock, config.spec, config.scaling)))
    by_engine = Engine.load(tiny_model_dir, device="cpu")
    history = np.random.default_rng(0).uniform(10, 60, (5, 60, 3)).astype(np.float32)
    history[1, :57] = np.nan
    profiles = ["database", "web_api", None, "database", "mainframe"]
    origin = np.datetime64("2026-03-04T15:00:00", "s")
    np.testing.assert_allclose(
        by_engine.forecast(history, profiles, origin),
        by_stock.forecast(history, profiles, origin),
        rtol=1e-4,
        atol=1e-3,
    )


def test_it_prints_the_transfer_lines_and_one_json_line_last(
    tiny_training_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_training_dir, tmp_path, "--holdout_servers", "ppdb007,ppweb006") == 0
    out = capsys.readouterr().out
    for line in (
        "[TRANSFER] Profile feature enabled - model will learn per-profile patterns",
        "[TRANSFER] Profiles detected: ['database', 'web_api']",
        "[TRANSFER] Model configured with profile-based transfer learning",
        "[TRANSFER] New servers will predict based on their profile patterns",
    ):
        assert line in out
    last = json.loads(out.strip().splitlines()[-1])
    assert Path(last["model_dir"]).is_dir()
    assert last["parameters"] > 0
    assert last["windows_per_second"] > 0
    assert set(last["scores"]) == {"training", "unseen"}
    for part in last["scores"].values():
        assert set(part) == {"model", "naive", "seasonal_naive", "window_quantiles_6h", "window_quantiles_24h"}
        assert {"wql", "mase", "wape", "accuracy", "coverage_80"} <= set(part["model"]["cpu_pct"])


def test_without_a_profile_column_the_message_names_cause_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "data", tiny_fleet().drop(columns="profile")[["timestamp", "server_name", "cpu_pct"]])
    assert run(folder, tmp_path / "models") == 0
    captured = capsys.readouterr()
    assert "Profile feature not enabled: the data has no profile column" in captured.out
    assert "Add a profile column" in captured.out
    assert "forecasting cpu_pct" in captured.err
    assert read_config(tmp_path / "models" / "current").targets == ("cpu_pct",)


def test_rules_of_the_fleet_file_give_profiles_as_a_column_does(tmp_path: Path) -> None:
    frame = tiny_fleet().drop(columns="profile")
    frame["server_name"] = frame["server_name"].str.replace("ppdb", "pg-").str.replace("ppweb", "shop-")
    folder = write(tmp_path / "data", frame)
    rules = "[profiles.database]\npatterns = ['pg-']\n[profiles.shop]\npatterns = ['shop-']\n"
    (tmp_path / "fleet.toml").write_text(rules)
    flags = ["--training-dir", str(folder), "--context-hours", "4", "--horizon-hours", "1"]
    arguments = tft_trainer.build_parser().parse_args(flags)
    with use_fleet(load_fleet(tmp_path / "fleet.toml")):
        assert training_job.prepare(training_job.read(arguments), arguments).profiles == ("database", "shop")
    assert training_job.prepare(training_job.read(arguments), arguments).profiles == ()


def test_with_a_single_profile_the_profile_feature_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "data", tiny_fleet().assign(profile="database"))
    assert run(folder, tmp_path / "models", "--no-promote") == 0
    assert "all training servers have the profile 'database'" in capsys.readouterr().out
    assert not (tmp_path / "models" / "current").exists()


@pytest.mark.slow
def test_weights_depend_on_the_seed_only(tiny_training_dir: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(tiny_training_dir, tmp_path / name, "--seed", seed, "--holdout-servers", "ppdb007") == 0
        weights.append(load_file(tmp_path / name / "current" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_weights_without_final_fit_do_not_depend_on_unseen_servers_and_the_test_period(tmp_path: Path) -> None:
    original = tiny_fleet()
    changed = original.copy()
    later = changed["timestamp"] >= changed["timestamp"].min() + pd.Timedelta(hours=48 * 0.7)
    unused = later | (changed["server_name"] == "ppdb007")
    changed.loc[unused, ["cpu_pct", "mem_pct"]] = np.float32(99.0)
    weights = []
    flags = ["--holdout-servers", "ppdb007", "--no-final-fit"]
    for name, frame in (("original", original), ("changed", changed)):
        folder = write(tmp_path / name, frame)
        assert run(folder, tmp_path / f"models_{name}", *flags) == 0
        weights.append(load_file(tmp_path / f"models_{name}" / "current" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_share_holds_out_servers_of_every_profile(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", tiny_fleet())
    assert run(folder, tmp_path / "models", "--holdout-servers", "0.25") == 0
    info = json.loads((tmp_path / "models" / "current" / "training_info.json").read_text())
    assert sorted(name[:4] for name in info["unseen_servers"]) == ["ppdb", "ppwe"]


def test_the_loss_equals_a_plain_loop_and_excludes_missing_targets() -> None:
    random = np.random.default_rng(0)
    scaled, targets = random.normal(size=(2, 3, 2, 7)), random.normal(size=(2, 3, 2))
    targets[0, 1, 1] = np.nan
    counts = random.uniform(0.5, 2, size=(2, 2))
    losses, weights = [], []
    for window, step, metric in np.ndindex(targets.shape):
        if np.isnan(targets[window, step, metric]):
            continue
        for column, level in enumerate((0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)):
            error = targets[window, step, metric] - scaled[window, step, metric, column]
            losses.append(level * error if error >= 0 else (level - 1) * error)
            weights.append(counts[window, metric])
    given = torch.from_numpy(scaled).permute(0, 2, 3, 1), torch.from_numpy(targets)
    assert pinball_loss(*given).item() == pytest.approx(np.mean(losses))
    assert pinball_loss(*given, torch.from_numpy(counts)).item() == pytest.approx(np.average(losses, weights=weights))


def test_the_loss_of_windows_without_any_measurement_is_zero() -> None:
    loss = pinball_loss(torch.randn(2, 1, 7, 3), torch.full((2, 3, 1), torch.nan), torch.ones(2, 1))
    assert loss.item() == 0.0


def test_a_window_of_sixteen_times_the_scale_has_twice_the_weight_in_every_unit() -> None:
    weights = sample_weight(torch.tensor([[1.0, 3e5], [16.0, 3e5], [1.0, 48e5]]))
    assert weights[1, 0] / weights[0, 0] == pytest.approx(2.0)
    assert weights[2, 1] / weights[0, 1] == pytest.approx(2.0)
    assert weights.mean(dim=0).tolist() == pytest.approx([1.0, 1.0])


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate_factor(progress) for progress in np.linspace(0, 1, 101)]
    peak = int(np.argmax(rates))
    assert rates[peak] == pytest.approx(1.0, abs=0.01)
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] == pytest.approx(0, abs=1e-6)


# --- refused input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "argument --epochs: 0: must be at least 1"),
        (["--epoch_count", "3"], "unrecognized arguments: --epoch_count"),
        (["--max-minutes", "-1"], "-1: must be above 0"),
        (["--train_fraction", "1.5"], "1.5: must be above 0 and below 1"),
        (["--hidden-size", "30"], "30: must be a multiple of 4"),
        (["--learning-rate", "nan"], "nan: must be above 0"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_wrong_usage_exits_2_and_names_flag_and_value(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        tft_trainer.main(flags)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_fleet_file_that_is_not_there_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, tmp_path / "models", "--fleet", "no.toml") == 2
    assert "error: fleet file no.toml: no such file" in capsys.readouterr().err


def refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Exit code 1, nothing published, no traceback; returns the message."""
    assert run(folder, tmp_path / "models", *more) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ") or "error: " in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())
    return captured.err


def test_a_missing_training_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path / "nowhere") in refused(tmp_path / "nowhere", tmp_path, capsys)


def test_an_empty_training_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(tmp_path / "empty", tmp_path, capsys)


def test_an_unreadable_parquet_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "server_metrics.parquet").write_bytes(b"PAR1 this is not a parquet file")
    assert "server_metrics.parquet" in refused(tmp_path / "data", tmp_path, capsys)


def test_missing_columns_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "data", tiny_fleet().drop(columns="timestamp"))
    assert "timestamp" in refused(folder, tmp_path, capsys)


def read_with_notes(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[CheckedMetrics, str]:
    """The checked data, and the notes on stderr."""
    data = training_job.read(tft_trainer.build_parser().parse_args(["--training-dir", str(folder)]))
    return data, capsys.readouterr().err


def test_text_in_a_cell_is_left_out_and_named_with_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = tiny_fleet()
    frame["cpu_pct"] = frame["cpu_pct"].astype(str).where(frame.index != 5, "none yet")
    data, notes = read_with_notes(write(tmp_path / "data", frame), capsys)
    (values,) = [batch.metrics["cpu_pct"] for batch in data.batches(["cpu_pct"])]
    assert np.flatnonzero(np.isnan(values)).tolist() == [5]
    assert "cpu_pct" in notes
    assert "none yet" in notes


def test_a_column_of_text_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = tiny_fleet()
    frame["cpu_pct"] = "none yet"
    assert "cpu_pct" in refused(write(tmp_path / "data", frame), tmp_path, capsys)


def test_repeated_rows_count_once_and_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = tiny_fleet()
    data, notes = read_with_notes(write(tmp_path / "data", pd.concat([frame, frame.head(3)])), capsys)
    assert data.rows == len(frame)
    assert "3 rows" in notes


def test_different_rows_of_one_server_and_time_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = tiny_fleet()
    other = frame.head(3).assign(cpu_pct=np.float32(1.5))
    message = refused(write(tmp_path / "data", pd.concat([frame, other])), tmp_path, capsys)
    assert "server_name, timestamp" in message


def test_timestamps_without_a_zone_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = tiny_fleet()
    frame["timestamp"] = frame["timestamp"].dt.tz_localize(None)
    message = refused(write(tmp_path / "data", frame), tmp_path, capsys)
    assert "timestamp" in message
    assert "zone" in message


def test_data_shorter_than_a_window_are_refused_with_the_hours_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(write(tmp_path / "data", tiny_fleet(hours=5)), tmp_path, capsys)
    assert "60 time steps are too few" in message
    assert "provide at least 9" in message


def test_unknown_holdout_servers_are_named(
    tiny_training_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(tiny_training_dir, tmp_path, capsys, "--holdout-servers", "ppdb007,ppdb999")
    assert "no server named ppdb999" in message
    assert "must be at least 0 and below 1" in refused(tiny_training_dir, tmp_path, capsys, "--holdout-servers", "1.5")


def test_unknown_time_zones_and_invalid_steps_are_named(
    tiny_training_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Mars/Olympus" in refused(tiny_training_dir, tmp_path, capsys, "--timezone", "Mars/Olympus")
    message = refused(tiny_training_dir, tmp_path, capsys, "--step-seconds", "70")
    assert (
        "--step-seconds 70: must divide a day and not be finer than the data's 300 s; choose one such as 300" in message
    )
    rare = write(tmp_path / "rare", tiny_fleet(hours=100 * 24, step_seconds=2 * 86_400))
    assert "timestamp: rows are 172800 s apart" in refused(rare, tmp_path, capsys)


@pytest.mark.parametrize(("distance_seconds", "step_seconds"), [(10, 300), (301, 300), (313, 320), (900, 900)])
def test_the_models_step_divides_a_day_for_every_interval_of_the_rows(
    distance_seconds: int, step_seconds: int, tmp_path: Path
) -> None:
    data = check_metrics(write(tmp_path, tiny_fleet(hours=4, step_seconds=distance_seconds)), BUILT_IN_RULES)
    assert model_step_seconds(data_step_seconds(data), None) == step_seconds


def test_a_metric_without_training_measurements_is_dropped_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = np.ones((3, 100, 2), dtype=np.float32)
    values[:2, :50, 1] = np.nan  # measured by the unseen server, and later
    spec = WindowSpec(("cpu_pct", "latency_ms"), 3600, BusinessCalendar("UTC"), 12, 4)
    grid = FleetGrid(("a", "b", "c"), (None,) * 3, spec.metrics, np.datetime64("2026-03-02", "s"), 3600, values)
    split = Split(np.array([0, 1]), np.empty(0, int), np.array([2]), train_end=50, test_start=70)
    left, spec_of_it = training_job.drop_unmeasured_metrics(grid, spec, split)
    assert left.metrics == spec_of_it.metrics == ("cpu_pct",)
    assert left.values.shape == (3, 100, 1)
    assert "no training server has latency_ms before 2026-03-04T02:00:00Z: not forecast" in capsys.readouterr().err
    values[:, 70:] = np.nan
    with pytest.raises(TrainingError, match=r"in the test period, from 2026-03-04T22:00:00Z on"):
        training_job.drop_unmeasured_metrics(grid, spec, split)
    values[:2, :50] = np.nan
    with pytest.raises(TrainingError, match="no training server has a measurement before"):
        training_job.drop_unmeasured_metrics(grid, spec, split)


def test_a_horizon_of_part_steps_is_refused_with_the_nearest() -> None:
    assert training_job.steps_of(8.0, 300, "--horizon-hours") == 96
    assert training_job.steps_of(0.333333, 300, "--horizon-hours") == 4, "a third of an hour, rounded"
    with pytest.raises(TrainingError, match=r"8\.01: not a whole number of steps of 300 s; give 8 \(96 steps\)"):
        training_job.steps_of(8.01, 300, "--horizon-hours")


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808"])
def test_an_invalid_seed_is_refused(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tft_trainer.main(["--seed", seed])
    assert ended.value.code == 2
    assert "must be at least 0" in capsys.readouterr().err


def test_a_models_folder_that_cannot_be_written_is_named(
    tiny_training_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert run(tiny_training_dir, tmp_path / "file" / "models") == 1
    captured = capsys.readouterr()
    assert f"{tmp_path / 'file'}" in captured.err
    assert "[TRANSFER]" not in captured.out, "refused before the data are read"


def test_finer_samples_are_averaged_onto_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "data", tiny_fleet(hours=12, step_seconds=60))
    assert run(folder, tmp_path / "models") == 0
    assert "averaging samples every 60 s onto steps of 300 s" in capsys.readouterr().err
    assert read_config(tmp_path / "models" / "current").step_seconds == 300


def test_excluded_measurements_are_as_if_they_had_not_been_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prepared job equals that of data without these rows; a wrong file is refused."""
    exclusions = tmp_path / "exclusions.toml"
    exclusions.write_text(
        "[[silences]]\npattern = 'ppdb.*'\nkind = 'exclude'\n"
        "from = 2026-03-02T04:00:00Z\nuntil = 2026-03-02T06:00:00Z\n"
    )
    frame = tiny_fleet()
    hours = frame["timestamp"].dt.hour + 24 * (frame["timestamp"].dt.day - 2)
    kept = ~(frame["server_name"].str.startswith("ppdb") & hours.isin([4, 5]))
    grids = []
    for name, rows, more in (("all", frame, ["--exclusions", str(exclusions)]), ("less", frame[kept], [])):
        flags = ["--training-dir", str(write(tmp_path / name, rows)), *SMALL, *more]
        arguments = tft_trainer.build_parser().parse_args(flags)
        grids.append(training_job.prepare(training_job.read(arguments), arguments).grid)
    np.testing.assert_array_equal(grids[0].values, grids[1].values)
    assert "measurements of 96 server-steps are excluded" in capsys.readouterr().err
    exclusions.write_text("[[silences]]\nserver = 'a'\n")
    assert run(tmp_path / "all", tmp_path / "models", "--exclusions", str(exclusions)) == 2
    assert "from or until is missing" in capsys.readouterr().err


def test_ctrl_c_ends_training_early_and_still_publishes(tiny_training_dir: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    command = [
        sys.executable,
        "tft_trainer.py",
        "--training-dir",
        str(tiny_training_dir),
        "--models-dir",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        [*command, *SMALL, "--epochs", "500", "--holdout-servers", "0"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    seen = ""
    while "windows/s" not in seen:  # training is under way
        character = process.stderr.read(1)
        assert character, seen
        seen += character
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    last = json.loads(out.strip().splitlines()[-1])
    assert last["stopped_by"] == "ctrl-c"
    assert Engine.load(tmp_path / "current", device="cpu").config.targets == ("cpu_pct", "mem_pct", "net_in_mb_s")


def test_contention_is_noted_when_there_is_more_than_one_thread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_run, "free_processors", lambda: 0.9)
    training_run.note_cpu_contention(threads=1)
    assert capsys.readouterr().err == ""
    training_run.note_cpu_contention(threads=2)
    assert capsys.readouterr().err.startswith("note: other processes leave 0.9 processors free, and 2 threads wait")


def test_ray_is_refused_below_torchrun_and_with_a_wrong_fleet_before_it_starts(tmp_path, capsys, monkeypatch):
    flags = ["--engine", "ray", "--models-dir", str(tmp_path / "models")]
    (tmp_path / "fleet.toml").write_text("timezone = 'Nowhere/Land'")
    assert tft_trainer.main([*flags, "--fleet", str(tmp_path / "fleet.toml")]) == 2
    assert "Nowhere/Land" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert tft_trainer.main(flags) == 2
    assert "--engine ray: this is a process of torchrun" in capsys.readouterr().err
    assert tft_trainer.main(["--workers", "2"]) == 2
    assert "it goes with --engine ray; add that, or leave it out" in capsys.readouterr().err
