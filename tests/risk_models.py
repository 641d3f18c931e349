"""A small risk model, and a model directory with it."""

import shutil
from pathlib import Path

from fleet_forecast.inference.model_directory import MANIFEST_FILE, read_config, write_manifest
from fleet_forecast.inference.risk_model import write_risk_model
from fleet_forecast.training.risk.fit import RiskSettings, train_on_simulator

SMALL = RiskSettings(
    training_fleets=1, held_out_servers=20, days=1.5, training_rate=30.0, rounds=12, held_out_rate=12.0
)


def with_risk_model(model_dir: Path, folder: Path) -> Path:
    """A copy of a model directory with a small risk model of the model's metrics."""
    copy = folder / model_dir.name
    shutil.copytree(model_dir, copy)
    config = read_config(copy)
    model, _ = train_on_simulator(config.targets, config.step_seconds, config.calendar, SMALL)
    write_risk_model(copy, model)
    reseal(copy)
    return copy


def reseal(model_dir: Path) -> None:
    """Write the manifest anew over files that were changed."""
    (model_dir / MANIFEST_FILE).unlink()
    write_manifest(model_dir)
