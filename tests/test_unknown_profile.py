"""A profile the model never saw: said so, forecast like a hidden one, and better than by an untrained embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import tft_inference
import tft_trainer
from forecasting.engine import Engine
from forecasting.fitting import FitSettings, fit
from forecasting.grid import FleetGrid
from forecasting.model import QUANTILES, ForecastModel, build_network, pinball_loss, window_tensors
from forecasting.sampling import Batch, WindowSource
from forecasting.scaling import fit_scaling
from forecasting.split import Split
from forecasting.windows import WindowSpec
from tests.conftest import TINY_METRICS, tiny_fleet


def test_a_batch_names_the_unknown_profile_and_forecasts_it_as_a_hidden_one(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = tiny_fleet(hours=5, seed=9)
    frame.loc[frame["server_name"] == "ppdb001", "profile"] = "mainframe"
    frame.to_parquet(tmp_path / "day.parquet", index=False)
    flags = ["--model", str(tiny_model_dir), "--input", str(tmp_path / "day.parquet")]
    assert tft_inference.main([*flags, "--output", str(tmp_path / "forecasts.parquet")]) == 0
    assert "not trained on profile 'mainframe': its 1 server(s)" in capsys.readouterr().err
    forecasts = pd.read_parquet(tmp_path / "forecasts.parquet").query("server_name == 'ppdb001'")
    grid = FleetGrid.from_frame(frame[frame["server_name"] == "ppdb001"], TINY_METRICS, 300)
    hidden = Engine.load(tiny_model_dir, device="cpu").forecast(grid.values, [None], grid.timestamps()[-1])
    columns = [name for name in forecasts.columns if name.startswith("q0.")]
    np.testing.assert_allclose(forecasts[columns].to_numpy().reshape(hidden.shape), hidden, rtol=1e-5)


def test_the_trainer_says_that_a_held_out_profile_is_unknown_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = tiny_fleet()
    frame.loc[frame["server_name"] == "ppdb007", "profile"] = "mainframe"
    frame.to_parquet(tmp_path / "server_metrics.parquet", index=False)
    flags = ["--training-dir", str(tmp_path), "--models-dir", str(tmp_path / "models"), "--epochs", "1"]
    small = ["--hidden-size", "8", "--context-hours", "4", "--horizon-hours", "1", "--no-comparison"]
    assert tft_trainer.main([*flags, *small, "--holdout-servers", "ppdb007", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "no server to train on has profile mainframe" in said.err
    coverage_by_metric = said.out.split("The model on unseen servers, by metric")[1]
    assert all(metric in coverage_by_metric for metric in TINY_METRICS)


# --- the embedding of the unknown profile ---------------------------------------------------------------------------

PROFILES = ("database", "ml_compute", "web_api")
SPEC = WindowSpec(("cpu_pct",), 3600, "UTC", context_steps=1, horizon_steps=8)
SEEN, TRAIN_END = 18, 180


def mirrored_fleet(seed: int) -> FleetGrid:
    """Servers that sit at 20 % and jump to 80 % at times, and others that do the reverse: only the profile tells."""
    random = np.random.default_rng(seed)
    usual_and_rare = {"database": (20.0, 80.0), "ml_compute": (80.0, 20.0), "web_api": (20.0, 80.0)}
    profiles = PROFILES * 8
    values = [
        np.where(random.random(240) < 0.2, rare, usual) + random.normal(0, 3, 240)
        for usual, rare in (usual_and_rare[profile] for profile in profiles)
    ]
    names = tuple(f"server{row:02d}" for row in range(len(profiles)))
    start = np.datetime64("2026-03-02T00:00:00", "s")
    return FleetGrid(names, profiles, SPEC.metrics, start, 3600, np.clip(values, 0, 100)[:, :, None].astype(np.float32))


def nameless(source: WindowSource, rows: np.ndarray, origins: np.ndarray) -> Batch:
    """Windows of servers of which nothing is known, neither profile nor history."""
    rows, origins = (part.ravel() for part in np.meshgrid(rows, origins))
    return source.batch(rows, origins, 1, np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=bool))


def later_days_of_strangers(source: WindowSource) -> Batch:
    return nameless(source, np.arange(SEEN, 24), np.arange(TRAIN_END, 231, 5))


def loss_of(model: ForecastModel, batch: Batch) -> float:
    with torch.no_grad():
        scaled = model.eval().compressed_quantiles(*window_tensors(batch.windows))
        return pinball_loss(scaled, torch.from_numpy(batch.targets)).item()


def loss_of_the_fleets_quantiles(source: WindowSource, batch: Batch) -> float:
    """What can be said of such servers at best: how often each value occurred on the servers trained on."""
    known = nameless(source, np.arange(SEEN), np.arange(0, TRAIN_END - 8, 3)).targets
    windows, horizon, metrics = batch.targets.shape
    flat = torch.from_numpy(np.quantile(known, QUANTILES).astype(np.float32))[:, None]
    return pinball_loss(flat.expand(windows, metrics, -1, horizon), torch.from_numpy(batch.targets)).item()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_trained_embedding_of_the_unknown_profile_is_better_than_random_ones(seed: int) -> None:
    grid = mirrored_fleet(seed)
    scaling = fit_scaling(
        grid.values[:SEEN, :TRAIN_END], SPEC.metrics, np.array([True]), grid.profiles[:SEEN], SPEC.context_steps
    )
    source = WindowSource(grid, SPEC, scaling)
    torch.manual_seed(seed)
    model = ForecastModel(build_network(SPEC, PROFILES, 16), SPEC, scaling)
    settings = FitSettings(epochs=9, batch_size=64, learning_rate=1e-2, max_seconds=float("inf"), seed=seed)
    fit(model, source, Split(np.arange(SEEN), np.arange(0), np.arange(SEEN, 24), 150, TRAIN_END), settings)
    strangers = later_days_of_strangers(source)
    trained = loss_of(model, strangers)
    embedding = model.network.input_embeddings["profile"].weight
    draw = torch.Generator().manual_seed(0)
    at_random = []
    for _ in range(10):
        with torch.no_grad():
            embedding[0] = torch.randn(embedding.shape[1], generator=draw)
        at_random.append(loss_of(model, strangers))
    assert trained < 0.97 * np.mean(at_random)
    assert trained < 1.15 * loss_of_the_fleets_quantiles(source, strangers)
