"""Shared fixtures: a tiny fleet, and a tiny model trained on it by the trainer script."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings

import tft_trainer
from fleet_forecast.training import trainer
from tests.risk_models import with_risk_model

settings.register_profile("no deadline", deadline=None)  # the machine may be busy
settings.load_profile("no deadline")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Background commands of a shell ignore SIGINT and children inherit this; tests of Ctrl-C need the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # more threads make tiny models slower
trainer.VALIDATION_BATCHES = 3  # otherwise validation takes longer than the training

TINY_METRICS = ("cpu_pct", "mem_pct", "net_in_mb_s")


def tiny_fleet(hours: int = 48, step_seconds: int = 300, seed: int = 0) -> pd.DataFrame:
    """Rows of eight servers of two profiles with daily seasonality, own levels and noise, in the contract's columns."""
    random = np.random.default_rng(seed)
    steps = hours * 3600 // step_seconds
    timestamps = pd.date_range("2026-03-02", periods=steps, freq=f"{step_seconds}s", tz="UTC")
    phase = np.sin(2 * np.pi * np.arange(steps) * step_seconds / 86_400)
    parts = []
    for index in range(8):
        profile, prefix, level = ("database", "ppdb", 60.0) if index % 2 else ("web_api", "ppweb", 25.0)
        own = level + random.normal(0, 3)
        parts.append(
            pd.DataFrame(
                {
                    "timestamp": timestamps,
                    "server_name": f"{prefix}{index:03d}",
                    "profile": profile,
                    "cpu_pct": np.clip(own + 10 * phase + random.normal(0, 2, steps), 0, 100),
                    "mem_pct": np.clip(own + 5 + random.normal(0, 1, steps), 0, 100),
                    "net_in_mb_s": np.maximum(own * (1 + 0.3 * phase) + random.normal(0, 2, steps), 0),
                }
            )
        )
    return pd.concat(parts, ignore_index=True).astype(dict.fromkeys(TINY_METRICS, "float32"))


def tiny_flags(training_dir: Path, models_dir: Path) -> list[str]:
    """The trainer's flags for a tiny model: six steps, and two of the ablation without profiles; no risk model."""
    flags = {
        "--training-dir": training_dir,
        "--models-dir": models_dir,
        "--device": "cpu",
        "--epochs": 1,
        "--hidden-size": 8,
        "--context-hours": 4,
        "--horizon-hours": 1,
        "--batch-size": 32,
        "--holdout-servers": "ppdb007,ppweb006",
    }
    return [*(str(text) for pair in flags.items() for text in pair), "--no-risk-model"]


def tiny_flags_of_history(history: Path, models_dir: Path) -> list[str]:
    """The same on what a daemon stored."""
    _, _, *rest = tiny_flags(history, models_dir)
    return ["--from-history", str(history), *rest]


@pytest.fixture(scope="session")
def tiny_training_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder with the tiny fleet."""
    folder = tmp_path_factory.mktemp("training")
    tiny_fleet().to_parquet(folder / "server_metrics.parquet", index=False)
    return folder


@pytest.fixture(scope="session")
def tiny_models_dir(tiny_training_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `current`: 3 metrics, 2 profiles, 4 h of context, 1 h of horizon, 300 s steps."""
    models_dir = tmp_path_factory.mktemp("models")
    assert tft_trainer.main(tiny_flags(tiny_training_dir, models_dir)) == 0
    return models_dir


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_models_dir: Path) -> Path:
    """The tiny model's own directory."""
    return (tiny_models_dir / "current").resolve()


@pytest.fixture(scope="session")
def risk_model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a small risk model of its three metrics."""
    return with_risk_model(tiny_model_dir, tmp_path_factory.mktemp("risk"))
