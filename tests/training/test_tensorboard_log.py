"""The TensorBoard log, read by TensorBoard's own reader."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest

import tft_trainer
from fleet_forecast.training.progress import TESTED_TENSORBOARD_VERSION
from tests.conftest import tiny_flags

ROOT = Path(__file__).resolve().parents[2]


def test_the_log_has_the_loss_history(tiny_training_dir: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    flags = [*tiny_flags(tiny_training_dir, tmp_path / "models"), "--tensorboard", str(tmp_path / "logs")]
    assert tft_trainer.main(flags) == 0
    history = json.loads((tmp_path / "models" / "current" / "training_info.json").read_text())["loss_history"]
    events = EventAccumulator(str(tmp_path / "logs" / "training")).Reload()
    assert {"loss", "validation_loss", "learning_rate", "windows_per_second"} <= set(events.Tags()["scalars"])
    for name in ("loss", "learning_rate"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(point["step"], pytest.approx(point[name], rel=1e-6)) for point in history]
    assert [event.step for event in events.Scalars("validation_loss")] == [0, *(point["step"] for point in history)]
    assert EventAccumulator(str(tmp_path / "logs" / "comparison")).Reload().Scalars("loss")


def test_without_the_package_the_error_names_the_remedy(
    tiny_training_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert tft_trainer.main([*tiny_flags(tiny_training_dir, tmp_path), "--tensorboard", "logs"]) == 1
    assert f"pip install tensorboard=={TESTED_TENSORBOARD_VERSION}" in capsys.readouterr().err
    assert f"tensorboard=={TESTED_TENSORBOARD_VERSION}\n" in (ROOT / "requirements-dev.txt").read_text()
