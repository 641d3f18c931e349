"""Checkpoints are restored exactly; one that does not fit the run is refused with the reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.training.checkpoint import CHECKPOINT_FORMAT, Checkpoint, CheckpointError, PartState, fingerprint

IDENTITY = {"--epochs": 20, "profiles": ("database", "web_api"), "--max-minutes": None}
STATE = PartState({"weights.a": torch.randn(3, 2), "random.cpu": torch.get_rng_state()}, {"steps": 7, "loss": 0.1})


def grid(**changes) -> FleetGrid:
    values = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    fields = {
        "servers": ("a", "b"),
        "profiles": ("database", None),
        "metrics": ("cpu_pct", "mem_pct", "latency_ms"),
        "start": np.datetime64("2026-03-02T00:00:00", "s"),
        "step_seconds": 300,
        "values": values,
    }
    return FleetGrid(**{**fields, **changes})


def test_parts_are_restored_bit_for_bit(tmp_path: Path) -> None:
    saved = Checkpoint.new(tmp_path, IDENTITY)
    saved.save("training", STATE)
    saved.save("comparison", PartState({"weights.a": torch.zeros(1)}, {"steps": 1}))
    parts = Checkpoint.resume(tmp_path, IDENTITY).parts
    assert parts["training"].counters == STATE.counters
    assert parts["comparison"].counters == {"steps": 1}
    assert set(parts["training"].tensors) == set(STATE.tensors)
    for name, value in STATE.tensors.items():
        assert torch.equal(parts["training"].tensors[name], value)


def test_resuming_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist, so there is nothing to resume"):
        Checkpoint.resume(tmp_path, IDENTITY)


def test_a_refusal_names_every_different_setting_with_both_values(tmp_path: Path) -> None:
    Checkpoint.new(tmp_path, IDENTITY).save("training", STATE)
    with pytest.raises(CheckpointError) as refused:
        Checkpoint.resume(tmp_path, {**IDENTITY, "--epochs": 30, "--max-minutes": 5.0})
    assert "--epochs (was 20, is 30)" in str(refused.value)
    assert "--max-minutes (was None, is 5.0)" in str(refused.value)
    assert "profiles" not in str(refused.value)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"x" * len(raw)])
def test_a_damaged_file_is_refused(tmp_path: Path, damage) -> None:
    saved = Checkpoint.new(tmp_path, IDENTITY)
    saved.save("training", STATE)
    saved.path.write_bytes(damage(saved.path.read_bytes()))
    with pytest.raises(CheckpointError, match="is damaged"):
        Checkpoint.resume(tmp_path, IDENTITY)


def test_a_checkpoint_without_a_format_version_is_refused_by_name(tmp_path: Path) -> None:
    """Checkpoints before format 2 had other names of tensors and counters."""
    path = Checkpoint.new(tmp_path, IDENTITY).path
    header = {"identity": IDENTITY, "parts": {"training": {"steps": 7, "course": []}}}
    save_file({"training/average.a": torch.zeros(1)}, path, metadata={"run": json.dumps(header)})
    with pytest.raises(CheckpointError) as refused:
        Checkpoint.resume(tmp_path, IDENTITY)
    assert f"{path} has checkpoint format 1, this software reads {CHECKPOINT_FORMAT}; train without" in str(
        refused.value
    )


def test_a_failed_save_keeps_the_earlier_checkpoint_and_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = Checkpoint.new(tmp_path, IDENTITY)
    saved.save("training", STATE)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    saved.save("training", PartState({}, {"steps": 8}))
    assert "No space left on device" in capsys.readouterr().err
    assert Checkpoint.resume(tmp_path, IDENTITY).parts["training"].counters["steps"] == 7
    assert [path.name for path in tmp_path.iterdir()] == [saved.path.name]


def test_the_fingerprint_depends_on_every_part_of_the_data() -> None:
    changed = grid().values.copy()
    changed[1, 2, 0] = np.nan
    others = [
        grid(servers=("a", "c")),
        grid(profiles=("database", "web_api")),
        grid(start=np.datetime64("2026-03-02T00:05:00", "s")),
        grid(step_seconds=600),
        grid(values=changed),
        grid(values=grid().values.reshape(2, 4, 3)[:, ::-1]),
    ]
    prints = [fingerprint(one) for one in (grid(), *others)]
    assert len(set(prints)) == len(prints)
    assert fingerprint(grid()) == prints[0]
