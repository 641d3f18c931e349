"""Unknown profiles: reported, forecast like masked ones, and better than with an untrained embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import tft_inference
import tft_trainer
from fleet_forecast.contract.calendar import BusinessCalendar
from fleet_forecast.contract.forecast_spec import QUANTILE_LEVELS
from fleet_forecast.features.grid import FleetGrid
from fleet_forecast.features.scaling import fit_scaling
from fleet_forecast.features.windows import WindowSpec
from fleet_forecast.inference.engine import Engine
from fleet_forecast.network.build import build_network
from fleet_forecast.network.loss import pinball_loss
from fleet_forecast.network.model import ForecastModel, window_tensors
from fleet_forecast.training.batches.augmentation import Augmentation
from fleet_forecast.training.batches.source import Batch, WindowSelection, WindowSource
from fleet_forecast.training.split import Split
from fleet_forecast.training.trainer import Trainer, TrainerSettings, TrainingData
from tests.conftest import TINY_METRICS, tiny_fleet


def test_batch_mode_reports_an_unknown_profile_and_forecasts_it_as_a_masked_one(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = tiny_fleet(hours=5, seed=9)
    frame.loc[frame["server_name"] == "ppdb001", "profile"] = "mainframe"
    frame.to_parquet(tmp_path / "day.parquet", index=False)
    flags = ["--model", str(tiny_model_dir), "--input", str(tmp_path / "day.parquet")]
    assert tft_inference.main([*flags, "--output", str(tmp_path / "forecasts.parquet")]) == 0
    assert "profile 'mainframe': forecast with an unknown profile (1 server); train" in capsys.readouterr().err
    forecasts = pd.read_parquet(tmp_path / "forecasts.parquet").query("server_name == 'ppdb001'")
    grid = FleetGrid.from_frame(frame[frame["server_name"] == "ppdb001"], TINY_METRICS, 300)
    masked = Engine.load(tiny_model_dir, device="cpu").forecast(grid.values, [None], grid.timestamps()[-1])
    columns = [name for name in forecasts.columns if name.startswith("q0.")]
    np.testing.assert_allclose(forecasts[columns].to_numpy().reshape(masked.shape), masked, rtol=1e-5)


def test_the_trainer_reports_a_held_out_profile_as_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = tiny_fleet()
    frame.loc[frame["server_name"] == "ppdb007", "profile"] = "mainframe"
    frame.to_parquet(tmp_path / "server_metrics.parquet", index=False)
    flags = ["--training-dir", str(tmp_path), "--models-dir", str(tmp_path / "models"), "--epochs", "1"]
    small = ["--hidden-size", "8", "--context-hours", "4", "--horizon-hours", "1", "--no-comparison", "--no-risk-model"]
    assert tft_trainer.main([*flags, *small, "--holdout-servers", "ppdb007", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "no training server has profile mainframe" in said.err
    coverage_by_metric = said.out.split("The model on unseen servers, by metric")[1]
    assert all(metric in coverage_by_metric for metric in TINY_METRICS)


# --- the embedding of the unknown profile ---------------------------------------------------------------------------

PROFILES = ("database", "ml_compute", "web_api")
SPEC = WindowSpec(("cpu_pct",), 3600, BusinessCalendar("UTC"), context_steps=1, horizon_steps=8)
SEEN, TEST_START, STEPS = 18, 180, 240
SERVERS = np.arange(24)


def fleet_of_morning_and_afternoon_profiles(seed: int) -> FleetGrid:
    """Two profiles busy before noon, one after; only the profile shows the hours, as all have the same values."""
    random = np.random.default_rng(seed)
    profiles = PROFILES * 8
    early = np.array(profiles) != "ml_compute"
    before_noon = np.arange(STEPS) % 24 < 12
    busy = early[:, None] == before_noon
    values = np.where(busy, 80.0, 20.0) + random.normal(0, 3, busy.shape)
    names = tuple(f"server{row:02d}" for row in SERVERS)
    start = np.datetime64("2026-03-02T00:00:00", "s")
    return FleetGrid(names, profiles, SPEC.metrics, start, 3600, values[:, :, None].astype(np.float32))


def without_history(source: WindowSource, rows: np.ndarray, origins: np.ndarray, masked: bool) -> Batch:
    """Windows without history of each server from each origin."""
    rows, origins = (part.ravel() for part in np.meshgrid(rows, origins))
    no_history = np.zeros(len(rows), dtype=np.int64)
    return source.batch(WindowSelection(rows, origins, 1, no_history, np.full(len(rows), masked)))


def loss_of(model: ForecastModel, batch: Batch) -> float:
    with torch.no_grad():
        scaled = model.eval().asinh_quantiles(window_tensors(batch.windows))
        return pinball_loss(scaled, torch.from_numpy(batch.targets)).item()


def loss_of_hourly_quantiles(source: WindowSource, unseen: Batch, origins: np.ndarray) -> float:
    """Of the best forecast without a profile: the quantiles of the training servers by hour."""
    steps = np.arange(TEST_START - SPEC.horizon_steps)
    known = without_history(source, np.arange(SEEN), steps, masked=True).targets[:, 0, 0].reshape(-1, SEEN)
    by_hour = np.stack([np.quantile(known[(steps + 1) % 24 == hour], QUANTILE_LEVELS) for hour in range(24)])
    ahead = origins[:, None] + 1 + np.arange(SPEC.horizon_steps)
    quantiles = np.repeat(by_hour[ahead % 24], len(SERVERS) - SEEN, axis=0).astype(np.float32)  # [window, H, Q]
    return pinball_loss(torch.from_numpy(quantiles).mT[:, None], torch.from_numpy(unseen.targets)).item()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_trained_embedding_of_the_unknown_profile_is_better_than_random_ones(seed: int) -> None:
    grid = fleet_of_morning_and_afternoon_profiles(seed)
    scaling = fit_scaling(
        grid.values[:SEEN, :TEST_START], {"cpu_pct": "percent"}, grid.profiles[:SEEN], SPEC.context_steps
    )
    source = WindowSource(grid, SPEC, scaling)
    torch.manual_seed(seed)
    model = ForecastModel(build_network(SPEC, PROFILES, 16), SPEC, scaling)
    no_history = Augmentation(short_history_share=1.0)  # else most windows show their profile by their history
    settings = TrainerSettings(12, 64, 5e-3, max_seconds=float("inf"), seed=seed, augmentation=no_history)
    split = Split(np.arange(SEEN), np.arange(0), SERVERS[SEEN:], train_end=150, test_start=TEST_START)
    Trainer(model, TrainingData(source, split), settings).fit()
    origins = np.arange(TEST_START, STEPS - SPEC.horizon_steps, 5)
    unseen = without_history(source, SERVERS[SEEN:], origins, masked=True)
    trained = loss_of(model, unseen)
    with_profile = loss_of(model, without_history(source, SERVERS[SEEN:], origins, masked=False))
    embedding = model.network.input_embeddings["profile"].weight
    draw = torch.Generator().manual_seed(0)
    at_random = []
    for _ in range(10):
        with torch.no_grad():
            embedding[0] = torch.randn(embedding.shape[1], generator=draw)
        at_random.append(loss_of(model, unseen))
    assert with_profile < 0.3 * trained, "the network does not use the profile"
    assert trained < 0.9 * np.mean(at_random)
    assert trained < 1.1 * loss_of_hourly_quantiles(source, unseen, origins)
